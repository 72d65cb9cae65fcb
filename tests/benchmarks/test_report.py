"""The frame of all benchmarks: other work is seen, tables are whole, files can be read again."""

import argparse
import json
import pathlib
import re

import pytest

from benchmarks import __main__ as family
from benchmarks import devices, report, step
from benchmarks.report import Counted

ROOT = pathlib.Path(report.__file__).parents[1]

STAT = """cpu  300 0 60 700 40 0 0 20 0 0
cpu0 100 0 20 300 10 0 0 10 0 0
cpu1 200 0 40 400 30 0 0 10 5 0
intr 5
"""


def parsed(*words, rounds=None):
    parser = argparse.ArgumentParser()
    report.options(parser, rounds=rounds)
    return parser.parse_args(words)


@pytest.fixture
def quiet(monkeypatch):
    """A machine of two cores on which only we work; returns the counts that follow."""
    counts = [Counted(10.0, 100.0, 5.0)]
    monkeypatch.setattr(report, "counted", lambda: counts.pop(0) if counts[1:] else counts[0])
    monkeypatch.setattr(report, "SAMPLE_S", 0.0)
    monkeypatch.setattr(report, "cores", lambda: [0, 1])
    return counts


def test_other_work_is_the_busy_time_of_our_cores_without_our_own():
    second = report.os.sysconf("SC_CLK_TCK")
    busy, total = report.times_of(STAT, [1])
    # user, system and what a host took; idle and waiting are not busy; guests are within user.
    assert (busy * second, total * second) == (250, 680)
    assert report.times_of(STAT, [0, 1])[0] * second == 380
    before = Counted(10.0, 100.0, 5.0)
    assert report.others(before, Counted(12.0, 102.0, 6.0)) == 0.5
    assert report.others(before, Counted(12.0, 102.0, 7.5)) == 0  # ticks are coarse
    assert report.others(before, before) == 0


def test_a_busy_machine_is_refused(quiet, tmp_path):
    quiet[:] = [Counted(0.0, 0.0, 0.0), Counted(1.0, 2.0, 0.0)]
    with pytest.raises(SystemExit) as end:
        report.Run("loader", parsed("--out", str(tmp_path)))
    said = str(end.value)
    assert "took 50 % of the time of 2 cores, expected at most 15 %" in said and "--busy-ok" in said


def test_busy_ok_runs_and_says_so_first(quiet, tmp_path, capsys):
    quiet[:] = [Counted(0.0, 0.0, 0.0), Counted(1.0, 2.0, 0.0)]
    run = report.Run("loader", parsed("--busy-ok", "--out", str(tmp_path)))
    run.save({"x": 1}, lambda found: f"x is {found['x']}")
    text = (tmp_path / "loader.md").read_text()
    assert text.startswith("**Not to be quoted. The machine was busy: other processes took 50 %")
    assert "\n\nx is 1\n" in text and text in capsys.readouterr().out + "\n"


def test_work_that_others_did_in_between_is_seen(quiet, tmp_path):
    run = report.Run("loader", parsed("--out", str(tmp_path)))
    quiet[:] = [Counted(14.0, 110.0, 8.0)]  # 4 s busy of 10, 3 of them ours
    assert run.report({})["busy"] is None
    quiet[:] = [Counted(14.0, 110.0, 6.0)]
    assert "took 30 % of the time of 2 cores" in run.report({})["busy"]


def test_the_files_say_what_was_measured_and_where(quiet, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["benchmarks.step", "--out", "here", "--method", "agw", "--out=there"]
    )
    run = report.Run("step", parsed("--out", str(tmp_path / "new")))
    run.save({"rows": [1, 2]}, lambda found: f"{len(found['rows'])} rows", name="step_agw")
    found = json.loads((tmp_path / "new" / "step_agw.json").read_text())
    assert found["rows"] == [1, 2] and found["benchmark"] == "step" and found["busy"] is None
    assert found["command"] == "python -m benchmarks.step --method agw"
    assert {"cpu", "cores", "load", "jax", "kernel", "libc", "huge_pages"} <= set(found["machine"])
    text = (tmp_path / "new" / "step_agw.md").read_text()
    assert text.startswith("2 rows\n\n`python -m benchmarks.step --method agw`, ")
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"step_agw.json", "step_agw.md"}


def test_huge_pages_are_seen(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert not report.machine()["huge_pages"]
    for name, value in report.HUGE_PAGES.items():
        monkeypatch.setenv(name, value)
    assert report.machine("a device")["huge_pages"]


def test_candidates_take_turns():
    calls = []
    found = report.in_turn("ab", lambda c: calls.append(c) or len(calls), 2)
    assert calls == ["a", "b", "a", "b"] and found == {"a": [1, 3], "b": [2, 4]}


def test_tables_have_whole_rows():
    text = report.table(["what", "how", "s"], [["a", "b", 1.5]], left=2)
    assert text == "| what | how | s |\n| --- | --- | ---: |\n| a | b | 1.5 |"
    with pytest.raises(ValueError, match=r"3 columns .* but a row is \['a'\]"):
        report.table(["what", "how", "s"], [["a"]])


def test_rounds_are_one_or_more(capsys):
    assert parsed("--rounds", "2", rounds=1).rounds == 2
    with pytest.raises(SystemExit):
        parsed("--rounds", "0", rounds=1)
    assert "0, expected 1 or more" in capsys.readouterr().err


def test_a_size_without_memory_for_it_is_said_so(monkeypatch):
    def killed(*_, **__):
        raise report.Killed("benchmarks.step was killed, perhaps out of memory")

    monkeypatch.setattr(step, "run_candidate", killed)
    found = step.compare("smcl", "paper", ["jax"], [0], 1, None)
    text = step.markdown({"method": "smcl", "tables": [found]})
    assert text == (
        "SMCL, `paper`, one core and thread: not measured. benchmarks.step was killed, perhaps out "
        "of memory. Give fewer identities: --ids 2 or more."
    )


def test_pytorch_has_no_huge_pages_unless_asked(monkeypatch):
    monkeypatch.setattr(report, "in_process", lambda *_, env, on: (env, on))
    for name in step.CANDIDATES:
        env, on = step.run_candidate(name, [], [0, 1])
        ours = name.startswith("jax") or name.endswith("hugepages")
        assert env["GLIBC_TUNABLES"] == ("glibc.malloc.hugetlb=1" if ours else "")
        assert env["OMP_NUM_THREADS"] == "2" and on == [0, 1]


def test_a_process_that_fails_says_what_it_wrote():
    with pytest.raises(RuntimeError, match=r"no_such_module failed:\n(.|\n)*No module named"):
        report.in_process("no_such_module", [])


def test_a_process_that_was_killed_is_told_apart(monkeypatch):
    ended = report.subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(report.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(report.Killed, match=r"^json\.tool x was killed, perhaps out of memory$"):
        report.in_process("json.tool", ["x"])


# --- The family -------------------------------------------------------------------------


def test_every_benchmark_is_listed():
    files = (ROOT / "benchmarks").glob("*.py")
    programs = {p.stem for p in files if re.search(r"^def main\(", p.read_text(), re.M)}
    programs |= {p.parent.name for p in (ROOT / "benchmarks").glob("*/__main__.py")}
    assert programs - {"__main__"} == set(family.BENCHMARKS)
    text = family.listing()
    assert "loader     How fast are images loaded?" in text and "Needs PyTorch" in text


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "lodaer"])
    with pytest.raises(SystemExit):
        family.main()
    assert "invalid choice: 'lodaer' (choose from " in capsys.readouterr().err


def test_a_benchmark_is_run_with_its_arguments(monkeypatch):
    called = []
    monkeypatch.setattr("sys.argv", ["benchmarks", "loader", "--quick", "--rounds=2"])
    run = lambda module, **_: called.append([module, *family.sys.argv[1:]])  # noqa: E731
    monkeypatch.setattr(family.runpy, "run_module", run)
    family.main()
    assert called == [["benchmarks.loader", "--quick", "--rounds=2"]]


def test_without_a_name_there_is_a_list(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    family.main()
    assert capsys.readouterr().out == family.listing() + "\n"


def test_a_page_is_filled_from_results(quiet, tmp_path):
    report.Run("devices", parsed("--out", str(tmp_path))).save(DEVICES, devices.markdown)
    page = "# Speed\n\n<!-- results: devices -->\nold\n<!-- end -->\n\nMore.\n"
    filled = family.fill(page, tmp_path)
    assert "| 1 | 0.310 |" in filled and "old" not in filled
    assert filled.startswith("# Speed\n\n<!-- results") and filled.endswith("-->\n\nMore.\n")
    assert family.fill(filled, tmp_path) == filled
    with pytest.raises(FileNotFoundError, match=r"'loader', but there is no loader\.json"):
        family.fill(page.replace("devices", "loader"), tmp_path)


def test_the_pages_are_what_the_results_make():
    """Otherwise: python -m benchmarks docs."""
    shown = set()
    for path in (ROOT / "docs").glob("*.md"):
        text = path.read_text()
        assert family.fill(text, family.RESULTS) == text, path.name
        names = [match[2] for match in family.BLOCK.finditer(text)]
        assert len(names) == text.count("<!-- results: "), path.name
        shown |= set(names)
    assert {p.stem for p in family.RESULTS.glob("*.json")} <= shown


# --- Tables of steps --------------------------------------------------------------------

DEVICES = {
    "method": "smcl",
    "batch": 32,
    "cores": 2,
    "used": 2,
    "rows": [
        {"devices": 1, "step_s": [0.30, 0.31, 0.33], "cpu_s": [0.5, 0.5, 0.5]},
        {"devices": 2, "step_s": [0.25, 0.25, 0.25], "cpu_s": [0.6, 0.6, 0.6]},
    ],
}


def test_devices_are_chosen_by_every_round():
    assert devices.choices(32, 5) == [1, 2, 4] and devices.choices(9, 2) == [1]
    assert devices.verdict(DEVICES) == (
        "The program uses 2 devices here. One device took more time (ratio 1.24, 1.20 to 1.32 over "
        "3 rounds): keep it."
    )
    slower = {**DEVICES, "used": 1}
    assert "2 devices took less time" in devices.verdict(slower)
    assert "not the faster choice" in devices.verdict(slower)
    one, two = DEVICES["rows"]
    mixed = {**DEVICES, "rows": [{**one, "step_s": [0.24, 0.31, 0.33]}, two]}
    assert "There is no difference to one device (ratio 1.24, 0.96" in devices.verdict(mixed)
    short = [{**r, "step_s": r["step_s"][:1]} for r in (one, two)]
    assert "use --rounds 3" in devices.verdict({**DEVICES, "rows": short})
    assert devices.verdict({**DEVICES, "rows": [two]}).endswith("nothing else divides the batch.")
    assert "| 2, the program's | 0.250 | 0.600 | 1.00 | 1.00 | 1.00 |" in devices.markdown(DEVICES)


def row(candidate, seconds, loss, **more):
    return {
        "candidate": candidate,
        "device": "cpu",
        "first_loss": loss,
        "step_s": [seconds, 3 * seconds],
        "cpu_s": [seconds, seconds],
        "rss_mb": 50 * seconds,
        "peak_rss_mb": 100 * seconds,
        **more,
    }


def test_the_step_table_refuses_other_models_and_shows_ratios():
    rows = [
        step.merge([row("jax", 1.0, 7.0, xla_temp_mb=5, compile_s=2.0)]),
        step.merge([row(step.BESIDE, 4.0, 7.001), row(step.BESIDE, 2.0, 7.001)]),
    ]
    assert rows[1]["median_s"] == 5.0 and rows[1]["min_s"] == 2.0
    assert rows[1]["peak_rss_mb"] == 200 and rows[1]["rss_mb"] == 100
    step.check_same_model(rows, "main")
    for other in (7.1, float("nan")):
        with pytest.raises(RuntimeError, match="not the same model"):
            step.check_same_model([rows[0], {**rows[1], "first_loss": other}], "main")
    s = {"image_size": (8, 4), "num_ids": 3, "num_instances": 2}
    s["method"] = {"depth": 10, "width": 8}
    table = {"size": "main", "threads": 1, "images": 12, "settings": s, "rows": rows}
    text = step.markdown({"method": "agw", "tables": [table]})
    assert text.startswith("AGW, `main`, one core and thread: ResNet-10 of width 8, 12 images")
    assert "First loss 7.0000 in all; compiled in 2.0 s." in text
    assert "| vireid_jax | 2.000 | 1.000 | 1.000 | 6.0 | 50 | 100 | 5 |" in text
    ours = "| vireid_jax / PyTorch, channels last | 0.40 | 0.50 | 0.33 |  | 0.50 | 0.50 |  |"
    assert ours in text
    assert "vireid_jax /" not in step.table(rows[:1], 12)


def test_a_generator_alone_is_rematerialized():
    assert step.compared("mun") == list(step.CANDIDATES)[:4]
    assert "jax_remat" not in step.compared("agw")
