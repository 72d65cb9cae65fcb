"""Tables of ablations as Markdown and CSV: means, spread over seeds, differences of rows."""

import contextlib
import csv
import io
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from vireid_jax.ablation import difference
from vireid_jax.ablation.cells import Row, Table
from vireid_jax.ablation.difference import Difference
from vireid_jax.runtime.files import write_whole

COLUMNS = ("R1", "R10", "mAP", "mINP")
PAPER = {"sysu": "SYSU-MM01", "regdb": "RegDB"}
CSV_HEADER = (
    "table", "row", "label", "dataset", "protocol", "corrupt", "feature", "metric", "mean", "std",
    "n", "seeds", "folder", "beside", "difference", "low", "high", "verdict",
)  # fmt: skip
MISSING = "-"


def summarize(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (over their number less one; None of a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def measured(row: Row) -> dict[int, dict[str, float]]:
    """{seed: metrics} of the cells that are done; others, and unclear results, are left out."""
    found = {}
    for cell in row.cells:
        with contextlib.suppress(ValueError):  # reported where cells are run
            if (metrics := cell.metrics(row.score)) is not None:
                found[cell.seed] = metrics
    return found


def compared(table: Table) -> dict[str, Difference]:
    """{row: the difference of its mAP to the row that it is compared with}, where there is one."""
    pairs = {name: row.beside for name, row in table.rows.items() if row.beside in table.rows}
    scores = {name: _scores(table.rows[name]) for name in {*pairs, *pairs.values()} if name}
    found = {name: difference.between(scores[name], scores[b]) for name, b in pairs.items() if b}
    return {name: gap for name, gap in found.items() if gap is not None}


def _scores(row: Row) -> dict[int, difference.Scores]:
    """{seed: scores of the queries} of the cells that are done."""
    of_seeds: dict[int, difference.Scores] = {}
    for cell in row.cells:
        with contextlib.suppress(ValueError):  # reported where cells are run
            if (found := cell.found(row.score)) is not None:
                of_seeds[cell.seed] = difference.read(found[0], found[0].stat().st_mtime_ns)
    return of_seeds


def _compared(table: Table, row: Row, gap: Difference | None) -> list[str]:
    """Three columns: the row beside it, the difference, what it says."""
    if row.beside is None or row.beside not in table.rows:
        return ["", "", ""]
    beside = table.rows[row.beside].label
    if gap is None:
        return [beside, MISSING, MISSING]
    mean, low, high = (f"{100 * x:+.1f}" for x in gap)
    verdict = gap.verdict
    if not gap.seen:
        verdict += f" (smallest: {100 * gap.smallest:.1f})"  # of one that could have been
    return [beside, f"{mean} [{low}, {high}]", verdict]


def to_markdown(table: Table) -> str:
    """The table in percent, each row beside what its paper prints and compared with another row.

    A row without any result shows dashes; of a row that lacks some, the column "seeds" says of
    which the mean is.
    """
    shown = "regdb" if table.dataset == "regdb" else "sysu"
    paper = PAPER[shown] + "-C" * bool(table.corrupt)
    differences = compared(table)
    beside = any(row.beside in table.rows for row in table.rows.values())
    with_another = ["compared with", "difference of mAP", "seen"] * beside
    head = [*COLUMNS, "seeds", *with_another, "paper: R1", "mAP"]
    rule = ["---:"] * (len(COLUMNS) + 1) + ["---"] * 3 * beside + ["---:"] * 2
    lines = [f"| | {' | '.join(head)} |", f"|---|{'|'.join(rule)}|"]
    for name, row in table.rows.items():
        found = measured(row)
        texts = []
        for metric in COLUMNS:
            values = [metrics[metric] for metrics in found.values() if metric in metrics]
            mean, std = summarize(values) if values else (None, None)
            spread = "" if std is None else f" ± {100 * std:.1f}"
            texts.append(MISSING if mean is None else f"{100 * mean:.1f}{spread}")
        asked = {cell.seed for cell in row.cells}
        which = f" of {len(asked)}: {_list(found)}" if 0 < len(found) < len(asked) else ""
        texts.append(f"{len(found)}{which}")
        if beside:
            texts += _compared(table, row, differences.get(name))
        printed = None if table.other else row.paper.get(shown)
        texts += [f"{n:.2f}" for n in printed] if printed else [MISSING] * 2
        lines.append(f"| {row.label} | {' | '.join(texts)} |")
    corrupted = f", {table.corrupt} images corrupted by code of ours" if table.corrupt else ""
    lengths = dict.fromkeys(r.cells[0].config["train.epochs"] for r in table.rows.values())
    epochs = " and ".join(f"{length:g}" for length in lengths)
    split = "" if table.trial is None else f" (split {table.trial})"
    feature = f", feature `{table.feature}`" if table.feature in table.other else ""
    origin = (
        "The paper's table shows other scores than these."
        if table.other
        else f"The last two columns are the paper's own, measured by its authors on {paper}."
    )
    note = (
        "The difference of mAP to the row that a row is compared with has its 95 % interval over "
        "test people and seeds; where none is seen, the smallest that could have been. "
    )
    absent = f" Not with these settings: {', '.join(table.left_out)}." if table.left_out else ""
    return "\n".join(
        [
            f"{table.name}, {table.title}: {table.dataset}{split}, {epochs} epochs, "
            f"`{table.protocol}`{feature}{corrupted}, in percent, mean ± sample standard "
            f"deviation over the seeds. {note * beside}{origin}{absent}",
            "",
            *lines,
        ]
    )


def to_csv(table: Table) -> str:
    """One line for each row and metric, as fractions; empty where there is no result."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    differences = compared(table)
    for name, row in table.rows.items():
        found, gap = measured(row), differences.get(name)
        for metric in next(iter(found.values()), dict.fromkeys(COLUMNS)):
            values = {s: m[metric] for s, m in found.items() if metric in m}
            mean, std = summarize(list(values.values())) if values else (None, None)
            numbers = ["" if value is None else f"{value:.6f}" for value in (mean, std)]
            which = [table.name, name, row.label, table.dataset, *row.score, metric]
            folder = row.cells[0].folder.parent.name
            of_map = gap if metric == "mAP" else None
            shown = [""] * 5
            if of_map:
                shown = [row.beside or "", *(f"{x:.6f}" for x in of_map), of_map.verdict]
            writer.writerow([*which, *numbers, len(values), _list(values), folder, *shown])
    return out.getvalue()


def file_name(table: Table) -> str:
    """Without its ending: smcl-1, smcl-1_sysu, smcl-1_regdb_trial1, smcl-1_sysu-all-multi_pool."""
    data = [] if table.dataset == "synthetic" else [table.dataset]
    trial = [] if table.trial is None else [f"trial{table.trial}"]
    return "_".join([table.name, *data, *trial, *table.other]).replace("/", "-")


def write(tables: Sequence[Table], folder: pathlib.Path, command: str) -> None:
    """Writes FOLDER/<table>.md and .csv of every table; `command` is how they were made."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        name = file_name(table)
        write_whole(folder / f"{name}.md", _body(table, command))
        write_whole(folder / f"{name}.csv", to_csv(table))


def fill(page: pathlib.Path, tables: Sequence[Table], command: str) -> list[str]:
    """Puts tables into a page, each between `<!-- table: NAME -->` and `<!-- end -->`.

    Returns the names of the tables that the page has no place for.
    """
    text, homeless = page.read_text(), []
    for table in tables:
        start, end = f"<!-- table: {file_name(table)} -->\n", "<!-- end -->"
        before, found, after = text.partition(start)
        _, closed, rest = after.partition(end)
        if found and closed:
            text = f"{before}{start}{_body(table, command)}{end}{rest}"
        else:
            homeless.append(file_name(table))
    write_whole(page, text)
    return homeless


def _body(table: Table, command: str) -> str:
    return f"{to_markdown(table)}\n\nMade by `{command}`.\n"


def _list(seeds: Iterable[int]) -> str:
    return " ".join(map(str, seeds))
