"""Which cells a table consists of: where each lives, and the commands that train and score it.

A cell is one training: a configuration and a seed. Rows that are the same training, such as the
whole method in each of its tables, are one cell. The folder of a cell is named after a checksum
of every value that has a say in the parameters, so that other settings make other cells.
"""

import dataclasses
import pathlib
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vireid_jax.ablation import settings
from vireid_jax.command import ROOT

RECIPES = ROOT / "configs" / "tables.py"


class Score(NamedTuple):
    """What a table shows of a trained model."""

    protocol: str
    corrupt: str | None  # eval.corrupt
    feature: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training with the scores that tables want of it."""

    row: str  # TABLE/ROW, the first that wants it
    seed: int
    folder: pathlib.Path
    config: Mapping[str, Any]  # resolved, {"train.epochs": 25.0, ...}
    values: tuple[str, ...]  # --config.key=value
    source: str  # the value of --config
    protocols: tuple[str, ...]  # that it is scored under when it is trained; (): the recipe's
    scores: tuple[Score, ...]

    @property
    def name(self) -> str:
        """As the command reports it."""
        return f"{self.row}, seed {self.seed}"

    def train_command(self) -> list[str]:
        """Trains the cell, or resumes it, and scores the last state."""
        return self._command(self.protocols)

    def score_command(self, score: Score) -> list[str]:
        """Scores the trained cell under one more protocol, or on corrupted images."""
        command = [*self._command((score.protocol,)), "--mode=eval"]
        if score.corrupt is not None:
            # Work at test time that is asked for clean rows has no corrupted counterpart.
            command += [f"--config.eval.corrupt={score.corrupt}"]
            command += ["--config.eval.flip=False", "--config.eval.rerank=none"]
        return command

    def _command(self, protocols: tuple[str, ...]) -> list[str]:
        command = [sys.executable, "-m", "vireid_jax.main", f"--config={self.source}"]
        command += [f"--workdir={self.folder}", *self.values]
        # Once: a second value of a tuple would be added to the first.
        return command + [f"--config.eval.protocols={protocols!r}"] * bool(protocols)


@dataclasses.dataclass(frozen=True)
class PlannedRow:
    """A row of a table with a cell for each seed."""

    label: str
    paper: Mapping[str, tuple[float, float]]
    score: Score
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class PlannedTable:
    """A table with its rows in the paper's order."""

    name: str
    title: str
    dataset: str
    corrupt: str | None
    protocol: str
    rows: Mapping[str, PlannedRow]
    feature: str | None = None  # of all rows; None: the headline of each row's method
    other: tuple[str, ...] = ()  # protocol and feature, those that are not the table's own
    trial: int | None = None  # RegDB's split
    left_out: tuple[str, ...] = ()  # labels of rows that do not take the settings


def load_tables() -> dict[str, Any]:
    """The TABLES of configs/tables.py.

    Raises:
      FileNotFoundError: the package is installed without its clone.
    """
    if not RECIPES.exists():
        raise FileNotFoundError(f"no tables: {RECIPES} not found; run this in a clone")
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # recipes import each other wherever they are run from
    return runpy.run_path(str(RECIPES))["TABLES"]


def choose(names: Sequence[str], tables: Mapping[str, Any]) -> list[str]:
    """Table names as they are given: "mun/1", or "mun" for all of them.

    Raises:
      ValueError: one is not there.
    """
    chosen: list[str] = []
    for name in names:
        found = [t for t in tables if name in (t, t.split("/")[0])]
        if not found:
            methods = dict.fromkeys(t.split("/")[0] for t in tables)
            raise ValueError(f"no table {name!r}; expected of {', '.join([*tables, *methods])}")
        chosen += found
    return list(dict.fromkeys(chosen))


def row_command(table: str, row: str, dataset: str) -> str:
    """The main command of a row, as it is typed."""
    data = "" if dataset == "synthetic" else f":{dataset}"
    return f"python -m vireid_jax.main --config configs/tables.py:{table}/{row}{data}"


def plan(
    names: Sequence[str],
    *,
    tables: Mapping[str, Any],
    dataset: str,
    seeds: Sequence[int],
    folder: pathlib.Path,
    changes: Sequence[str] = (),
    protocol: str | None = None,
    feature: str | None = None,
    rows: Sequence[str] | None = None,
) -> list[PlannedTable]:
    """Resolves the rows of the named tables with every seed.

    Args:
      names: keys of `tables`.
      tables: from `load_tables`.
      dataset: of the recipes.
      seeds: one cell each.
      folder: cells are in folder/cells.
      changes: --config.key=value, for all rows; before them on the embedded data,
        `settings.EMBEDDED`.
      protocol: what the tables show; None for each table's own.
      feature: of the model; None for the headline of each row's method.
      rows: those that must take the changes, the others are left out if they do not; None for all.

    Raises:
      ValueError: a change that is this command's own, or that the recipes refuse; a training
        that ends before what its row is about begins; a protocol of another data set, or a
        feature that a model does not give.
    """
    values = settings.values(dataset, changes)
    planned = []
    for name in names:
        table, planned_rows, left_out = tables[name], {}, []
        headlines = set()
        own, shown, trial = "", "", None
        settings.check_differences(name, table, changes)
        for row, spec in table.rows.items():
            source = f"{RECIPES}:{name}/{row}:{dataset}"
            try:
                config = settings.resolve(source, values)
                own = table.protocols.get(dataset) or config["eval.protocols"][0]
                shown = protocol or own
                settings.check_score(source, config, protocol=shown, feature=feature)
                settings.check_lengths(source, config)
            except ValueError:
                if rows is None or row in rows:
                    raise
                left_out.append(spec.label)
                continue
            headlines.add(headline := settings.features(config)[0])
            score = Score(shown, table.corrupt, feature or headline)
            cells = []
            for seed in seeds:
                full = {**config, "seed": seed}
                named = f"{config['method.name']}_{dataset}-{settings.checksum(full)}"
                cells.append(
                    Cell(
                        row=f"{name}/{row}",
                        seed=seed,
                        folder=folder / "cells" / named / f"seed{seed}",
                        config=full,
                        values=(*values, f"--config.seed={seed}"),
                        source=source,
                        protocols=(shown,) if dataset == "synthetic" else (),
                        scores=(score,),
                    )
                )
            planned_rows[row] = PlannedRow(spec.label, spec.paper, score, tuple(cells))
            trial = config.get("data.trial")
        if not planned_rows:
            continue
        # A feature that is the headline of all rows is the table's own.
        asked = [feature] if feature and headlines != {feature} else []
        other = [shown] * (shown != own) + asked
        planned.append(
            PlannedTable(
                name,
                table.title,
                dataset,
                table.corrupt,
                shown,
                planned_rows,
                feature,
                tuple(other),
                trial,
                tuple(left_out),
            )
        )
    return planned


def cells_of(tables: Sequence[PlannedTable], rows: Sequence[str] | None = None) -> list[Cell]:
    """Every cell once, with all scores that are wanted of it; seed by seed, all rows of each.

    Args:
      tables: from `plan`.
      rows: leave other rows out; None for all.

    Raises:
      ValueError: a row that no table has.
    """
    known = {row for table in tables for row in table.rows}
    if unknown := sorted(set(rows or ()) - known):
        raise ValueError(f"no row {', '.join(unknown)}; expected of {', '.join(sorted(known))}")
    found: dict[pathlib.Path, Cell] = {}
    for table in tables:
        for name, row in table.rows.items():
            if rows and name not in rows:
                continue
            for cell in row.cells:
                first = found.setdefault(cell.folder, cell)
                scores = tuple(dict.fromkeys((*first.scores, *cell.scores)))
                found[cell.folder] = dataclasses.replace(first, scores=scores)
    return sorted(found.values(), key=lambda cell: cell.seed)  # stable
