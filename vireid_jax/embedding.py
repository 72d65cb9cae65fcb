"""Images become vectors on the mesh, and similarities that are sums over vectors too wide to keep.

DEEN and PDM compare two images by a weighted sum of inner products, of up to 73,728 numbers an
image at the size of the papers. `accumulate` sums them up while one side streams past the other;
where vectors are wanted (re-ranking), `join` makes one whose inner products are that sum.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.data import arrays
from vireid_jax.data.augment import standardize
from vireid_jax.metrics.inputs import unit_rows
from vireid_jax.runtime import devices
from vireid_jax.types import (
    INFRARED,
    VISIBLE,
    Method,
    Records,
    Retrieval,
    Stopped,
    Variables,
    is_decoded,
)

Embed = Callable[[Variables, Any, int], dict[str, Any]]
Features = dict[str, np.ndarray]  # {feature: float32 [N, D]}, the headline first
Fusions = Mapping[str, Mapping[str, float]]  # `types.Method.fusions`: {row: {feature: weight}}

RAW_PIXELS = "raw pixels"
BASELINE_PIXELS = 96 * 48
FUSE_BYTES = 1 << 30  # of the side that `accumulate` keeps, on every device


# Features ------------------------------------------------------------------------------------


def make_embed(method: Method, mesh: jax.sharding.Mesh) -> Embed:
    """Jits (variables, uint8 images [N, H, W, 3], modality) -> {feature: float32 [N, D]}.

    Images are sharded by rows; every process holds all features. The variables may be placed in
    any way.
    """
    everywhere, rows = devices.replicated(mesh), devices.by_rows(mesh)

    @partial(jax.jit, static_argnums=2, in_shardings=(None, rows), out_shardings=everywhere)
    def embed(variables: Variables, images: Any, modality: int) -> dict[str, Any]:
        features = method.embed(variables, standardize(images), modality)
        # jit sorts the keys of a dict; the first feature is the headline.
        return OrderedDict((name, value.astype(np.float32)) for name, value in features.items())

    return embed


def embedded_batches(
    embed: Embed,
    variables: Variables,
    records: Records,
    *,
    mesh: jax.sharding.Mesh,
    image_size: tuple[int, int],
    filter: str = "lanczos",
    batch_size: int = 256,
    mirror: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    count: Callable[[int], None] = lambda images: None,
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Embeds every image of `records`, batch by batch.

    Args:
      embed: from `make_embed`.
      variables: on the mesh.
      records: N images of one or both modalities, decoded or not.
      mesh: see `devices.make_mesh`.
      image_size: (height, width) that encoded images are resized to, by `filter`.
      batch_size: images at a time, rounded up to a multiple of the devices; the last batch is
        padded, so that one program per modality is compiled.
      mirror: embed every image reflected left to right.
      should_stop: polled once a batch.
      count: called with the number of images of each batch.

    Yields:
      Rows of the records, int [n], and {feature: [batch size, D]} on the device; the first n rows
      belong to them.

    Raises:
      Stopped: when `should_stop` said so.
    """
    width = mesh.size
    batch_size = -(-batch_size // width) * width
    own = devices.process_rows(batch_size)
    for modality in (VISIBLE, INFRARED):
        rows = np.flatnonzero(records.modality == modality)
        for at in range(0, len(rows), batch_size):
            if should_stop():
                raise Stopped
            index = rows[at : at + batch_size]
            padded = np.resize(index, batch_size)  # repeats rows; the surplus is cut below
            images = pixels(records, padded[own], image_size, filter)
            if mirror:
                images = np.ascontiguousarray(images[:, :, ::-1])
            batch = devices.to_global({"images": images}, mesh)["images"]
            yield index, embed(variables, batch, modality)
            count(len(index))


def embed_records(embed: Embed, variables: Variables, records: Records, **options: Any) -> Features:
    """Embeds every image of `records`; arguments as in `embedded_batches`.

    Returns:
      {feature: float32 [N, D]}, rows as in `records`, the headline feature first.

    Raises:
      Stopped: when `should_stop` said so.
      RuntimeError: not every image has one row of features.
    """
    out: Features = {}
    embedded = np.zeros(len(records), np.int64)
    for index, features in embedded_batches(embed, variables, records, **options):
        for name, value in features.items():
            feature = np.asarray(value)[: len(index)]
            if name not in out:
                out[name] = np.empty((len(records), feature.shape[1]), np.float32)
            out[name][index] = feature
        embedded[index] += 1
    _check_complete(embedded)
    return out


def _check_complete(embedded: np.ndarray) -> None:
    """Takes how often each image was embedded, int [N]. Scores would not show a loss of rows."""
    if (wrong := np.flatnonzero(embedded != 1)).size:
        raise RuntimeError(
            f"{wrong.size} of {len(embedded)} images were not embedded once, the first of them row "
            f"{wrong[0]}, {embedded[wrong[0]]} times; expected as many features as images"
        )


def pixels(
    records: Records, rows: np.ndarray, image_size: tuple[int, int], filter: str = "lanczos"
) -> np.ndarray:
    """Images uint8 [n, H, W, 3] of `rows` (int [n]), decoded and resized where they are not."""
    images = records.images
    if is_decoded(images):
        return images[rows]
    names = [records.name[r] for r in rows]
    return arrays.decode([images[r] for r in rows], image_size, filter=filter, names=names)


def pixel_features(
    records: Records, image_size: tuple[int, int], filter: str = "lanczos"
) -> Features:
    """The raw-pixel baseline: each image as a vector, less its mean, {RAW_PIXELS: [N, h*w*3]}.

    A whole test set has to fit into memory: images larger than `BASELINE_PIXELS` are reduced to
    about that, by means over squares of pixels. What is left over at the edges is dropped.
    """
    side = max(1, math.isqrt(image_size[0] * image_size[1] // BASELINE_PIXELS))
    height, width = image_size[0] // side, image_size[1] // side
    out = np.empty((len(records), height * width * 3), np.float32)
    for at in range(0, len(records), 256):
        rows = np.arange(at, min(at + 256, len(records)))
        images = pixels(records, rows, image_size, filter)[:, : height * side, : width * side]
        squares = images.reshape(len(rows), height, side, width, side, 3)
        flat = squares.mean(axis=(2, 4), dtype=np.float32).reshape(len(rows), -1)
        out[rows] = flat - flat.mean(1, keepdims=True)
    return {RAW_PIXELS: out}


def mean_direction(features: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """The mean of two unit vectors, row by row [N, D]: the flip test of CAJ's released code."""
    return (unit_rows(features) + unit_rows(mirrored)) / 2


# Sums of similarities --------------------------------------------------------------------------


class Embedded(NamedTuple):
    """What the images of a retrieval problem are scored by."""

    query: Features  # {feature: [Q, D]}
    gallery: Features  # {feature: [G, D]}
    similarity: dict[str, np.ndarray]  # {row: float32 [Q, G]}, before the features in a result


def _summed(fusions: Fusions) -> list[str]:
    """The features that the rows are sums of."""
    return sorted({name for weights in fusions.values() for name in weights})


def accumulate(
    embed: Embed,
    variables: Variables,
    retrieval: Retrieval,
    fusions: Fusions,
    *,
    flip: bool = False,
    memory_bytes: int = FUSE_BYTES,
    **options: Any,
) -> Embedded:
    """Embeds both sides and sums similarities up, without keeping the features summed over.

    The smaller side is kept in blocks of up to `memory_bytes`; for each the other is embedded.

    Args:
      embed, variables: as in `embedded_batches`, with all its options but `mirror`.
      retrieval: queries and gallery.
      fusions: rows that are sums.
      flip: compare means of an image's and its mirror image's vectors, as in DEEN's and PDM's test;
        of other features the mean direction.
      memory_bytes: of a block.

    Returns:
      Other features as they come, and the similarities.
    """
    parts = _summed(fusions)
    sides = list(retrieval)
    kept = int(len(sides[1]) < len(sides[0]))  # 0: the queries are kept
    out: list[Features] = [{}, {}]
    similarity = {
        row: np.empty((len(sides[kept]), len(sides[1 - kept])), np.float32) for row in fusions
    }
    weights = tuple((row, tuple(found.items())) for row, found in fusions.items())

    def batches(side: int, rows: np.ndarray, plain: bool) -> Any:
        """(rows of the side, {part: [n, D]} on the device); notes the other features."""
        records = sides[side].take(rows)
        views = [
            embedded_batches(embed, variables, records, mirror=mirror, **options)
            for mirror in ((False, True) if flip else (False,))
        ]
        for found in zip(*views, strict=True):
            index, features = found[0]
            if plain:
                for name in features.keys() - set(parts):
                    values = [np.asarray(view[name])[: len(index)] for _, view in found]
                    value = mean_direction(*values) if flip else values[0]
                    if name not in out[side]:
                        shape = (len(sides[side]), value.shape[1])
                        out[side][name] = np.empty(shape, np.float32)
                    out[side][name][rows[index]] = value
            yield rows[index], {p: sum(v[p] for _, v in found) / len(found) for p in parts}

    height, width = options["image_size"]
    image = jax.ShapeDtypeStruct((options["mesh"].size, height, width, 3), np.uint8)
    shapes: Any = jax.eval_shape(lambda v, x: embed(v, x, VISIBLE), variables, image)
    names = [name for name in shapes if name not in parts]
    per_block = max(1, memory_bytes // (4 * sum(shapes[p].shape[1] for p in parts)))
    embedded = np.zeros(len(sides[kept]), np.int64)
    for at in range(0, len(sides[kept]), per_block):
        rows = np.arange(at, min(at + per_block, len(sides[kept])))
        found = list(batches(kept, rows, plain=True))
        order = np.concatenate([index for index, _ in found])
        embedded[order] += 1
        block = {p: jnp.concatenate([x[p][: len(index)] for index, x in found]) for p in parts}
        every = np.arange(len(sides[1 - kept]))
        others = np.zeros(len(every), np.int64)
        for index, some in batches(1 - kept, every, plain=not at):
            others[index] += 1
            for row, value in _sums(weights, block, some).items():
                part = np.asarray(value)[:, : len(index)]
                similarity[row][order[:, None], index[None, :]] = part
        _check_complete(others)
    _check_complete(embedded)
    if kept == 1:
        similarity = {row: np.ascontiguousarray(value.T) for row, value in similarity.items()}
    query, gallery = ({name: side[name] for name in names} for side in out)
    return Embedded(query, gallery, similarity)


@partial(jax.jit, static_argnums=0)
def _sums(
    weights: tuple[tuple[str, tuple[tuple[str, float], ...]], ...],
    some: dict[str, Any],
    others: dict[str, Any],
) -> dict[str, Any]:
    """{row: [n, l]} of features {part: [n, D]} and {part: [l, D]}."""
    highest = jax.lax.Precision.HIGHEST  # scores must not depend on the device's default
    each = {p: jnp.matmul(x, others[p].T, precision=highest) for p, x in some.items()}
    return {row: sum(w * each[p] for p, w in of) for row, of in weights}


def join(features: Features, fusions: Fusions) -> Features:
    """Features with a vector for each row that is a sum, before the others.

    The inner product of two such vectors is the sum of weighted inner products.
    """
    if not features:  # of no images
        return {}
    rows = {
        row: np.concatenate(
            [np.float32(weight**0.5) * features[name] for name, weight in weights.items()], 1
        )
        for row, weights in fusions.items()
    }
    parts = _summed(fusions)
    return rows | {name: x for name, x in features.items() if name not in parts}
