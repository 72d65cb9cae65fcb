"""The command: what it runs, runs again, reports and passes on."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.ablation.stand_in import made_up
from tests.support.plain import PLAIN
from vireid_jax.ablation import __main__ as command
from vireid_jax.ablation import page
from vireid_jax.runtime import EXIT_PREEMPTED

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE, SEEDS = "smcl/1", ("--seeds", "0", "1")
ONE = (TABLE, "--seeds", "0", "--rows", "b")
PATIENCE = 60  # seconds that a stand-in may take to start on a busy machine


@pytest.fixture
def heard():
    """(signal) -> None: it has its default effect during the test.

    Tests may run with a signal ignored, as SIGHUP under nohup and SIGINT in the background of a
    script, which the command respects.
    """
    before = {}

    def hear(signum):
        before[signum] = signal.getsignal(signum)
        if before[signum] is signal.SIG_IGN:
            default = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, default)

    yield hear
    for signum, handler in before.items():
        signal.signal(signum, handler)


ROWS = ("b", "ceh", "ceh_adsl", "it")


def ask(monkeypatch, **how):
    monkeypatch.setenv("STAND_IN", json.dumps(how))


def read(tmp_path, name="smcl-1"):
    with (tmp_path / f"{name}.csv").open() as f:
        return {(line["row"], line["metric"]): line for line in csv.DictReader(f)}


def test_a_table_is_trained_once(ablation, tmp_path, starts, capsys):
    assert ablation(TABLE, *SEEDS, "--jobs", "2") == 0
    assert list(starts().values()) == [["train"]] * 8
    table = read(tmp_path)
    for row in ROWS:
        values = [made_up(f"x/{row}:synthetic", seed, None)["mAP"] for seed in (0, 1)]
        assert float(table[row, "mAP"]["mean"]) == pytest.approx(sum(values) / 2, abs=1e-6)
        assert table[row, "mAP"]["n"] == "2"
    out = capsys.readouterr().out
    assert (tmp_path / "smcl-1.md").read_text().splitlines()[3] in out, "the table is printed"
    assert ablation(TABLE, *SEEDS) == 0
    assert list(starts().values()) == [["train"]] * 8, "nothing is trained again"
    assert ablation(TABLE, "--seeds", "0", "1", "2") == 0
    assert list(starts().values()) == [["train"]] * 12, "the third seed is"


def test_corrupted_images_are_scored_on_the_same_training(ablation, tmp_path, starts):
    assert ablation("mun/5", "--seeds", "0", "--rows", "b", "smcl") == 0
    assert list(starts().values()) == [["train", "eval"]] * 2
    table = read(tmp_path, "mun-5")
    expected = made_up("x/b:synthetic", 0, "visible")["mAP"]
    assert float(table["b", "mAP"]["mean"]) == pytest.approx(expected)
    assert table["b", "mAP"]["corrupt"] == "visible" and table["aux", "mAP"]["n"] == "0"
    assert ablation("mun/1", "mun/5", "--seeds", "0", "--rows", "b") == 0
    assert list(starts().values()) == [["train", "eval"]] * 2, "table 1's row is there"
    expected = made_up("x/b:synthetic", 0, None)["mAP"]
    assert float(read(tmp_path, "mun-1")["b", "mAP"]["mean"]) == pytest.approx(expected)


def test_other_settings_are_other_cells_or_other_scores(ablation, starts):
    assert ablation(*ONE) == 0
    assert ablation(*ONE, "--config.eval.trials=2") == 0
    assert list(starts().values()) == [["train", "eval"]]
    assert ablation(*ONE, "--config.train.epochs=3") == 0
    assert sorted(starts().values()) == [["train"], ["train", "eval"]]


def test_a_failing_cell_does_not_keep_others(ablation, tmp_path, starts, monkeypatch, capsys):
    ask(monkeypatch, fail=["/ceh:"])
    assert ablation(TABLE, *SEEDS) == 1
    err = capsys.readouterr().err
    assert "failed: smcl/1/ceh, seed 0: exit code 1" in err and "seed 1" in err
    assert "  error: the loss is not finite" in err, "the end of its log"
    table = read(tmp_path)
    assert [table[row, "mAP"]["n"] for row in ROWS] == ["2", "0", "2", "2"]
    ask(monkeypatch)
    assert ablation(TABLE, *SEEDS) == 0, "it is tried again"
    assert sorted(map(len, starts().values())) == [1] * 6 + [2] * 2
    log = next(f for f, s in starts().items() if len(s) == 2) / command.LOG
    assert log.read_text().count("it starts") == 2


def test_a_cell_without_an_end_or_a_result_has_failed(ablation, monkeypatch, capsys):
    for how, message in (
        ({"nothing": ["/b:"]}, "holds no results although"),
        ({"killed": ["/b:"]}, "failed: smcl/1/b, seed 0: killed by signal 9; the end of"),
    ):
        ask(monkeypatch, **how)
        assert ablation(*ONE) == 1
        assert message in capsys.readouterr().err


def test_a_preempted_cell_stops_the_command(ablation, tmp_path, starts, monkeypatch, capsys):
    ask(monkeypatch, preempted=["/ceh_adsl:"])
    assert ablation(TABLE, *SEEDS, "--jobs", "1") == EXIT_PREEMPTED == 42
    assert "run the same command again" in capsys.readouterr().err
    assert len(starts()) == 3, "no other cell is begun"
    assert read(tmp_path)["b", "mAP"]["n"] == "1", "the tables show what there is"
    ask(monkeypatch)
    assert ablation(TABLE, *SEEDS) == 0
    assert read(tmp_path)["b", "mAP"]["n"] == "2"


def send_when(folder, moments, signum):
    """A thread that sends the signal each time that so many cells have left such a file."""

    def send():
        limit = time.monotonic() + PATIENCE
        for name, count in moments:
            while len(list(folder.glob(f"cells/*/*/{name}"))) < count:
                if time.monotonic() > limit:
                    break
                time.sleep(0.02)
            os.kill(os.getpid(), signum)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130), (signal.SIGHUP, 42)]
)
def test_a_signal_is_passed_on_and_the_command_can_be_repeated(
    ablation, tmp_path, starts, monkeypatch, heard, signum, code
):
    ask(monkeypatch, wait=["/b:", "/it:"])
    heard(signum)
    before = signal.getsignal(signum)
    sender = send_when(tmp_path, [("waits", 2)], signum)
    assert ablation(*ONE, "it", "--jobs", "2") == code
    sender.join()
    assert len(list(tmp_path.glob("cells/*/*/saved"))) == 2, "both have saved"
    assert signal.getsignal(signum) == before
    assert ablation(*ONE, "it", "--jobs", "2") == 0
    assert list(starts().values()) == [["train"] * 2] * 2


def test_ctrl_c_again_ends_at_once(ablation, tmp_path, monkeypatch, heard):
    ask(monkeypatch, stubborn=["/b:"])
    heard(signal.SIGINT)
    sender = send_when(tmp_path, [("waits", 1), ("saved", 1)], signal.SIGINT)
    assert ablation(*ONE) == 130
    sender.join()


def test_a_cell_of_another_command_is_left_alone(ablation, tmp_path, starts, monkeypatch, capsys):
    """A process outlives a command that is killed, and holds its cell."""
    assert ablation(*ONE) == 0
    (folder,) = starts()
    (folder / "trained.json").unlink()
    code = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(30)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / command.LOCK)], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        assert ablation(*ONE, "ceh") == 1
    finally:
        holder.terminate()
        holder.wait()
        holder.stdout.close()
    assert "another command works on" in capsys.readouterr().err
    assert sorted(starts().values()) == [["train"]] * 2, "the other row was trained"


def test_show_trains_nothing_and_fills_a_page(ablation, tmp_path, starts, capsys):
    """Tables say by which command they were made, without how and where it is shown."""
    path = tmp_path / "page.md"
    path.write_text("# Tables\n<!-- table: smcl-1 -->\n<!-- end -->\n")
    shown = ("--jobs", "1", "--show", "--page", str(path), "--jobs=2", f"--page={path}")
    assert ablation(TABLE, "smcl/2", *shown, "--seeds", "0") == 0
    assert starts() == {} and read(tmp_path)["b", "mAP"]["n"] == "0"
    assert "| B + CEHL | - |" in path.read_text()
    assert "has no place <!-- table: smcl-2 -->" in capsys.readouterr().err
    made = f"Made by `python -m vireid_jax.ablation smcl/1 smcl/2 --seeds 0 --folder {tmp_path}`."
    assert made in (tmp_path / "smcl-1.md").read_text() and made in path.read_text()


WRONG = [
    ([], "no table is named"),
    (["smcl/9"], "no table 'smcl/9'"),
    ([TABLE, "--rows", "zero"], "no row zero"),
    ([TABLE, "--jobs", "0"], "--jobs is 0"),
    ([TABLE, "--config.optim.learning_rate=1"], "learning_rate"),
    ([TABLE, "--protocol", "sysu/outdoor"], "unknown protocol 'sysu/outdoor'"),
    ([TABLE, "--protocol", "regdb/v2t"], "regdb/v2t, which is not one of synthetic"),
    ([TABLE, "--feature", "neck"], "no feature 'neck'; give --feature bn or pool"),
    ([TABLE, "--page", "nowhere.md"], "--page is nowhere.md, which is no file"),
    ([TABLE, "--config.train.epochs", "3"], "expected --config.train.epochs=VALUE, with the ="),
    (["--rows", "b", TABLE], "no table is named; expected of smcl/1"),
]
UNKNOWN = [
    ([TABLE, "--sedes", "0"], "--sedes"),
    (["--seeds", "0", TABLE], "'smcl/1' is no seed; name tables before --seeds"),
]


def test_a_wrong_command_line_is_refused_before_anything_runs(ablation, starts, capsys):
    for argv, message in WRONG:
        assert ablation(*argv) == 2, argv
        assert message in capsys.readouterr().err, argv
    for argv, message in UNKNOWN:
        with pytest.raises(SystemExit) as exit_:
            ablation(*argv)
        assert exit_.value.code == 2 and message in capsys.readouterr().err, argv
    assert not starts()


def test_tables_may_be_on_both_sides_of_an_option(capsys):
    assert command.main(["smcl/1", "--jobs", "2", "mun/1", "--list"]) == 0
    out = capsys.readouterr().out
    assert "smcl/1  components" in out and "mun/1  components" in out


def test_tables_that_cannot_be_written_do_not_end_cells(
    ablation, tmp_path, starts, monkeypatch, capsys
):
    real, left = page.write, [1]

    def write(*args):
        if left:
            left.pop()
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(page, "write", write)
    assert ablation(*ONE, "ceh", "--jobs", "1") == 0
    assert "tables are not written for now: " in capsys.readouterr().err
    assert list(starts().values()) == [["train"]] * 2
    assert read(tmp_path)["ceh", "mAP"]["n"] == "1"
    left[:] = [1]
    assert ablation(TABLE, "--seeds", "0", "--show") == 1, "the last one is an error"
    assert "error: [Errno 28]" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told(stand_in, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = [TABLE, "--rows", "b", "--seeds", "0", "--folder", str(tmp_path / "file" / "x")]
    assert command.main(argv) == 1
    err = capsys.readouterr().err
    assert "Not a directory" in err and "Traceback" not in err


def test_what_is_not_json_is_named(ablation, starts, capsys):
    assert ablation(*ONE) == 0
    (folder,) = starts()
    (path,) = folder.glob("eval/50/*.json")
    path.write_text("{")
    assert ablation(*ONE) == 1
    assert f"{path} cannot be read: Expecting" in capsys.readouterr().err
    path.unlink()
    assert ablation(*ONE) == 0
    assert list(starts().values()) == [["train", "eval"]]


def test_jax_that_dies_without_a_word(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match="jax does not start: exit code 1, no message"):
        command.find_backend()


def test_the_list_names_every_row_with_its_command(capsys):
    assert command.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert "--config configs/tables.py:mun/3/both\n" in out
    assert "method.metric_from_epoch = 0.733 of train.epochs" in out
    assert "shorter trainings than these commands: train.epochs=15.0, method.width=16" in out
    assert command.main(["smcl/1", "--list", "--dataset", "sysu"]) == 0
    out = capsys.readouterr().out
    assert "tables.py:smcl/1/it:sysu" in out and "mun" not in out
    assert "= the recipe's share of train.epochs" in out and "shorter" not in out


def test_help_and_list_are_light():
    code = (
        "import sys; from vireid_jax.ablation import __main__ as m\n"
        "m.main(['--list'])\n"
        "try: m.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'flax', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_the_environment_of_the_processes(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    words = {"--xla_force_host_platform_device_count=1", "--xla_cpu_multi_thread_eigen=false"}
    for backend, jobs, flags, fraction in (
        *(("cpu", 2, True, 0), ("cpu", 1, True, 0)),
        *(("gpu", 1, False, 0), ("gpu", 3, False, 0.3)),
    ):
        env = command.environment(backend, jobs)
        assert env["XLA_FLAGS"].startswith("--xla_dump_to=x"), backend
        assert (words <= set(env["XLA_FLAGS"].split())) is flags, (backend, jobs)
        assert float(env.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0)) == fraction, (backend, jobs)
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    with pytest.raises(ValueError, match="--jobs is 2; a TPU"):
        command.environment("tpu", 2)


TINY = (
    "train.epochs=1", "sampler.steps_per_epoch=2", "sampler.num_ids=4", "sampler.num_instances=2",
    "data.train_ids=8", "data.test_ids=8", "data.test_visible=2", "data.test_infrared=2",
    "data.image_size=(48,24)", "method.width=4", "eval.trials=2", "augment.pad=2",
    "optim.warmup_epochs=0.0", "eval.corrupt_repeats=2",
)  # fmt: skip


@pytest.mark.slow
def test_a_row_is_trained_and_scored_by_the_real_command(tmp_path, monkeypatch):
    """Table 5's row of SMCL: trained, scored plainly, then on corrupted images."""
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    words = [f"--config.{value}" for value in TINY]
    argv = ["mun/5", "--rows", "smcl", "--seeds", "3", "--folder", str(tmp_path), *words]
    assert command.main(argv) == 0
    line = read(tmp_path, "mun-5")["smcl", "mAP"]
    assert 0 < float(line["mean"]) <= 1
    assert (line["n"], line["seeds"], line["std"]) == ("1", "3", "")
    (folder,) = tmp_path.glob("cells/smcl_synthetic-*/seed3")
    assert json.loads((folder / "config.json").read_text())["seed"] == 3
    saved = [json.loads(path.read_text()) for path in folder.glob("eval/2/*.json")]
    assert {r.get("corrupt") for r in saved if r["feature"] == "bn"} == {None, "visible"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    assert command.main(argv) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before
