"""The contracts that the parts of vireid_jax share.

Shape letters, used in every docstring:

    B  rows of a batch in one modality (P * K)      P  identities     K  images of one identity
    M  modalities in a step (2, or 3 with an auxiliary one)           N  rows in general
    C  identities in training (classes)             D  feature width  Q, G  queries, gallery
    H, W  image height and width in pixels          h, w, F  height, width, channels of a map
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

VISIBLE, INFRARED = 0, 1
MODALITIES = ("visible", "infrared")
# The copies that leading stages of a network may have: one for each modality of a batch, and one
# for the images of an auxiliary modality. They are suffixes of parameter names.
AUXILIARY = 2
STEMS = (*MODALITIES, "auxiliary")
# A second copy of the last stages, for what is specific to modalities in all of them (IDKL).
SPECIFIC = "specific"

Variables = Mapping[str, Any]  # flax collections: {"params": tree, "batch_stats": tree, ...}


class Batch(TypedDict):
    """One step's images: row i of both modalities shows identity `label[i]`.

    Rows are identity-major: the K rows of an identity are adjacent, and there is one such run.
    Host batches are uint8; inside the step they are float32 and standardized (`data.augment`).
    """

    visible: Any  # uint8 [B, H, W, 3]
    infrared: Any  # uint8 [B, H, W, 3]
    label: Any  # int32 [B], 0 .. C-1
    camera: Any  # int32 [B, 2]: the camera of the visible and of the infrared image
    # Made in the step, if asked for: another view of the visible images, as in CAJ.
    visible_second: NotRequired[Any]  # float32 [B, H, W, 3]


class Pixels:
    """Some rows of a decoded array uint8 [M, H, W, 3] that may be memory-mapped.

    Indexing with rows int [n] gathers them, uint8 [n, H, W, 3]; until then nothing is read, and
    `take` copies no image. A caller may treat it as the array of its own rows.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.array = array
        self.rows = np.arange(len(array)) if rows is None else rows
        self.dtype, self.ndim = array.dtype, array.ndim
        self.shape = (len(self.rows), *array.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.array[self.rows[index]]

    def take(self, rows: np.ndarray) -> "Pixels":
        """The images at `rows` (int [n]), in that order."""
        return Pixels(self.array, self.rows[rows])


def is_decoded(images: Any) -> bool:
    """Whether `Records.images` holds pixels of one size, not encoded images or paths."""
    return isinstance(images, np.ndarray | Pixels)


@dataclasses.dataclass(frozen=True)
class Records:
    """A list of images and what is known of them; row n of every field is image n.

    `images` is a uint8 array [N, H, W, 3] (decoded, final size) or `Pixels`, or a sequence of
    N encoded images (`bytes`), or a sequence of N paths. An encoded or stored image is
    decoded and resized by the loaders. A sequence that reads on demand has a method `take`.
    """

    images: Any  # np.ndarray | Pixels | Sequence[bytes] | Sequence[str]
    person: np.ndarray  # int32 [N], identity numbers as the data set was released with
    camera: np.ndarray  # int32 [N], camera numbers as released
    modality: np.ndarray  # int8 [N], VISIBLE or INFRARED
    name: Sequence[str]  # N stable names such as "cam1/0006/0025"

    def __len__(self) -> int:
        return len(self.person)

    def take(self, rows: np.ndarray) -> "Records":
        """The records at `rows` (int [n] or bool [N]), in that order."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        at: list[int] = rows.tolist()
        if isinstance(self.images, np.ndarray):
            images: Any = self.images[rows]
        elif hasattr(self.images, "take"):
            images = self.images.take(rows)
        else:
            images = [self.images[r] for r in at]
        return Records(
            images,
            self.person[rows],
            self.camera[rows],
            self.modality[rows],
            [self.name[r] for r in at],
        )


class Retrieval(NamedTuple):
    """A retrieval problem: infrared queries against a visible gallery by convention.

    Protocols that search the other way swap the two, and protocols that sample the
    gallery draw from it, so `gallery` holds every image that may be drawn.
    """

    query: Records
    gallery: Records


class Split(NamedTuple):
    """A data set, ready to train and test on.

    The identities of `train`, `val` and `test` are disjoint; `val` is what the best
    checkpoint is chosen on, so that the test set never chooses.
    """

    name: str
    train: Records
    test: Retrieval
    val: Retrieval | None = None
    notes: tuple[str, ...] = ()  # what a user should know of it, a line each


class Aux(NamedTuple):
    """What a loss returns beside its total."""

    terms: dict[str, Any]  # unweighted scalars, named as in the paper
    updates: dict[str, Any]  # new values of the non-parameter collections
    metrics: Mapping[str, Any] = MappingProxyType({})  # further scalars to log


LossFn = Callable[[Variables, Batch, Any, Any], tuple[Any, Aux]]


class Method(NamedTuple):
    """A re-ID method: pure functions; all state is in `variables`.

    init: (key) -> variables, cheap to trace under `jax.eval_shape`.
    loss: (variables, batch, key, step) -> (total [], Aux).
    embed: (variables, images [N, H, W, 3] standardized float32, modality) ->
      {feature name: float32 [N, D]}; the first feature is the method's headline.
    project: (params) -> params, applied after every update: keeps parameters within bounds.
    fusions: {row: {feature: weight}}: further rows of a result, the first of them the headline;
      the similarity of two images is the weighted sum of the inner products of these features,
      which are then no rows of their own. For features too wide to be kept for a gallery.
    """

    init: Callable[[Any], Variables]
    loss: LossFn
    embed: Callable[[Variables, Any, int], dict[str, Any]]
    project: Callable[[Any], Any] | None = None
    fusions: Mapping[str, Mapping[str, float]] = MappingProxyType({})

    def __hash__(self) -> int:
        """Of the functions: a mapping has none, and a method may be static for `jax.jit`."""
        return hash((self.init, self.loss, self.embed, self.project))


class Stopped(Exception):
    """A long piece of work was asked to stop half-way; it has no result."""


def epochs_to_steps(epochs: float, steps_per_epoch: int) -> int:
    """Durations are epochs in configs and become optimizer steps here, and only here."""
    return round(epochs * steps_per_epoch)


def train_labels(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the identities that have both modalities 0 .. C-1, by ascending person.

    Returns:
      label: int32 [N], -1 for images of a person who lacks one modality.
      persons: int32 [C], the person behind each label.
    """
    seen = [np.unique(records.person[records.modality == m]) for m in (VISIBLE, INFRARED)]
    persons = np.intersect1d(seen[0], seen[1]).astype(np.int32)
    if not len(persons):
        raise ValueError(
            f"no person has images in both modalities: {len(seen[0])} persons have visible "
            f"images, {len(seen[1])} have infrared ones, expected a common set; check that "
            "both folders use the same names for the same person"
        )
    label = np.searchsorted(persons, records.person).astype(np.int32)
    label[~np.isin(records.person, persons)] = -1
    return label, persons


def check_batch(batch: Batch, *, num_ids: int, num_instances: int) -> None:
    """Checks that a host batch of P identities with K images keeps the contract of `Batch`.

    Raises:
      ValueError: naming the field, what it is and what was expected.
    """
    rows = num_ids * num_instances
    keys = {"visible", "infrared", "label", "camera"}
    if missing := keys - set(batch):
        raise ValueError(f"batch lacks {sorted(missing)}; it has {sorted(batch)}")
    for key in MODALITIES:
        image = np.asarray(batch[key])  # type: ignore[literal-required]
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[-1] != 3:
            raise ValueError(
                f"batch['{key}'] is {image.dtype} {list(image.shape)}, expected uint8 [B, H, W, 3]"
            )
        if image.shape[0] != rows:
            raise ValueError(
                f"batch['{key}'] has {image.shape[0]} rows, expected "
                f"{num_ids} identities x {num_instances} images = {rows}"
            )
    if batch["visible"].shape != batch["infrared"].shape:
        raise ValueError(
            f"visible images are {list(batch['visible'].shape)} but infrared ones "
            f"{list(batch['infrared'].shape)}; load both at one size"
        )
    for key, shape in (("label", (rows,)), ("camera", (rows, 2))):
        x = np.asarray(batch[key])  # type: ignore[literal-required]
        if x.dtype != np.int32 or x.shape != shape:
            raise ValueError(f"batch['{key}'] is {x.dtype} {x.shape}, expected int32 {shape}")
    label = np.asarray(batch["label"])
    blocks = label.reshape(num_ids, num_instances)
    if not (blocks == blocks[:, :1]).all():
        raise ValueError(
            f"labels are not identity-major: every {num_instances} consecutive rows must share "
            f"one label, got {label.tolist()}"
        )
    if len(np.unique(blocks[:, 0])) != num_ids:
        raise ValueError(
            f"an identity occurs twice in the batch: labels {blocks[:, 0].tolist()}, expected "
            f"{num_ids} distinct ones"
        )
