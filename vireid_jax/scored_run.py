"""Scoring a run by another command: which options may differ, and on whom it may be tested."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from vireid_jax.runtime import runfolder
from vireid_jax.types import Retrieval

SCORED = ("data", "eval", "loader")  # sections that --mode=eval takes from a recipe
# Options that say who is trained on.
DIVIDING = ("name", "trial", "test_share", "seed", "val_ids", "train_ids")


def config_to_score(
    config: ml_collections.ConfigDict | None,
    folder: pathlib.Path,
    overrides: Mapping[str, Any],
) -> ml_collections.ConfigDict:
    """The run's own config; a recipe that is given replaces what is tested on, and how.

    Raises:
      FileNotFoundError: `folder` is not a run.
      ValueError: an override of a section that the run decides, or a model of one RegDB split
        that would be tested on another, half of whose people it was trained on.
    """
    own = runfolder.load_config(folder)
    if config is None:
        return own
    given = config.copy_and_resolve_references()
    for key in overrides:
        section, _, name = key.partition(".")
        if section in SCORED or key in ("allow_changes", "run_name"):
            continue
        was, asked = own.get(section), given[section]
        if name:
            was, asked = was.get(name) if was is not None else None, asked[name]
        if was != asked:
            raise ValueError(
                f"{key} is {was!r} in the run in {folder}, whose model --mode=eval scores, and "
                f"{asked!r} on the command line; only {', '.join(SCORED)} options can be changed"
            )
    mixed = own.copy_and_resolve_references().unlock()
    for section in SCORED:
        mixed[section] = given[section]
    mixed.data.image_size = own.data.image_size  # that of the model
    if own.data.name == given.data.name == "regdb" and own.data.trial != given.data.trial:
        raise ValueError(
            f"the model in {folder} was trained on trial {own.data.trial} of RegDB, and half of "
            f"the test people of trial {given.data.trial} were among those it was trained on; add "
            f"--config.data.trial={own.data.trial}, or score a run of trial {given.data.trial}"
        )
    return mixed.lock()


def check_classes_known(
    config: ml_collections.ConfigDict,
    own: ml_collections.ConfigDict,
    classes: np.ndarray | None,
    workdir: pathlib.Path,
) -> None:
    """Refuses another data set for a run that did not write down whom it was trained on.

    Args:
      config: from `config_to_score`.
      own: the config of the run.
      classes: from `runfolder.load_classes`.
      workdir: of the run.

    Raises:
      ValueError: the number of its classes cannot be known.
    """
    if classes is None and any(own.data.get(k) != config.data.get(k) for k in DIVIDING):
        raise ValueError(
            f"{workdir} holds no {runfolder.CLASSES}, which tells how many people its model knows, "
            f"so it can be scored on its own data set ({own.data.name}) alone; repeat its training "
            "command, which writes that file and ends where it ended"
        )


def check_unseen(
    config: ml_collections.ConfigDict,
    own: ml_collections.ConfigDict,
    test: Retrieval,
    persons: np.ndarray,
    workdir: pathlib.Path,
) -> None:
    """Refuses to test a model on people of its own data set that it was trained on.

    RegDB's trials are told apart earlier; this is for one's own images, divided another way.

    Args:
      config: from `config_to_score`.
      own: the config of the run.
      test: what the model is to be tested on.
      persons: int [C], the people that it was trained on.
      workdir: of the run.

    Raises:
      ValueError: it was trained on some of them.
    """
    given = config.data
    if given.name == "synthetic" or any(own.data.get(k) != given.get(k) for k in ("name", "root")):
        return  # other people, whatever their numbers
    seen = np.intersect1d(test.query.person, persons)
    if len(seen):
        raise ValueError(
            f"the model in {workdir} was trained on {len(seen)} people that it would be tested on "
            f"{seen[:5].tolist()}; give the options that divide the people (data.test_share, "
            "data.seed, data.val_ids) the values they have in its config.json, or name the "
            "folder of other people with --config.data.root"
        )
