"""What a reader of a data set hands on: every image, and how the tree compares to the release."""

import dataclasses
from typing import NamedTuple

import numpy as np

from vireid_jax.types import Records


class Check(NamedTuple):
    """One fact about a data set, as published and as found."""

    what: str  # "train identities", "queries", ...
    expected: str
    found: str
    ok: bool
    required: bool = True  # False: reported, never a reason to refuse


@dataclasses.dataclass(frozen=True)
class Listing:
    """Every image of a data set that its protocols use.

    `part` says where an image belongs: "train", "val" or "test"; for RegDB ten letters, one for
    each trial, "r" where the image is in the training half and "e" where it is in the other
    ("-": in neither). "all" where people are divided only by the reader's `split`.
    """

    name: str  # a key of `datasets.DATASETS`
    records: Records  # paths, encoded images or pixels
    part: np.ndarray  # str [N]
    checks: tuple[Check, ...] = ()
    problems: tuple[str, ...] = ()  # files and identities that need attention, a line each
    persons: tuple[str, ...] = ()  # the name of person number n, where people have names

    def take(self, rows: np.ndarray) -> "Listing":
        """The images at `rows` (int [n] or bool [N]); checks and problems stay."""
        return dataclasses.replace(self, records=self.records.take(rows), part=self.part[rows])


class TreeError(ValueError):
    """A tree is not the data set that it was said to be; the message says how it differs."""
