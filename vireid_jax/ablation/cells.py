"""Cells of ablation tables: where each lives, what trains and scores it, and what it has saved.

A cell is one training: a configuration and a seed. Rows that are the same training are one cell:
its folder is named after a checksum of every value that changes its parameters.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import pathlib
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vireid_jax import main as command
from vireid_jax.options import PATHS, flat, full_path
from vireid_jax.runtime.files import read_object, write_whole

RECIPES = command.recipe_path("tables")
TRAINED = "trained.json"  # in the folder of a cell whose training has come to its end

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

    def of_seed(self, seed: int) -> "Cell":
        """The same training with a seed, in a folder of its own."""
        return dataclasses.replace(
            self,
            seed=seed,
            folder=self.folder / f"seed{seed}",
            config={**self.config, "seed": seed},
            values=(*self.values, f"--config.seed={seed}"),
        )

    def command(self, score: Score | None) -> list[str]:
        """Scores the trained cell once more; None: trains or resumes it, and scores the end."""
        protocols = self.protocols if score is None else (score.protocol,)
        command = [sys.executable, "-m", "vireid_jax.main", f"--config={self.source}"]
        command += [f"--workdir={self.folder}", *self.values]
        command += [f"--config.eval.protocols={protocols!r}"] * bool(protocols)
        if score is not None:
            command += ["--mode=eval"]
            if score.corrupt is not None:
                # Work at test time that is asked for clean rows has no corrupted counterpart.
                command += [f"--config.eval.corrupt={score.corrupt}"]
                command += ["--config.eval.flip=False", "--config.eval.rerank=none"]
        return command

    def trained_at(self) -> int | None:
        """The last step of the training; None while it has not come to its end."""
        path = self.folder / TRAINED
        if not path.exists():
            return None
        if type(step := read_object(path).get("step")) is not int:
            raise ValueError(
                f"{path} is damaged: it names no step; delete it to have it made again"
            )
        return step

    def mark_trained(self) -> None:
        """Writes down that the training has ended, and at which step.

        Results are not enough: any checkpoint can be scored. A ValueError says that there is none
        of a last state.
        """
        steps = [
            int(path.parent.name)
            for path in self.folder.glob("eval/*/*.json")
            if path.parent.name.isdigit() and read_object(path).get("checkpoint") == "last"
        ]
        if not steps:
            raise ValueError(f"{self.folder} holds no results although its command has ended well")
        write_whole(self.folder / TRAINED, json.dumps({"step": max(steps)}) + "\n")

    def found(self, score: Score) -> tuple[pathlib.Path, dict[str, Any]] | None:
        """The saved result of a score and its file; None if not trained or not scored like this.

        A result counts only if it was measured as the cell's eval section says. A ValueError says
        that it was scored on two sets of test images, or that a file cannot be read.
        """
        folder = self.folder / "eval" / str(self.trained_at())
        found = {path: _read(path, path.stat().st_mtime_ns) for path in folder.glob("*.json")}
        fitting = [(path, r) for path, r in found.items() if _fits(r, score, self.config)]
        if len(fitting) > 1:
            raise ValueError(
                f"{folder} holds {len(fitting)} results of {score.protocol}, {score.feature}: of "
                "several test sets; delete those that are not meant"
            )
        return fitting[0] if fitting else None

    def metrics(self, score: Score) -> dict[str, float] | None:
        """{"R1": ..., "mAP": ...} as fractions; None where there are none. Raises as `found`."""
        from vireid_jax.metrics.saved import is_share

        found = self.found(score)
        values = found[1].get("metrics") if found else None
        usable = isinstance(values, dict) and values and all(map(is_share, values.values()))
        return values if usable else None

    def missing(self) -> list[Score]:
        """The wanted scores that the cell lacks; raises ValueError as `metrics`."""
        return [score for score in self.scores if self.metrics(score) is None]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table with a cell for each seed."""

    label: str
    paper: Mapping[str, tuple[float, float]]
    score: Score
    cells: tuple[Cell, ...]
    beside: str | None = None  # the row that it is compared with


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with its rows in the paper's order."""

    name: str
    title: str
    dataset: str
    corrupt: str | None
    protocol: str
    rows: Mapping[str, Row]
    feature: str | None = None  # of all rows; None: the headline of each row's method
    other: tuple[str, ...] = ()  # protocol and feature, those that are not the table's own
    trial: int | None = None  # RegDB's split
    left_out: tuple[str, ...] = ()  # labels of rows that do not take the settings


# --- Tables and rows --------------------------------------------------------------------


def load_tables() -> dict[str, Any]:
    """The TABLES of configs/tables.py."""
    if RECIPES is None:
        raise FileNotFoundError("no configs/tables.py here, in the clone or in the package")
    command.add_recipes_to_path()
    return runpy.run_path(str(RECIPES))["TABLES"]


def choose(names: Sequence[str], tables: Mapping[str, Any]) -> list[str]:
    """Keys of `tables` by name, "mun/1", or by method, "mun"; raises ValueError for others."""
    chosen: list[str] = []
    for name in names:
        found = [t for t in tables if name in (t, t.split("/")[0])]
        if not found:
            methods = dict.fromkeys(t.split("/")[0] for t in tables)
            raise ValueError(f"no table {name!r}; expected of {', '.join([*tables, *methods])}")
        chosen += found
    return list(dict.fromkeys(chosen))


def resolve_tables(
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
) -> list[Table]:
    """Resolves the rows of the named `tables` with every seed, as the command's options say.

    Cells are in `folder`/cells. `rows` are those that must take the changes, None for all; others
    are left out if they do not.

    Raises:
      ValueError: a change that is this command's own, or that the recipes refuse; a training
        that ends before what its row is about begins; a protocol of another data set, or a
        feature that a model does not give.
    """
    values = _values(dataset, changes)
    found = []
    for name in names:
        table, resolved, left_out, headlines = tables[name], {}, [], set()
        differ = {key for row in table.rows.values() for key in {**row.changes, **row.embedded}}
        for change in changes:
            if (key := split_change(change)[0]) in differ:
                raise ValueError(f"rows of {name} differ in {key}; leave {change} out")
        for row, spec in table.rows.items():
            source = f"{RECIPES}:{name}/{row}:{dataset}"
            try:
                config = resolve(source, values)
                own = table.protocols.get(dataset) or config["eval.protocols"][0]
                shown = protocol or own
                headline = _check_score(source, config, protocol=shown, feature=feature)
                _check_lengths(source, config)
            except ValueError:
                if rows is None or row in rows:
                    raise
                left_out.append(spec.label)
                continue
            headlines.add(headline)
            score = Score(shown, table.corrupt, feature or headline)
            cell = Cell(
                row=f"{name}/{row}",
                seed=0,
                folder=folder / "cells" / f"{config['method.name']}_{dataset}-{_checksum(config)}",
                config=config,
                values=values,
                source=source,
                protocols=(shown,) if dataset == "synthetic" else (),
                scores=(score,),
            )
            with_seeds = tuple(map(cell.of_seed, seeds))
            resolved[row] = Row(spec.label, spec.paper, score, with_seeds, spec.beside)
        if resolved:
            # A feature that is the headline of all rows is the table's own.
            other = [shown] * (shown != own)
            other += [feature] if feature and headlines != {feature} else []
            found.append(
                Table(
                    name=name,
                    title=table.title,
                    dataset=dataset,
                    corrupt=table.corrupt,
                    protocol=shown,
                    rows=resolved,
                    feature=feature,
                    other=tuple(other),
                    trial=config.get("data.trial"),
                    left_out=tuple(left_out),
                )
            )
    return found


def cells_of(tables: Sequence[Table], rows: Sequence[str] | None = None) -> list[Cell]:
    """Every cell once, with all scores that are wanted of it; seed by seed, all rows of each.

    `rows` leaves other rows out; a ValueError names one that no table has.
    """
    known = {row for table in tables for row in table.rows}
    if unknown := sorted(set(rows or ()) - known):
        raise ValueError(f"no row {', '.join(unknown)}; expected of {', '.join(sorted(known))}")
    found: dict[pathlib.Path, Cell] = {}
    for table in tables:
        for name, row in table.rows.items():
            for cell in row.cells if not rows or name in rows else ():
                first = found.setdefault(cell.folder, cell)
                scores = tuple(dict.fromkeys((*first.scores, *cell.scores)))
                found[cell.folder] = dataclasses.replace(first, scores=scores)
    return sorted(found.values(), key=lambda cell: cell.seed)  # stable


# --- Settings of a row ------------------------------------------------------------------


def resolve(source: str, values: Sequence[str]) -> dict[str, Any]:
    """The flat config that the main command gets from --config=`source` and `values`.

    Raises:
      ValueError: as that command would refuse them.
    """
    try:
        config = command.changed(command.read_recipe(source), values)[0]
    except ValueError as error:
        raise ValueError(f"{_row(source)}: {error}") from error
    return flat(config.to_dict())


def split_change(change: str) -> tuple[str, str]:
    """("optim.lr", VALUE) of --config.optim.lr=VALUE; without its "=" a ValueError."""
    key, equals, value = change.partition("=")
    if not equals:
        raise ValueError(f"{change} has no value; expected {key}=VALUE, with the =, not a space")
    return key.removeprefix("--config."), value


def _values(dataset: str, changes: Sequence[str]) -> tuple[str, ...]:
    """--config.key=value of all cells: on the embedded data `EMBEDDED` first; each key once."""
    merged = {f"--config.{k}": str(v) for k, v in EMBEDDED.items() if dataset == "synthetic"}
    for change in changes:
        key, value = split_change(change)
        if key in OWN_KEYS:
            raise ValueError(f"{key} is decided by {OWN_KEYS[key]}; leave {change} out")
        is_path = key in PATHS and value != "None"
        merged[f"--config.{key}"] = full_path(value, key) if is_path else value
    return tuple(f"{key}={value}" for key, value in merged.items())


def _checksum(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of every value of a flat config that changes what is trained.

    Not of the seed: seeds of one configuration are together.
    """
    from vireid_jax.runtime.runfolder import changes_training

    own_images = config["data.name"] == "folders"  # there the root says which they are
    relevant = {
        key: value
        for key, value in config.items()
        if key != "seed" and (changes_training(key) or (own_images and key == "data.root"))
    }
    text = json.dumps(relevant, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def _check_lengths(source: str, config: Mapping[str, Any]) -> None:
    """Refuses a training that is over before what its row is about has begun."""
    epochs = config["train.epochs"]
    starts = {"optim.warmup_epochs": "its learning rate would still rise at the end"}
    if config.get("method.metric_weight"):
        starts["method.metric_from_epoch"] = "its metric losses would never enter"
    for key, why in starts.items():
        if key in config and config[key] >= epochs:
            raise ValueError(
                f"{_row(source)}: {key} is {config[key]:g} and train.epochs {epochs:g}, so {why}; "
                f"give --config.{key}=... below {epochs:g}, or a larger --config.train.epochs=..."
            )


def _check_score(
    source: str, config: Mapping[str, Any], *, protocol: str, feature: str | None
) -> str:
    """Refuses a score that the trained model cannot have; returns the model's headline feature."""
    from vireid_jax.methods import get_build
    from vireid_jax.metrics import PROTOCOLS, get_protocol

    get_protocol(protocol)
    own = config["eval.protocols"][0].partition("/")[0]
    if protocol.partition("/")[0] != own:
        known = [name for name in PROTOCOLS if name.startswith(f"{own}/")]
        raise ValueError(
            f"--protocol is {protocol}, which is not one of {config['data.name']}; expected of "
            f"{', '.join(known)}"
        )
    module = inspect.getmodule(get_build(config["method.name"]))
    # Rows that are sums of similarities come first; the features after the neck and before it.
    given = (*getattr(module, "FUSIONS", ()), "bn", "pool")
    if feature is not None and feature not in given:
        raise ValueError(
            f"{_row(source)} has no feature {feature!r}; give --feature {' or '.join(given)}"
        )
    return given[0]


def _row(source: str) -> str:
    """TABLE/ROW:DATASET of the value of --config."""
    return source.partition(".py:")[2]


# --- Saved results ----------------------------------------------------------------------


@functools.cache
def _read(path: pathlib.Path, changed: int) -> dict[str, Any]:
    """A result without its long lists; a table is written after every cell, from all of them."""
    del changed  # a file that is replaced is read again
    return {
        key: value for key, value in read_object(path).items() if key not in ("per_query", "curves")
    }


def _fits(result: Mapping[str, Any], score: Score, config: Mapping[str, Any]) -> bool:
    from vireid_jax.metrics import get_protocol

    protocol = get_protocol(score.protocol)
    gallery = config["eval.gallery"] if protocol.drawn else "all"
    wanted = {**score._asdict(), "checkpoint": "last", "gallery": gallery}
    if any(result.get(key) != value for key, value in wanted.items()):
        return False
    if result.get("flip") or result.get("rerank"):
        return False
    if score.corrupt is not None:  # of the first draw alone
        repeats = (config["eval.corrupt_repeats"], config["eval.corrupt_seed"])
        return (result["results"], result["corrupt_seed"]) == repeats
    asked = config["eval.trials"] if protocol.drawn else None
    return len(result["trials"]) == (asked or protocol.trials)
