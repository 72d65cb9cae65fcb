"""What a row's configuration is, from its recipe and the changes of the command line."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from vireid_jax.command import dotted, quoted

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
FEATURES = ("bn", "pool")  # of most methods: after the neck, and before it
# Of methods whose headline is a sum of similarities.
FUSED = {name: ("sum", "weighted", *FEATURES) for name in ("deen", "pdm")}
# Files of the user, which a relative and an absolute path name alike.
PATHS = ("init.weights", "data.root")


def resolve(source: str, values: Sequence[str]) -> dict[str, Any]:
    """The flat config that the main command gets from --config=`source` and `values`.

    Raises:
      ValueError: as that command would refuse them.
    """
    own = flags.FlagValues()
    argv = ["ablation", f"--config={source}", *map(quoted, values)]
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
        # Of a key that the recipe lacks the text is "'lrr'\nDid you mean ...".
        text = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'").strip("\"'")
        key, _, hint = text.partition("\n")
        given = [dotted(v).partition("=")[0] for v in values]
        keys = [g for g in given if key.strip("'\"") in g.split(".")]
        what = f"its recipe has no key {', '.join(keys)}" if keys else key
        hint = " ".join(hint.split())
        raise ValueError(f"{_row(source)}: {what}. {hint}".strip()) from error
    if rest[1:]:
        raise ValueError(f"unexpected arguments {rest[1:]}")
    return flat


def checksum(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of every value of a flat config that changes what is trained.

    The seed is left out: seeds of one configuration are together.
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


def values(dataset: str, changes: Sequence[str]) -> tuple[str, ...]:
    """The changes with those for the embedded data before them, each key once."""
    merged = {f"--config.{k}": str(v) for k, v in EMBEDDED.items() if dataset == "synthetic"}
    for change in changes:
        key, value = _split(change)
        if key in OWN_KEYS:
            raise ValueError(f"{key} is decided by {OWN_KEYS[key]}; leave {change} out")
        merged[f"--config.{key}"] = _full_path(value) if key in PATHS else value
    return tuple(f"{key}={value}" for key, value in merged.items())


def check_lengths(source: str, config: Mapping[str, Any]) -> None:
    """Refuses a training that is over before what its row is about has begun.

    Args:
      source: the value of --config.
      config: from `resolve`.

    Raises:
      ValueError: a start that `train.epochs` does not reach.
    """
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


def features(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The features that a trained model of this flat config is scored by, its headline first."""
    if config.get("method.neck") == "none":
        return ("pool",)
    return FUSED.get(config["method.name"], FEATURES)


def check_score(
    source: str, config: Mapping[str, Any], *, protocol: str, feature: str | None
) -> None:
    """Refuses, before anything is trained, a score that the trained model cannot have.

    Raises:
      ValueError: a protocol of another data set, or a feature that the model does not give.
    """
    from vireid_jax.metrics import PROTOCOLS, get_protocol

    get_protocol(protocol)
    own = config["eval.protocols"][0].partition("/")[0]
    if protocol.partition("/")[0] != own:
        known = [name for name in PROTOCOLS if name.startswith(f"{own}/")]
        raise ValueError(
            f"--protocol is {protocol}, which is not one of {config['data.name']}; expected of "
            f"{', '.join(known)}"
        )
    given = features(config)
    if feature is not None and feature not in given:
        neck = " with method.neck=none" if config.get("method.neck") == "none" else ""
        raise ValueError(
            f"{_row(source)} has no feature {feature!r}{neck}; give --feature {' or '.join(given)}"
        )


def check_differences(name: str, table: Any, changes: Sequence[str]) -> None:
    """Refuses a change of what the rows of a table differ in: it would make them one."""
    differ = {key for row in table.rows.values() for key in {**row.changes, **row.embedded}}
    for change in changes:
        if (key := _split(change)[0]) in differ:
            raise ValueError(f"rows of {name} differ in {key}; leave {change} out")


def check_written(changes: Sequence[str]) -> None:
    """Refuses "--config.key value", whose value would be taken for a table or a seed.

    Raises:
      ValueError: a change without its "=".
    """
    for change in changes:
        _split(change)


def _split(change: str) -> tuple[str, str]:
    """("init.weights", VALUE) of --config.init.weights=VALUE."""
    key, equals, value = change.partition("=")
    if not equals:
        raise ValueError(f"{change} has no value; expected {key}=VALUE, with the =, not a space")
    return dotted(key).removeprefix("--config."), value


def _full_path(text: str) -> str:
    """A path from the root, with the name of the file itself as it is: its ending says the kind."""
    if not text or text == "None" or "://" in text:
        return text
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(text)))
    return os.path.join(os.path.realpath(folder), name)


def _row(source: str) -> str:
    """TABLE/ROW:DATASET of the value of --config."""
    return source.partition(".py:")[2]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
