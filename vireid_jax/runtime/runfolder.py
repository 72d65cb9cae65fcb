"""What a run was started with, in its folder; and whether it may be resumed with something else.

config.json   the resolved config that the run trains with (config.1.json, ... earlier ones, if
              changes were allowed)
env.json      a list: versions and devices of every start that differed from the one before
COMMAND       one line per start
classes.json  the data set: the person behind each class, checksums of the images and their names
"""

import datetime
import fnmatch
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import platform
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from vireid_jax.options import PATHS, flat, full_paths
from vireid_jax.runtime import files
from vireid_jax.types import Records, Split

CONFIG, ENV, COMMAND, CLASSES = "config.json", "env.json", "COMMAND", "classes.json"

# Keys that may change when a run is resumed, since no parameter depends on them: what is scored,
# how often something is shown, scored or saved, and how batches are brought (every loader brings
# the same ones). All others must stay: seed, data, batch, method, optimizer, augmentation, length.
FREE_KEYS = (
    "allow_changes",
    "data.cache",
    "data.images",
    "data.prepared",
    "data.root",
    "devices.fsdp",
    "devices.remat",
    "eval.*",
    "init.unused",
    "loader.*",
    "run_name",
    "train.checkpoint_every",
    "train.eval_every",
    "train.keep",
    "train.log_every",
    "train.tensorboard",
)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "vireid_jax")
_ABSENT = "(absent)"
_MOST = 1 << 30  # bytes of an image

# Without these no config of any version is one.
_NEEDED = (
    *("seed", "data.name", "data.image_size", "method.name"),
    *("sampler.num_ids", "sampler.num_instances", "train.epochs"),
)
_RESTORE = "restore the file, or name another --workdir"

# What may be in a folder before its run: ours, and what shells and schedulers write there.
_BEFORE = (".*", "hosts", "supervise", "*.log", "*.out", "*.err")


def changes_training(key: str) -> bool:
    """Whether a config key such as "optim.lr" has a say in the trained parameters."""
    return not any(fnmatch.fnmatchcase(key, free) for free in FREE_KEYS)


def recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a nested config trains with: {"optim.lr": 0.1, ...}, plain values."""
    return {key: value for key, value in flat(_plain(config)).items() if changes_training(key)}


def trained_with(workdir: str | pathlib.Path) -> dict[str, Any]:
    """The `recipe` of the run in `workdir`, and a digest of the names of its training images."""
    facts = recipe(load_config(workdir).to_dict())
    if (pathlib.Path(workdir) / CLASSES).exists():
        facts["train_set"] = _read_classes(workdir)[0]["names_sha256"][:12]
    return facts


def load_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config that the run in `workdir` was started with.

    Raises:
      FileNotFoundError: if the folder holds no run; the message lists what it holds.
      ValueError: its config.json is damaged.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.exists():
        found = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else None
        raise FileNotFoundError(
            f"{path} not found, so {workdir} is not the folder of a run; "
            + ("there is no such folder" if found is None else f"it holds {found or 'nothing'}")
            + ". Name the --workdir of a run, or give --config"
        )
    content = _read_config(path)
    if lacking := [key for key in _NEEDED if key not in flat(content)]:
        raise ValueError(f"{path} is not a config, it lacks {', '.join(lacking)}; {_RESTORE}")
    return ml_collections.ConfigDict(_tuples(content))


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = files.read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {_RESTORE}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a config; {_RESTORE}")
    return content


def _tuples(value: Any) -> Any:
    """JSON knows lists only; configs have tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def check_resume(
    workdir: str | pathlib.Path, config_dict: Mapping[str, Any], *, allow: bool
) -> list[str]:
    """Refuses to go on with a run under a config that would have trained it differently.

    Args:
      workdir: the run folder. If it is empty or absent, every config is fine; logs do not count.
      config_dict: the resolved config, nested.
      allow: do not raise for differences.

    Returns:
      The differences that matter, as lines "key: old -> new".

    Raises:
      ValueError: keys outside `FREE_KEYS` differ (and not `allow`), config.json is unreadable, or
        the folder holds other things than a run.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.exists():
        _check_empty(path.parent)
        return []
    old = _shown(full_paths(_read_config(path)))
    new = _shown(_plain(full_paths(config_dict)))
    lines = [
        f"{key}: {old.get(key, _ABSENT)} -> {new.get(key, _ABSENT)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and changes_training(key)
    ]
    if lines and not allow:
        absent = ""
        if any(_ABSENT in line for line in lines):
            absent = (
                f"\n{_versions_differ(workdir)} A key that is {_ABSENT} belongs to another recipe "
                "or to another version; in the latter case resume the run with the version that "
                "made it."
            )
        raise ValueError(
            f"the run in {workdir} was started with another config (old -> new):\n  "
            + "\n  ".join(lines)
            + f"{absent}\nTo go on with the new one, add --config.allow_changes=True; to train "
            "from the start, name another --workdir; to resume, repeat the first command (see "
            f"{pathlib.Path(workdir) / COMMAND})"
        )
    return lines


def _check_empty(folder: pathlib.Path) -> None:
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if found := [n for n in names if not any(fnmatch.fnmatchcase(n, b) for b in _BEFORE)]:
        more = ", ..." if len(found) > 5 else ""
        raise ValueError(
            f"{folder} is not the folder of a run: it holds {', '.join(found[:5])}{more} and no "
            f"{CONFIG}, expected a run or an empty folder; name another --workdir"
        )


def _shown(config: Mapping[str, Any]) -> dict[str, str]:
    """The values of a nested config as JSON, by their dotted keys."""
    return {key: json.dumps(value) for key, value in flat(config).items()}


def check_known(
    config: Mapping[str, Any],
    known: Mapping[str, Collection[str]],
    workdir: str | pathlib.Path,
    *,
    needed: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Refuses the config of a run that another version of the package has made.

    Args:
      config: of the run in `workdir`, nested.
      known: section -> keys that this version knows in it; other sections are not looked at. ""
        stands for the keys outside of sections, names of sections included.
      workdir: the run folder.
      needed: section -> keys that this version cannot do without.

    Raises:
      ValueError: says which keys, who made them, what to do.
    """

    def keys(section: str) -> set[str]:
        found = config.get(section) if section else config
        return set(found) if isinstance(found, Mapping) else set()

    wrong = {(s, key): "unknown" for s, names in known.items() for key in keys(s) - set(names)}
    for section, names in (needed or {}).items():
        wrong |= {(section, key): "absent, but needed" for key in set(names) - keys(section)}
    if wrong:
        lines = (f"\n  {'.'.join(filter(None, key))}: {wrong[key]}" for key in sorted(wrong))
        raise ValueError(
            f"the run in {workdir} was made by another version of the package:{''.join(lines)}\n"
            f"{_versions_differ(workdir)} Score or resume it with that version, or train it again "
            "under another --workdir"
        )


def _versions_differ(workdir: str | pathlib.Path) -> str:
    """Who made a run, as far as its env.json says, and who reads it."""

    def name(env: Mapping[str, Any]) -> str:
        commit = f", commit {env['commit'][:12]}" if env.get("commit") else ""
        return f"vireid_jax {env.get('vireid_jax') or 'of an unknown version'}{commit}"

    try:
        made = name(files.read_json(pathlib.Path(workdir) / ENV)[-1])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        made = "a version that its env.json does not name"
    return f"It was last started by {made}; this is {name(versions())}."


def save_run_info(
    workdir: str | pathlib.Path, config: Mapping[str, Any], argv: Sequence[str]
) -> None:
    """Writes config.json, env.json and COMMAND, by process 0; a start adds to them.

    A config.json is replaced only by one that trains differently (so call `check_resume` first);
    the old one is kept as config.1.json, ...

    Args:
      workdir: the run folder; made if missing.
      config: the resolved config, nested.
      argv: the command line, as in sys.argv.
    """
    if jax.process_index() != 0:
        return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / CONFIG
    if not path.exists():
        _write_json(path, _plain(full_paths(config)))
    elif check_resume(workdir, config, allow=True):
        numbers = itertools.count(1)
        kept = next(p for n in numbers if not (p := workdir / f"config.{n}.json").exists())
        kept.write_bytes(path.read_bytes())
        _write_json(path, _plain(full_paths(config)))
    starts = _starts(workdir / ENV)
    env = environment()
    if not starts or starts[-1] != env:
        _write_json(workdir / ENV, [*starts, env])
    if pathlib.PurePath(argv[0]).parts[-2:] == ("vireid_jax", "main.py"):
        argv = ["python", "-m", "vireid_jax.main", *argv[1:]]
    files.make_way(workdir / COMMAND)
    with (workdir / COMMAND).open("a", encoding="utf-8") as f:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        f.write(f"{shlex.join(argv)}  # {now}\n")


def _starts(path: pathlib.Path) -> list[Any]:
    """What env.json holds; a damaged one is set aside, since nothing depends on it."""
    try:
        if not isinstance(starts := files.read_json(path), list):
            raise ValueError("it holds no list")
        return starts
    except FileNotFoundError:
        return []
    except ValueError as error:
        logging.warning("%s is damaged (%s), now %s", path, error, files.set_aside(path).name)
        return []


def save_classes(
    workdir: str | pathlib.Path,
    split: Split,
    persons: np.ndarray,
    own: Records | None = None,
) -> None:
    """Writes classes.json, by the first process; `own` are one's own training images, undecoded."""
    if jax.process_index() != 0:
        return
    facts = {
        "dataset": split.name,
        "images": len(split.train),
        "names_sha256": _digest(split.train.name),
        "persons": persons.tolist(),
        "files_sha256": sorted(set(file_digests(own))) if own is not None else [],
    }
    _write_json(pathlib.Path(workdir) / CLASSES, facts)


def file_digests(records: Records) -> list[str]:
    """16 hexadecimal digits of each image's bytes; "" where it cannot be read.

    An image is known by them under any name, in any folder.
    """
    found = []
    for image in records.images:
        try:
            data = image if isinstance(image, bytes) else files.read_regular(image, _MOST)
        except (OSError, ValueError):
            found.append("")
        else:
            found.append(hashlib.sha256(data).hexdigest()[:16])
    return found


def load_files(workdir: str | pathlib.Path) -> set[str]:
    """The digests of the run's training images, see `file_digests`; of some data sets alone."""
    return set(_read_classes(workdir)[0]["files_sha256"]) - {""}


def name_test_set(split: Split) -> str:
    """Twelve hexadecimal digits that tell the test images of a data set from others, by name."""
    return _digest([split.name, *split.test.query.name, "", *split.test.gallery.name])[:12]


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def load_classes(workdir: str | pathlib.Path) -> np.ndarray:
    """Int32 [C], the person behind each class of the run.

    Raises:
      ValueError: it was not written down, or cannot be read.
    """
    return _read_classes(workdir)[1]


def _read_classes(workdir: str | pathlib.Path) -> tuple[dict[str, Any], np.ndarray]:
    path = pathlib.Path(workdir) / CLASSES
    try:
        content = files.read_json(path)
        persons = content["persons"]
        texts = [content["names_sha256"], *content["files_sha256"]]
        if {type(n) for n in persons} - {int} or {type(text) for text in texts} - {str}:
            raise ValueError("it holds values of other types")
        return content, np.array(persons, np.int32)
    except FileNotFoundError:
        raise ValueError(
            f"{workdir} holds no {CLASSES}, which tells how many people its model knows; repeat "
            "its training command, which writes that file and ends where it ended"
        ) from None
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        fault = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} cannot be read ({fault}); if the data set is the one that the run was trained "
            "on, delete it and repeat the training command, which writes it"
        ) from error


def check_classes(
    workdir: str | pathlib.Path, split: Split, persons: np.ndarray, *, allow: bool = False
) -> None:
    """Refuses to go on with a run whose training images have changed since it began.

    Args:
      workdir: the run folder; without a classes.json in it everything is fine.
      split: the data set as it is now.
      persons: int32 [C], the person behind each class now.
      allow: other images of the same people are fine.
    """
    if not (pathlib.Path(workdir) / CLASSES).exists():
        return
    old, known = _read_classes(workdir)
    if not np.array_equal(known, persons):
        gone, new = np.setdiff1d(known, persons), np.setdiff1d(persons, known)
        raise ValueError(
            f"the run in {workdir} was trained on {len(known)} people, the data set "
            f"{split.name!r} now has {len(persons)}: {len(gone)} are gone {gone[:5].tolist()}, "
            f"{len(new)} are new {new[:5].tolist()}; restore the data set, or name another "
            "--workdir"
        )
    if not allow and old["names_sha256"] != _digest(split.train.name):
        raise ValueError(
            f"the run in {workdir} was trained on {old.get('images')} images of "
            f"{old.get('dataset')!r}, the data set {split.name!r} now has {len(split.train)}, or "
            "others by name; restore the data set, name another --workdir, or go on with "
            "--config.allow_changes=True"
        )


def shared_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the processes of a run must have in common before they compute: code and config."""
    values = flat(_plain(config))
    return {**versions(), **{k: v for k, v in values.items() if k not in PATHS}}


def data_facts(split: Split) -> dict[str, Any]:
    """What the data of all processes must have in common: their names, not their pixels."""
    return {
        "images to train on": len(split.train),
        "names of images to train on": _digest(split.train.name)[:12],
        "names of images to test on": name_test_set(split),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python, of the packages that matter, and the commit of a clone."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a clone that is not installed
            versions[name] = None
    return versions | {"commit": _commit()}


def environment() -> dict[str, Any]:
    """Versions, devices and the commit of this process."""
    return {
        **versions(),
        "platform": platform.platform(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def _commit() -> str | None:
    """The commit of the clone that the package runs from, with "+" if files differ from it."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.check_output(
            command, text=True, timeout=10, stderr=subprocess.DEVNULL
        ).strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + "+" * bool(changes)
    except (OSError, subprocess.SubprocessError):
        return None


def _plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples are lists, other things their repr()."""
    return json.loads(json.dumps(value, default=repr))


def _write_json(path: pathlib.Path, value: Any) -> None:
    files.write_whole(path, json.dumps(value, indent=2) + "\n")
