"""The command line: exit codes, one-line messages, and the folder that a command means.

See tests/test_isolation.py for what is imported before a wrong command is refused.
"""

import io
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from configs import agw, smcl
from tests.support.recipes import ROOT
from vireid_jax import main, options

RECIPE = f"--config={ROOT}/configs/smcl.py"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """(exit code, stdout, stderr) of a command in another folder than the clone."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main.main(["main.py", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return run


WRONG = [
    (
        [RECIPE, "--config.optim.lrr=1e-3"],
        "unknown key --config.optim.lrr. Did you mean --config.optim.lr=VALUE",
    ),
    (
        [RECIPE, "--config.optm.lr=1e-3"],
        "unknown key --config.optm.lr. Did you mean --config.optim.lr=VALUE",
    ),
    (
        [RECIPE, "--config.train.steps=20"],
        "unknown key --config.train.steps. Did you mean --config.sampler.steps_per_epoch=VALUE or "
        "--max_steps=VALUE?",
    ),
    (
        [RECIPE, "--config.method.name=agw"],
        "would change the name alone, and not the options that belong to smcl; choose the recipe "
        "instead: --config=agw:synthetic",
    ),
    ([RECIPE, "--config.data.name=sysu"], "configs/smcl.py:sysu"),
    ([RECIPE, "--config.optim=3"], "--config.optim is a section; change one of its values: --con"),
    (
        [RECIPE, "--config.optim.lr=fast"],
        "flag --config.optim.lr=fast: could not convert string to float: 'fast'",
    ),
    ([RECIPE + ":market"], "DATASET one of synthetic, sysu, regdb, llcm"),
    (["--config=configs/smlc.py"], "recipes here: configs/agw.py, configs/deen.py"),
    (["--config=smlc", "--config.seed=1"], "no recipe 'smlc'; recipes here: configs/agw.py"),
    ([RECIPE, "--mode=score"], "value should be one of <train|eval>"),
    ([RECIPE, "--config.init.weights"], "Missing value for flag --config.init.weights"),
    (["--mode=eval"], "--config is missing (or --mode=eval with --workdir of a run)"),
]


def test_a_wrong_command_exits_with_2_and_one_line(command, tmp_path):
    for arguments, message in WRONG:
        code, out, err = command(*arguments)
        assert (code, out) == (2, ""), (arguments, out, err)
        assert err.startswith("error: ") and message in err, (arguments, err)
        assert err.count("\n") == 1 and not list(tmp_path.iterdir()), (arguments, err)


def test_an_error_that_the_user_can_cure_exits_with_1_and_leaves_nothing(command, tmp_path):
    """A data set that is nowhere; the recipe is found and read from any folder."""
    prepared = f"--config.data.prepared={tmp_path}/none"
    code, out, err = command(RECIPE + ":sysu", prepared)
    assert (code, out) == (1, "")
    assert err.startswith("error: SYSU-MM01 is not prepared in ") and "data.root is not set" in err
    assert err.endswith("(--debug shows where)\n") and err.count("\n") == 2
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="SYSU-MM01 is not prepared"):  # Python shows where
        command(RECIPE + ":sysu", prepared, "--debug")


def test_eval_of_a_folder_without_a_run_lists_what_it_holds(command, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    # Where a value is changed, the recipe in the folder is read earlier.
    for change in ([], ["--config.eval.flip=True"]):
        code, out, err = command("--mode=eval", "--workdir", tmp_path, *change)
        assert (code, out) == (1, "")
        assert "is not the folder of a run; it holds ['notes.txt']" in err
        assert "Name the --workdir of a run, or give --config" in err and "Traceback" not in err


def test_changed_values_reach_the_name_of_the_folder(command, tmp_path):
    """And an evaluation makes no folder where there is none."""
    arguments = ["--config.optim.lr=1e-3", "--config.eval.trials=3", "--mode=eval"]
    code, _, err = command(RECIPE, *arguments)
    assert code == 1 and "Traceback" not in err
    assert "runs/smcl-synthetic-lr=0.001 is not the folder of a run" in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_no_shell_has_named(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for change in ([], ["--config.eval.flip=True"]):
        for text, said in (
            ("~/run", "home/run is not the folder of a run"),
            ("$HOME/run", "shell"),
        ):
            code, _, err = command("--mode=eval", f"--workdir={text}", *change)
            assert code == 1 and said in err and "Traceback" not in err, (text, err)
    assert not list(tmp_path.iterdir())


def test_a_terminal_that_lacks_a_character_shows_something(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["vireid", "--version", "--config=x"])
    with pytest.raises(SystemExit):
        main.cli()
    print("19.6 ± 0.5", flush=True)
    assert b"19.6 ? 0.5" in stream.buffer.getvalue()


def test_a_recipe_is_found_from_any_folder_by_path_or_name(command, tmp_path):
    """The working folder comes first; a value is given with = or after a space."""
    own = tmp_path / "configs"
    own.mkdir()
    (own / "mine.py").write_text("from configs import smcl\nget_config = smcl.get_config\n")
    (own / "mun.py").write_text("from configs import smcl\nget_config = smcl.get_config\n")
    for named, dataset, method in (
        (["--config=configs/smcl.py:sysu"], "sysu", "smcl"),
        (["--config", "smcl:sysu"], "sysu", "smcl"),
        (["--config=agw"], "synthetic", "agw"),
        (["--config=configs/mine.py"], "synthetic", "smcl"),
        (["--config=mun:llcm"], "llcm", "smcl"),  # the one in this folder
    ):
        code, out, err = command(*named, "--print_config", "--config.seed", "7")
        assert code == 0, err
        lines = out.splitlines()
        assert f"data.name = {dataset!r}" in lines and "seed = 7" in lines, named
        assert f"method.name = {method!r}" in lines and lines == sorted(lines), named


@pytest.mark.slow
def test_an_installed_package_has_the_recipes(tmp_path):
    clone = tmp_path / "clone"  # building leaves files behind
    clone.mkdir()
    for name in ("vireid_jax", "configs"):
        shutil.copytree(ROOT / name, clone / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", str(clone)]
    subprocess.run([*build, "-q", "-w", tmp_path], check=True, cwd=tmp_path, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    names = {p.name for p in (ROOT / "configs").glob("*.py")}
    assert {p.name for p in (site / "vireid_jax/recipes/configs").iterdir()} == names
    done = subprocess.run(
        [sys.executable, "-m", "vireid_jax.main", "--config=idkl:regdb,official", "--print_config"],
        capture_output=True,
        text=True,
        cwd=site,
        env=os.environ | {"PYTHONPATH": str(site)},
        timeout=120,
    )
    assert done.returncode == 0 and "method.confuser = 'half_flip'" in done.stdout, done.stderr


FOLDERS = [
    ({}, "smcl-sysu"),
    ({"optim.lr": 1e-3}, "smcl-sysu-lr=0.001"),
    ({"seed": 3, "method.id_margin": 0.0}, "smcl-sysu-id_margin=0.0-seed=3"),
    ({"eval.trials": 2, "train.keep": 9, "loader.name": "arrays", "allow_changes": True},
     "smcl-sysu"),
    ({"optim.milestones": (1.0, 2.0)}, "smcl-sysu-milestones=_1.0,_2.0_"),
    ({"init.weights": "/w/../r50.pth"}, "smcl-sysu-weights=_w_.._r50.pth"),
    ({"optim.name": "sgd"}, "smcl-sysu-optim.name=sgd"),  # data and method have a name, too
]  # fmt: skip


def test_the_default_folder_is_named_after_what_changes_the_training():
    config = smcl.get_config("sysu")
    for overrides, name in FOLDERS:
        reverse = dict(reversed(overrides.items()))
        for given in (overrides, reverse):
            assert main.folder_of(config, None, given) == pathlib.Path("runs") / name
    assert main.folder_of(agw.get_config("regdb,caj"), None, {}).name == "agw-caj-regdb"
    assert main.folder_of(smcl.get_config(), None, {"data.seed": 1}).name.endswith("-data.seed=1")


def test_a_name_that_is_no_folder_is_refused():
    for name in ("", ".", ".."):
        c = smcl.get_config()
        c.run_name = name
        with pytest.raises(ValueError, match=r"run_name is .*, expected the name of a folder"):
            main.folder_of(c, None, {})


def test_the_last_of_several_values_counts_for_every_type():
    words = ["--config.optim.milestones=(20.0,)", "--config.optim.lr=0.1", "--config.seed", "3"]
    words += ["--config.optim.milestones=(60.0,)", "--config.optim.lr", "0.2", "--config.seed=4"]
    words += ["--config.eval.flip", "--noconfig.eval.flip"]
    found, values = main.changed(agw.get_config("sysu"), words)
    expected = {"optim.milestones": (60.0,), "optim.lr": 0.2, "seed": 4, "eval.flip": False}
    assert values == expected and found.optim.milestones == (60.0,)


def test_a_size_is_given_in_three_ways():
    for text in ("(96, 48)", "96,48", "96x48", "96X48"):
        _, values = main.changed(smcl.get_config("sysu"), [f"--config.data.image_size={text}"])
        assert values == {"data.image_size": (96, 48)}, text


BAD_RECIPES = [
    ("c.optim.lrr = 1.0", "line 4: the section 'optim' of the recipe has the unknown key 'lrr'"),
    ("c.data.foo = 1", "line 4: the section 'data' of the recipe has the unknown key 'foo'"),
    ("del c.optim", "line 4: the recipe lacks the key 'optim'; add it"),
    ("del c.seed", "line 4: the recipe lacks the key 'seed'; add it"),
    ("del c.train.epochs", "line 4: the section 'train' of the recipe lacks the key 'epochs'"),
    ("c.optim.lr = 'a'", "line 4: TypeError: Could not override field 'lr'"),
    ("raise KeyError('boom')", "line 4: KeyError: 'boom'"),
    ("return 3", "returns 3, expected a ConfigDict"),
    ("c.seed = = 3", "line 4: invalid syntax"),
]  # fmt: skip


def test_a_wrong_recipe_is_a_line_with_its_place(command, tmp_path):
    path = tmp_path / "bad.py"
    for line, message in BAD_RECIPES:
        lines = ["def get_config(arg=None):", "from configs import smcl", "c = smcl.get_config()"]
        path.write_text("\n    ".join([*lines, line, "return c"]) + "\n")
        code, out, err = command(f"--config={path}", f"--workdir={tmp_path}/run")
        assert code in (1, 2) and not out and err.startswith("error: "), (line, err)
        assert str(path) in err and message in err and "Traceback" not in err, (line, err)
        assert [p.name for p in tmp_path.iterdir()] == ["bad.py"], line


def test_paths_that_no_shell_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main.folder_of(smcl.get_config(), "~/run", {}) == tmp_path / "run"
    config = {"data": {"root": "~/mine", "cache": True}, "init": {"weights": None}, "seed": 1}
    monkeypatch.chdir(tmp_path)
    found = options.full_paths(config)
    assert found == {**config, "data": {"root": str(tmp_path / "mine"), "cache": True}}
    assert options.full_paths({"data": {"root": "mine"}}) == {"data": {"root": f"{tmp_path}/mine"}}


def test_a_long_name_ends_with_a_checksum_of_the_whole():
    config = smcl.get_config("sysu")
    names = {
        main.folder_of(config, None, {"init.weights": f"{'a' * 100}{n}.pth"}).name for n in "12"
    }
    assert len(names) == 2 and {len(name) for name in names} == {main.LONGEST_NAME}
    assert all(name.startswith("smcl-sysu-weights=aaa") and name[-9] == "-" for name in names)


def test_a_folder_that_is_named_is_taken(tmp_path):
    assert main.folder_of(smcl.get_config(), str(tmp_path), {"seed": 3}) == tmp_path
    assert main.folder_of(None, tmp_path, {}) == tmp_path
    with pytest.raises(ValueError, match="neither a recipe nor a workdir"):
        main.folder_of(None, None, {})
    named = smcl.get_config()
    named.run_name = "mine"
    assert main.folder_of(named, None, {"run_name": "mine"}) == pathlib.Path("runs/mine")
