"""The record of a run: valid, readable by TensorBoard, and the same after a resume."""

import io
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from vireid_jax.runtime import printable
from vireid_jax.runtime.writer import METRICS, Progress, Writer, duration, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def untimed(folder):
    return [{k: v for k, v in row.items() if k != "time"} for row in lines(folder)]


def records(folder, rows, **options):
    """Writes (step, scalars[, split]) with a writer of their own."""
    writer = Writer(folder, tensorboard=False, **options)
    for step, scalars, *split in rows:
        writer.write(step, scalars, split=(split or ["train"])[0])
    writer.close()


def test_one_json_line_per_write(tmp_path):
    writer = Writer(tmp_path / "new" / "run", tensorboard=False)
    writer.write(1, {"loss": np.float32(0.5), "lr": 1e-3})
    # On disk at once: a killed run keeps what it wrote.
    assert untimed(tmp_path / "new/run") == [{"step": 1, "split": "train", "loss": 0.5, "lr": 1e-3}]
    writer.write(2, {"mAP": 0.25}, split="val")
    assert untimed(tmp_path / "new/run")[1] == {"step": 2, "split": "val", "mAP": 0.25}
    with pytest.raises(ValueError, match=r"\['step'\]"):
        writer.write(1, {"step": 3.0})
    writer.close()
    writer.close()


def test_values_that_json_has_no_number_for(tmp_path):
    records(tmp_path, [(1, {"a": float("nan"), "b": np.inf, "c": -np.inf, "d": 1e-30})])

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / METRICS).read_text()
    row = json.loads(text, parse_constant=refuse)
    assert (row["a"], row["b"], row["c"], row["d"]) == ("nan", "inf", "-inf", 1e-30)
    (back,) = read_metrics(tmp_path / METRICS)
    assert np.isnan(back["a"]) and back["b"] == np.inf and back["c"] == -np.inf
    assert back["step"] == 1 and back["split"] == "train"


def test_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path):
    def run(folder, first, last, resume_step):
        rows = []
        for step in range(first, last):
            rows.append((step, {"loss": 1 / step}))
            rows += [(step, {"mAP": step / 100}, "val")] * (step % 4 == 0)
        records(folder, rows, resume_step=resume_step)

    run(tmp_path / "whole", 1, 13, 0)
    run(tmp_path / "cut", 1, 8, 0)
    with (tmp_path / "cut" / METRICS).open("a") as f:
        f.write('{"step": 8, "split": "tr')  # killed in the middle of a line
    run(tmp_path / "cut", 5, 10, 4)  # the newest checkpoint was step 4
    run(tmp_path / "cut", 9, 13, 8)
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    run(tmp_path / "cut", 1, 13, 0)  # no checkpoint could be read: from the start
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    assert [p.name for p in (tmp_path / "cut").iterdir()] == [METRICS]


def test_what_is_computed_again_for_the_resumed_step_is_written_once(tmp_path):
    val = (4, {"mAP": 0.5}, "val")
    records(tmp_path, [(4, {"loss": 1.0}), val], resume_step=0)
    records(tmp_path, [val, (5, {"loss": 0.9})], resume_step=4)
    found = [(r["step"], r["split"]) for r in lines(tmp_path)]
    assert found == [(4, "train"), (4, "val"), (5, "train")]


def test_an_evaluation_adds_to_the_file(tmp_path):
    records(tmp_path, [(9, {"loss": 1.0})], resume_step=0)
    for _ in range(2):
        records(tmp_path, [(9, {"mAP": 0.5}, "test")])
    assert [r["split"] for r in lines(tmp_path)] == ["train", "test", "test"]


def test_read_metrics_tolerates_only_a_cut_last_line(tmp_path):
    path = tmp_path / METRICS
    path.write_text('{"step": 1, "split": "train", "loss": 1}\n{"step": 2, "spl')
    assert [r["step"] for r in read_metrics(path)] == [1]
    path.write_text('{"step": 1, "sp\n{"step": 2, "split": "train"}\n')
    with pytest.raises(ValueError, match="line 1 is not a record: Invalid control"):
        read_metrics(path)
    for line in (b"\xff\xfe", b"[]", b'{"step": 1, "loss": [2]}', b"[" * 200_000):
        path.write_bytes(line + b"\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is not a record"):
            read_metrics(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is no file"):
        read_metrics(path)


def test_unreadable_lines_are_dropped_with_a_warning(tmp_path, caplog):
    content = b'\0\xff\0\n{"step": 1, "split": "train", "loss": 1.0}\n[]\n{"step": 1e999}\n'
    (tmp_path / METRICS).write_bytes(content)
    Writer(tmp_path, tensorboard=False, resume_step=5).close()
    assert [r["step"] for r in lines(tmp_path)] == [1]
    assert caplog.text.count("cannot be read") == 3
    assert "the file as it was is " in caplog.text
    assert (tmp_path / f"{METRICS}.damaged").read_bytes() == content


def test_lines_that_are_gone_are_mentioned(tmp_path, caplog):
    row = '{{"step": {}, "split": "train", "loss": 1.0}}\n'
    rows = {4: [2, 4, 6], 5: [2, 4], 6: [2, 4], 8: [2, 4], 9: None}
    missing = {6: "5 to 6", 8: "5 to 8", 9: "1 to 9"}
    for step, there in rows.items():
        folder = tmp_path / str(step)
        folder.mkdir()
        if there is not None:
            (folder / METRICS).write_text("".join(row.format(n) for n in there))
        caplog.clear()
        Writer(folder, tensorboard=False, resume_step=step, every=2).close()
        said = f"has no lines of the steps {missing.get(step)}: they were deleted, or cut off"
        assert (said in caplog.text) == (step in missing), (step, caplog.text)
    caplog.clear()
    Writer(tmp_path / "new", tensorboard=False, resume_step=0, every=2).close()
    Writer(tmp_path / "off", tensorboard=False, resume_step=9, every=0).close()
    assert not caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own reader
def test_tensorboard_reads_the_event_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # its reader has a replacement
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = Writer(tmp_path, resume_step=0)
    for step in range(1, 8):
        writer.write(step, {"loss": step / 2})
    writer.write(7, {"sysu/all/single/mAP": 0.5}, split="val")
    writer.close()
    writer = Writer(tmp_path, resume_step=4)
    writer.write(5, {"loss": -5.0})
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "val/sysu/all/single/mAP"}
    found = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert found == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0), (5, -5.0)]
    assert events.Scalars("val/sysu/all/single/mAP") == [], "later than the step resumed from"


def test_event_files_without_tensorflow(tmp_path):
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from vireid_jax.runtime.writer import Writer\n"
        f"w = Writer({str(tmp_path)!r}); w.write(1, {{'loss': 2.0}}); w.close()\n"
        "assert not any(m.startswith(('tensorflow.', 'jax')) for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()


def test_an_event_file_on_a_full_disk_ends_the_run_and_hides_no_error(tmp_path, caplog):
    writer = Writer(tmp_path)
    writer.write(1, {"loss": 1.0})
    file = writer._events._writer._py_recordio_writer
    file.close()
    file._writer = full = open("/dev/full", "wb")
    writer._events._flushed = -math.inf
    with pytest.raises(OSError, match="No space left"):
        writer.write(2, {"loss": 1.0})
    writer.close()
    assert "the event file lacks its end: [Errno 28]" in caplog.text
    with pytest.raises(OSError):
        full.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_inactive_writer_touches_nothing(tmp_path):
    console = io.StringIO()
    writer = Writer(tmp_path / "run", console=console, active=False)
    writer.write(1, {"loss": 1.0})
    writer.progress(1, 2, {"loss": 1.0})
    writer.say("hello")
    writer.close()
    assert not (tmp_path / "run").exists() and console.getvalue() == ""


def progress(console, tmp_path, steps, total, seconds_per_step):
    now = [100.0]
    writer = Writer(tmp_path, tensorboard=False, console=console, clock=lambda: now[0])
    for step in steps:
        now[0] = 100.0 + (step - steps[0]) * seconds_per_step
        scalars = {"loss": 1.25 / step, "images_per_second": 3000.0, "id": 2.0, "norm": 3.0}
        writer.progress(step, total, scalars)
    return writer


def test_plain_progress_lines_and_eta(tmp_path):
    console = io.StringIO()
    progress(console, tmp_path, [10, 20, 100], 100, 30.0).close()
    assert console.getvalue().splitlines() == [
        "step  10/100  10%  loss 0.125  id 2  norm 3  3000 img/s",
        "step  20/100  20%  loss 0.0625  id 2  norm 3  3000 img/s  ETA 40:00",  # 80 steps of 30 s
        "step 100/100 100%  loss 0.0125  id 2  norm 3  3000 img/s",
    ]


def test_terminal_progress_is_one_line_rewritten(tmp_path, capsys):
    """Lines go to standard output; where that is the terminal, too, they stand by themselves."""
    console = Terminal()
    writer = progress(console, tmp_path, [1, 2, 3], 100, 1.0)
    writer.say("mAP 0.5")
    writer.progress(4, 100, {"loss": 1.0})
    writer.close()
    text = console.getvalue()
    assert text.count("\n") == 2  # before "mAP 0.5", and at the end
    shown, rest = text.rstrip("\n").split("\n")
    assert capsys.readouterr().out == "mAP 0.5\n"
    frames = [f for f in shown.split("\r") if f]
    assert len(frames) == 3 and len(rest.split("\r")) == 2
    # A shorter line covers the whole of the longer one before it.
    assert len(frames[2]) >= len(frames[1].rstrip())
    assert "  3/100   3%" in frames[2] and "ETA 1:37" in frames[2]


def test_what_does_not_fit_is_left_to_the_record(tmp_path):
    console = io.StringIO()
    writer = Writer(tmp_path, tensorboard=False, console=console)
    writer.progress(1, 10, {"images_per_second": 8.0} | {f"term_{i}": 1.0 for i in range(40)})
    writer.close()
    text = console.getvalue()
    assert 100 < len(text.rstrip("\n")) < 120 and text.endswith("  term_8 1  8 img/s\n")


def test_long_work_says_how_far_it_is():
    now, said = [0.0], []
    with Progress(said.append, "images embedded", 1000, clock=lambda: now[0]) as progress:
        for _ in range(10):
            now[0] += 10.0
            progress.add(100)
    assert said == [
        "200 of 1,000 images embedded, ETA 1:20",
        "400 of 1,000 images embedded, ETA 1:00",
        "600 of 1,000 images embedded, ETA 40 s",
        "800 of 1,000 images embedded, ETA 20 s",
        "1,000 images embedded in 1:40",
    ]
    with pytest.raises(OSError), Progress(said.append, "rows", 2) as progress:
        progress.add(1)
        raise OSError
    assert len(said) == 5, "what did not end is not said to have ended"


def test_durations():
    shown = ["0 s", "59 s", "1:00", "59:59", "1:02:03"]
    assert [duration(s) for s in (0, 59.4, 60, 3599, 3723)] == shown


def test_what_a_terminal_would_obey_is_shown():
    for text, shown in (
        ("mAP 71.5 ± 0.2, Müller, 人\n  next", "mAP 71.5 ± 0.2, Müller, 人\n  next"),
        ("\x1b[31mred\x07\r\t", r"\x1b[31mred\x07\r\t"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("\u202egpj.a", r"\u202egpj.a"),  # would be read from right to left
        ("\udcff", r"\udcff"),  # of a name that is no UTF-8, and cannot be printed
    ):
        assert printable(text) == shown
