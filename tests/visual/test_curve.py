"""The training curve: what is drawn, what is refused, and the command line."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.support.rows import each
from vireid_jax.runtime.writer import METRICS
from vireid_jax.visual import curve

pytest.importorskip("matplotlib")

from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    """Matplotlib's font list goes to a folder of the tests."""
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.getbasetemp() / "matplotlib"))


def line(step, split="train", **scalars):
    return {"step": step, "split": split, "time": 0.0, **scalars}


TRAIN = [line(s, loss=9 - s / 10, id_visible=4 - s / 20, id_infrared=3.0) for s in (10, 20, 30)]
VAL = [line(s, "val", mAP=s / 100, R1=0.5, chance_mAP=0.08) for s in (15, 30)]


def run_folder(folder, lines):
    folder.mkdir()
    (folder / METRICS).write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return folder


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, to look at."""
    from matplotlib.figure import Figure

    saved, savefig = [], Figure.savefig

    def save(figure, *arguments, **options):
        saved.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def curves(axes):
    """Label -> points of the lines that the legend names."""
    named = [c for c in axes.get_lines() if not c.get_label().startswith("_")]
    return {c.get_label(): list(zip(*map(list, c.get_data()), strict=True)) for c in named}


def test_shows_the_losses_of_the_first_run_and_the_scores_of_all(tmp_path, figures):
    other = [line(10, id_visible=1.0), line(10, "val", mAP=0.2, chance_mAP=0.5)]
    runs = [run_folder(tmp_path / "a", TRAIN + VAL), run_folder(tmp_path / "b", other)]
    curve.draw(runs, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG" and picture.size == (1350, 480)  # 9 x 3.2 inches at 150
        assert len(picture.convert("RGB").getcolors(2**24)) > 20  # not blank
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "curve.png"]
    ((left, right),) = [figure.axes for figure in figures]
    losses = curves(left)
    assert set(losses) == {"id_visible", "id_infrared"}  # and not the total
    assert [step for step, _ in losses["id_visible"]] == [10, 20, 30]
    assert [value for _, value in losses["id_infrared"]] == [3.0] * 3
    scores = curves(right)
    assert scores["a"] == [(15, pytest.approx(15.0)), (30, pytest.approx(30.0))]
    assert scores["b"] == [(10, pytest.approx(20.0))]
    assert {y for _, y in scores["chance 8.0"]} == {8.0}
    assert right.get_ylim()[0] == 0


def test_no_validation_and_a_loss_that_is_not_finite(tmp_path, figures):
    """Not a warning about an empty legend either: warnings are errors here."""
    lines = [*TRAIN, line(40, loss="nan", id_visible="nan", id_infrared=2.0)]
    curve.draw([run_folder(tmp_path / "run", lines)], tmp_path / "curve.png")
    assert curves(figures[0].axes[0])["id_infrared"][-1][0] == 40
    assert curves(figures[0].axes[1]) == {}


def test_more_runs_than_colors_are_all_drawn(tmp_path, figures):
    runs = [run_folder(tmp_path / f"run{n}", TRAIN + VAL) for n in range(len(curve.COLORS) + 2)]
    curve.draw(runs, tmp_path / "curve.png")
    assert {run.name for run in runs} <= set(curves(figures[0].axes[1]))


def test_smoothing_is_a_running_mean_that_shrinks_at_the_ends():
    values = [float(x * x % 7) for x in range(20)]
    near = [[values[j] for j in range(20) if abs(i - j) <= 2] for i in range(20)]
    expected = [sum(window) / len(window) for window in near]
    assert curve._smooth(values, half=2) == pytest.approx(expected)
    assert curve._smooth([5.0]) == [5.0] and curve._smooth([]) == []


def test_folders_without_metrics_or_training_are_refused(tmp_path):
    good = run_folder(tmp_path / "run", TRAIN)
    with pytest.raises(FileNotFoundError, match=r"none/metrics.jsonl not found: .*none is not the"):
        curve.draw([good, tmp_path / "none"], tmp_path / "curve.png")
    for name, lines in (("empty", []), ("no training", VAL)):
        run = run_folder(tmp_path / name, lines)
        with pytest.raises(ValueError, match=r"metrics.jsonl has no training record yet"):
            curve.draw([run], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


# The command line -------------------------------------------------------------------------


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["curve", *map(str, arguments)])
    return curve.main()


def test_the_command_writes_and_says_so(tmp_path, monkeypatch, capsys):
    run = run_folder(tmp_path / "run", TRAIN + VAL)
    assert main(monkeypatch, run, run, "--out", tmp_path / "c.svg") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'c.svg'}\n"
    assert "<svg" in (tmp_path / "c.svg").read_text()
    with pytest.raises(SystemExit) as stop:
        main(monkeypatch)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


@each(
    ("run", "out", "message"),
    [
        ("run", "c.xyz", "xyz"),
        ("run", "missing/c.png", "missing"),
        ("none", "c.png", "is not the folder of a run"),
    ],
)
def test_errors_are_one_line_and_exit_with_1(tmp_path, monkeypatch, capsys, run, out, message):
    if not (tmp_path / "run").exists():
        run_folder(tmp_path / "run", TRAIN + VAL)
    assert main(monkeypatch, tmp_path / run, "--out", tmp_path / out) == 1
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.count("\n") == 1
    assert streams.err.startswith("error: ") and message in streams.err


def test_without_matplotlib_the_command_says_what_to_install(tmp_path):
    run = run_folder(tmp_path / "run", TRAIN)
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from vireid_jax.visual import curve\n"
        "sys.exit(curve.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, run], capture_output=True, text=True, timeout=60,
        cwd=pathlib.Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install 'vireid_jax[viz]'" in done.stderr
