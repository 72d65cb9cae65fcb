"""Which cells a table consists of: where each lives, and the commands that train and score it.

A cell is one training: a configuration and a seed. Rows that are the same training, such as the
whole method in each of its tables, are one cell. The folder of a cell is named after a checksum
of every value that has a say in the parameters, so that other settings make other cells.
"""

import dataclasses
import hashlib
import json
import pathlib
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from vireid_jax.main import ROOT, _quoted

RECIPES = ROOT / "configs" / "ablation.py"

# On the embedded data: shorter than the recipe, and nothing but what the tables show is scored.
EMBEDDED: dict[str, Any] = {
    "train.epochs": 15.0,
    "method.width": 16,
    "train.eval_every": 0.0,
    "train.checkpoint_every": 0.0,  # at the end, and when it is stopped
    "train.tensorboard": False,
    "data.val_ids": 0,
    "eval.baselines": False,
}
# What the command decides, and by which of its own options.
OWN_KEYS = {
    "seed": "--seeds",
    "data.name": "--dataset",
    "eval.protocols": "--protocol",
    "eval.corrupt": "a table of corrupted images",
    "run_name": "--folder",
    "allow_changes": "--folder",
}


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


def load_tables() -> dict[str, Any]:
    """The TABLES of configs/ablation.py.

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
    return f"python -m vireid_jax.main --config configs/ablation.py:{table}/{row}{data}"


def plan(
    names: Sequence[str],
    *,
    tables: Mapping[str, Any],
    dataset: str,
    seeds: Sequence[int],
    folder: pathlib.Path,
    changes: Sequence[str] = (),
    protocol: str | None = None,
    feature: str = "bn",
) -> list[PlannedTable]:
    """Resolves every row of the named tables with every seed.

    Args:
      names: keys of `tables`.
      tables: from `load_tables`.
      dataset: of the recipes.
      seeds: one cell each.
      folder: cells are in folder/cells.
      changes: --config.key=value, for all rows; before them on the embedded data, `EMBEDDED`.
      protocol: what the tables show; None for each table's own.
      feature: of the model, likewise.

    Raises:
      ValueError: a change that is this command's own, or that the recipes refuse; an unknown
        protocol.
    """
    from vireid_jax.metrics import get_protocol

    if protocol is not None:
        get_protocol(protocol)
    values = _values(dataset, changes)
    planned = []
    for name in names:
        table, rows = tables[name], {}
        _check_differences(name, table, changes)
        for row, spec in table.rows.items():
            source = f"{RECIPES}:{name}/{row}:{dataset}"
            config = resolve(source, values)
            shown = protocol or table.protocols.get(dataset) or config["eval.protocols"][0]
            score = Score(shown, table.corrupt, feature)
            cells = []
            for seed in seeds:
                full = {**config, "seed": seed}
                named = f"{config['method.name']}_{dataset}-{checksum(full)}"
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
            rows[row] = PlannedRow(spec.label, spec.paper, score, tuple(cells))
        planned.append(
            PlannedTable(name, table.title, dataset, table.corrupt, score.protocol, rows)
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


def resolve(source: str, values: Sequence[str]) -> dict[str, Any]:
    """The flat config that the main command gets from --config=`source` and `values`.

    Raises:
      ValueError: as that command would refuse them.
    """
    own = flags.FlagValues()
    argv = ["ablation", f"--config={source}", *map(_quoted, values)]
    config_flags.DEFINE_config_file(
        "config", None, flag_values=own, lock_config=True, sys_argv=argv
    )
    try:
        rest = own(argv)
        config: Any = own["config"].value
        flat = _flat(config.to_dict())  # a recipe is read at its first use
    except flags.Error as error:
        # A recipe that raises arrives with its traceback; its last line is the message.
        text = str(error).strip().splitlines()[-1]
        raise ValueError(text.removeprefix("ValueError: ")) from error
    except (AttributeError, KeyError, TypeError) as error:
        text = str(error.args[0]).replace("\\n", " ").replace("\\'", "'").strip("\"'")
        raise ValueError(f"{source.rpartition('/')[2]}: {' '.join(text.split())}") from error
    if rest[1:]:
        raise ValueError(f"unexpected arguments {rest[1:]}")
    return flat


def checksum(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of every value of a flat config that changes what is trained.

    The seed is left out: seeds of one configuration are together.
    """
    from vireid_jax.runinfo import changes_training  # brings jax

    own_images = config["data.name"] == "folders"  # there the root says which they are
    relevant = {
        key: value
        for key, value in config.items()
        if key != "seed" and (changes_training(key) or (own_images and key == "data.root"))
    }
    text = json.dumps(relevant, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def _values(dataset: str, changes: Sequence[str]) -> tuple[str, ...]:
    """The changes with those for the embedded data before them, each key once."""
    merged = {f"--config.{k}": str(v) for k, v in EMBEDDED.items() if dataset == "synthetic"}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"{change} has no value; expected --config.key=value, with the =")
        if (name := key.removeprefix("--config.")) in OWN_KEYS:
            raise ValueError(f"{name} is decided by {OWN_KEYS[name]}; leave {change} out")
        merged[key] = value
    return tuple(f"{key}={value}" for key, value in merged.items())


def _check_differences(name: str, table: Any, changes: Sequence[str]) -> None:
    """Refuses a change of what the rows of a table differ in: it would make them one."""
    differ = {key for row in table.rows.values() for key in {**row.changes, **row.embedded}}
    for change in changes:
        if (key := change.partition("=")[0].removeprefix("--config.")) in differ:
            raise ValueError(f"rows of {name} differ in {key}; leave {change} out")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
