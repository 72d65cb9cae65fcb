"""The command line: exit codes, one-line messages, and the folder that a command means.

See tests/test_isolation.py for what is imported before a wrong command is refused.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from configs import smcl
from vireid_jax import run

REPO = pathlib.Path(__file__).resolve().parents[1]
RECIPE = f"--config={REPO}/configs/smcl.py"


def command(*arguments, cwd):
    """(exit code, stdout, stderr) of a command in another folder than the clone."""
    done = subprocess.run(
        [sys.executable, "-m", "vireid_jax.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [RECIPE, "--config.optim.lrr=1e-3"],
            'unknown key --config.optim.lrr. Did you mean "lr" instead of "lrr"?',
        ),
        (
            [RECIPE, "--config.optm.lr=1e-3"],
            'unknown key --config.optm.lr. Did you mean "optim" instead of "optm"?',
        ),
        (
            [RECIPE, "--config.optim.lr=fast"],
            "flag --config.optim.lr=fast: could not convert string to float: 'fast'",
        ),
        ([RECIPE + ":market"], "DATASET one of synthetic, sysu, regdb, llcm"),
        (["--config=configs/smlc.py"], "recipes here: configs/"),
        (
            ["--config=configs/smlc.py", "--config.seed=1"],
            "no recipe 'configs/smlc.py'; recipes here: configs/",
        ),
        ([RECIPE, "--mode=score"], "value should be one of <train|eval>"),
        ([RECIPE, "--config.init.from"], "Missing value for flag --config.init.from"),
        (["--mode=eval"], "--config is missing (or --mode=eval with --workdir of a run)"),
    ],
    ids=["key", "section", "value", "data set", "recipe", "both", "mode", "word", "nothing"],
)
def test_a_wrong_command_exits_with_2_and_one_line(arguments, message, tmp_path):
    code, out, err = command(*arguments, cwd=tmp_path)
    assert (code, out) == (2, ""), out + err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_an_error_that_the_user_can_cure_exits_with_1_and_leaves_nothing(tmp_path):
    """A data set that is nowhere; the recipe is found and read from any folder."""
    prepared = f"--config.data.prepared={tmp_path}/none"
    code, out, err = command(RECIPE + ":sysu", prepared, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("error: SYSU-MM01 is not prepared in ") and "data.root is not set" in err
    assert err.endswith("(--debug shows where)\n") and err.count("\n") == 2
    assert not list(tmp_path.iterdir())


def test_debug_shows_where(tmp_path):
    prepared = f"--config.data.prepared={tmp_path}/none"
    code, _, err = command(RECIPE + ":sysu", prepared, "--debug", cwd=tmp_path)
    assert code == 1
    assert "Traceback" in err and "datasets.py" in err and "SYSU-MM01 is not prepared" in err


def test_eval_of_a_folder_without_a_run_lists_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    code, out, err = command("--mode=eval", "--workdir", tmp_path, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert "is not the folder of a run; it holds ['notes.txt']" in err
    assert "Name the --workdir of a run, or give --config" in err and "Traceback" not in err
    # The same where a value is changed, for which the recipe in the folder is read earlier.
    change = "--config.eval.flip=True"
    code, out, err = command("--mode=eval", "--workdir", tmp_path, change, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert "is not the folder of a run; it holds ['notes.txt']" in err and "Traceback" not in err


def test_changed_values_reach_the_name_of_the_folder(tmp_path):
    """And an evaluation makes no folder where there is none."""
    arguments = ["--config.optim.lr=1e-3", "--config.eval.trials=3", "--mode=eval"]
    code, _, err = command(RECIPE, *arguments, cwd=tmp_path)
    assert code == 1 and "Traceback" not in err
    assert "runs/smcl_synthetic,optim.lr=0.001 is not the folder of a run" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [["--config.init.from=r.pth"], ["--config.init.from", "r.pth"]])
def test_a_key_that_is_a_word_of_python_is_a_key(given, tmp_path):
    code, out, err = command(RECIPE, *given, cwd=tmp_path)
    assert (code, out) == (1, "") and err.startswith("error: there is no file of weights at r.pth")
    code, _, err = command(RECIPE, *given, "--mode=eval", cwd=tmp_path)
    assert code == 1 and "runs/smcl_synthetic,init.from=r.pth is not the folder of a run" in err


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({}, "smcl_sysu"),
        ({"optim.lr": 1e-3}, "smcl_sysu,optim.lr=0.001"),
        ({"seed": 3, "method.id_margin": 0.0}, "smcl_sysu,method.id_margin=0.0,seed=3"),
        (
            {"eval.trials": 2, "train.keep": 9, "loader.name": "arrays", "allow_changes": True},
            "smcl_sysu",
        ),
        ({"optim.milestones": (1.0, 2.0)}, "smcl_sysu,optim.milestones=_1.0,_2.0_"),
        ({"init.from": "/w/../r50.pth"}, "smcl_sysu,init.from=_w_.._r50.pth"),
    ],
    ids=str,
)
def test_the_default_folder_is_named_after_what_changes_the_training(overrides, name):
    config = smcl.get_config("sysu")
    assert run._folder(config, None, overrides) == pathlib.Path("runs") / name
    reverse = dict(reversed(overrides.items()))
    assert run._folder(config, None, reverse) == pathlib.Path("runs") / name


def test_a_folder_that_is_named_is_taken(tmp_path):
    assert run._folder(smcl.get_config(), str(tmp_path), {"seed": 3}) == tmp_path
    assert run._folder(None, tmp_path, {}) == tmp_path
    with pytest.raises(ValueError, match="neither a recipe nor a workdir"):
        run._folder(None, None, {})
    named = smcl.get_config()
    named.run_name = "mine"
    assert run._folder(named, None, {"run_name": "mine"}) == pathlib.Path("runs/mine")
