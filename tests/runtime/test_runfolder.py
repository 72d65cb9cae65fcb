"""What a run was started with, and the refusal to resume it with something else."""

import copy
import json
import subprocess
import sys

import pytest

from vireid_jax.runtime import runfolder

CONFIG = {
    "seed": 0,
    "run_name": "smcl_synthetic",
    "allow_changes": False,
    "method": {"name": "smcl"},
    "sampler": {"num_ids": 8, "num_instances": 4, "steps_per_epoch": None},
    "data": {"name": "synthetic", "image_size": (96, 48)},
    "optim": {"lr": 1e-3, "milestones": (), "multipliers": (("backbone/.*", 0.1),)},
    "loader": {"name": "arrays", "prefetch": 2},
    "train": {"epochs": 30.0, "log_every": 10, "keep": 3},
    "eval": {"protocols": ("sysu/all/single",)},
}
ARGV = ["/venv/bin/vireid", "--config", "configs/smcl.py", "--config.optim.lr=1", "--workdir=a b"]


def changed(**sections):
    config = copy.deepcopy(CONFIG)
    for key, value in sections.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    return config


@pytest.fixture
def started(tmp_path):
    runfolder.save_run_info(tmp_path / "run", CONFIG, ARGV)
    return tmp_path / "run"


def test_the_same_config_resumes(started, tmp_path):
    assert runfolder.check_resume(started, CONFIG, allow=False) == []
    assert runfolder.check_resume(started, copy.deepcopy(CONFIG), allow=True) == []
    assert runfolder.check_resume(tmp_path / "nothing", CONFIG, allow=False) == []


def test_what_changes_the_training_is_refused(started):
    for change, line in [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"sampler": {"num_ids": 4}}, "sampler.num_ids: 8 -> 4"),
        ({"sampler": {"steps_per_epoch": 5}}, "sampler.steps_per_epoch: null -> 5"),
        ({"data": {"image_size": (96, 64)}}, "data.image_size: [96, 48] -> [96, 64]"),
        ({"data": {"trial": 2}}, "data.trial: (absent) -> 2"),
        ({"train": {"epochs": 31.0}}, "train.epochs: 30.0 -> 31.0"),
        ({"optim": {"multipliers": ()}}, 'optim.multipliers: [["backbone/.*", 0.1]] -> []'),
        ({"data": "synthetic"}, 'data.name: "synthetic" -> (absent)'),
    ]:
        config = changed(**change)
        with pytest.raises(ValueError) as error:
            runfolder.check_resume(started, config, allow=False)
        message = str(error.value)
        assert f"\n  {line}\n" in message, line
        assert "--config.allow_changes=True" in message and "--workdir" in message
        assert line in runfolder.check_resume(started, config, allow=True)
    assert json.loads((started / "config.json").read_text())["seed"] == 0, "checking writes nothing"
    config = changed(seed=7, sampler={"num_ids": 2}, train={"log_every": 1})
    both = ["sampler.num_ids: 8 -> 2", "seed: 0 -> 7"]
    assert runfolder.check_resume(started, config, allow=True) == both, "and nothing else"


def test_free_keys_may_change(started):
    config = changed(
        run_name="other",
        allow_changes=True,
        loader={"name": "tfdata", "prefetch": 8},
        train={"log_every": 1, "keep": 9, "eval_every": 2.0},
        eval={"trials": 3},
    )
    assert runfolder.check_resume(started, config, allow=False) == []
    assert not runfolder.changes_training("eval.trials") and runfolder.changes_training("data.seed")


def test_a_config_that_cannot_be_read(started):
    (started / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json cannot be read: .*; restore the file"):
        runfolder.check_resume(started, CONFIG, allow=True)


def test_a_folder_of_other_things_is_no_place_for_a_run(tmp_path):
    for name in ("hosts/", "supervise/", "slurm-7.out", "console.log", ".running/"):
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert runfolder.check_resume(tmp_path, CONFIG, allow=False) == []
    (tmp_path / "checkpoints").mkdir()  # of a run that lost its config.json: not to be cleared
    with pytest.raises(ValueError, match=r"it holds checkpoints and no config\.json, exp"):
        runfolder.check_resume(tmp_path, CONFIG, allow=True)


def test_damaged_files_are_named_and_what_nobody_needs_is_set_aside(started, caplog):
    env = json.loads((started / "env.json").read_text())
    for n, content in enumerate(("", "5", '{"a": 1}', "[" * 200_000)):
        (started / "env.json").write_text(content)
        runfolder.save_run_info(started, CONFIG, ARGV)
        assert json.loads((started / "env.json").read_text()) == env
        assert len(list(started.glob("env.json.damaged*"))) == n + 1
        assert "env.json is damaged" in caplog.text
    for content in ("[]", "{}", "", "5", '{"data": {"name": "x"}}', "[" * 200_000):
        (started / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json (is not a config|cannot be read)"):
            runfolder.load_config(started)
    for content in ("", "[]", "{}", '{"persons": [99999999999999999999]}', "[" * 200_000):
        (started / "classes.json").write_text(content)
        with pytest.raises(ValueError, match=r"classes\.json cannot be read"):
            runfolder.load_classes(started)


def test_starts_are_recorded_one_after_the_other(started, monkeypatch):
    runfolder.save_run_info(started, changed(train={"log_every": 1}), ARGV)
    commands = (started / "COMMAND").read_text().splitlines()
    assert len(commands) == 2
    # A line can be pasted into a shell: the time is a comment.
    shell = f"for a in {commands[0]}\ndo printf '%s|' \"$a\"; done"
    pasted = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert pasted.stdout == "|".join(ARGV) + "|"
    runfolder.save_run_info(started, CONFIG, ["/src/vireid_jax/main.py", "--config=a"])
    last = (started / "COMMAND").read_text().splitlines()[-1]
    assert last.startswith("python -m vireid_jax.main --config=a  #")
    saved = json.loads((started / "config.json").read_text())
    assert saved["train"]["log_every"] == 10, "the config of the first start"
    (env,) = json.loads((started / "env.json").read_text())
    assert env["python"] == ".".join(map(str, sys.version_info[:3]))
    assert env["device_count"] == 4 and env["device_kind"] == "cpu" and env["numpy"]
    monkeypatch.setattr(runfolder.platform, "python_version", lambda: "9.9.9")
    runfolder.save_run_info(started, CONFIG, ARGV)
    assert [e["python"] for e in json.loads((started / "env.json").read_text())][-1] == "9.9.9"


def test_allowed_changes_become_the_config_and_the_old_one_is_kept(started):
    for seed in (1, 2):
        config = changed(seed=seed)
        assert runfolder.check_resume(started, config, allow=True)
        runfolder.save_run_info(started, config, ARGV)
        assert runfolder.check_resume(started, config, allow=False) == []
    seeds = [
        json.loads((started / f"config{n}.json").read_text())["seed"] for n in ("", ".1", ".2")
    ]
    assert seeds == [2, 0, 1]


def test_commit_of_a_clone(tmp_path, monkeypatch):
    package = tmp_path / "vireid_jax"
    (package / "runtime").mkdir(parents=True)
    (package / "runtime" / "runfolder.py").touch()
    monkeypatch.setattr(runfolder, "__file__", str(package / "runtime" / "runfolder.py"))
    assert runfolder.environment()["commit"] is None, "an installed package is no clone"

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        run = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return run.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    assert runfolder.environment()["commit"] == commit
    (package / "runtime" / "runfolder.py").write_text("changed")
    assert runfolder.environment()["commit"] == commit + "+"


def test_config_comes_back_as_it_was(started):
    config = runfolder.load_config(started)
    assert config.to_dict() == CONFIG
    assert isinstance(config.optim.multipliers[0], tuple)
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        runfolder.load_config(started.parent)


def test_a_run_of_another_version_is_refused_with_who_made_it(started):
    """Keys that come and go between versions: which, who made the run, and what to do."""
    known = {"sampler": ("num_ids", "num_instances", "steps_per_epoch"), "data": CONFIG["data"]}
    runfolder.check_known(CONFIG, known, started)
    runfolder.check_known(CONFIG, {**known, "": CONFIG}, started, needed={"loader": ["name"]})
    env = json.loads((started / "env.json").read_text())
    env.append({**env[0], "vireid_jax": "0.0.7", "commit": "0123456789abcdef+"})
    (started / "env.json").write_text(json.dumps(env))
    rows = [
        ({"sampler": ("num_ids",)}, {}, ["sampler.num_instances: unknown"]),
        (
            {"": ("seed",), "data": ("name",)},
            {},
            ["allow_changes: unknown", "data.image_size: unk"],
        ),
        ({}, {"init": ("weights",), "": ("mode",)}, ["init.weights: absent, but", "mode: absent"]),
    ]
    made = "last started by vireid_jax 0.0.7, commit 0123456789ab; this is vireid_jax"
    for known, needed, lines in rows:
        with pytest.raises(ValueError) as error:
            runfolder.check_known(CONFIG, known, started, needed=needed)
        message = str(error.value)
        for line in lines:
            assert f"\n  {line}" in message, lines
        assert made in message
        assert "Score or resume it with that version" in message and "--workdir" in message
    # The same when it is resumed with a recipe of this version.
    with pytest.raises(
        ValueError, match=r"init.weights: \(absent\) -> null\n.*0\.0\.7.* resume the run"
    ):
        runfolder.check_resume(started, changed(init={"weights": None}), allow=False)
    for content in ("[]", "{", '["x"]'):
        (started / "env.json").write_text(content)
        with pytest.raises(ValueError, match=r"a version that its env\.json does not name"):
            runfolder.check_known(CONFIG, {"data": ()}, started)


def test_what_processes_must_have_in_common():
    facts = runfolder.shared_facts(CONFIG)
    assert facts["jax"] and facts["python"] and facts["sampler.num_ids"] == 8
    here = changed(data={"root": "/here", "cache": "/tmp/a"})
    there = changed(data={"root": "/there", "cache": "/tmp/b"})
    assert runfolder.shared_facts(here) == runfolder.shared_facts(there)
    for change in ({"seed": 1}, {"eval": {"protocols": ()}}, {"train": {"log_every": 5}}):
        assert runfolder.shared_facts(changed(**change)) != facts
    json.dumps(facts)


def test_what_a_run_was_trained_with(started):
    found = runfolder.trained_with(started)
    assert (found["optim.lr"], found["data.image_size"]) == (1e-3, [96, 48])
    assert not {"run_name", "train.log_every", "eval.protocols", "train_set"} & set(found)
    classes = {"persons": [1, 2], "names_sha256": "0123456789abcdef", "files_sha256": []}
    (started / runfolder.CLASSES).write_text(json.dumps(classes))
    assert runfolder.trained_with(started) == found | {"train_set": "0123456789ab"}
    (started / runfolder.CLASSES).write_text('{"persons": [99999999999999999999]}')
    with pytest.raises(ValueError, match=r"classes.json cannot be read"):
        runfolder.trained_with(started)
