"""Similarities that are sums over features too wide to be kept: `types.Method.fusions`.

DEEN and PDM compare two images by a weighted sum of inner products, branch by branch: at the size
of the papers 12,288 and 73,728 numbers an image. Either the sum is accumulated: one side is kept in
parts that fit into memory, the other streams past it, and what is left is one number a pair. Or,
where vectors are wanted (for re-ranking, or to be written somewhere), each row becomes one vector
whose inner products are that sum.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.evaluate import Embed, Features, check_complete, embedded_batches
from vireid_jax.metrics.distance import unit_rows
from vireid_jax.types import VISIBLE, Retrieval, Variables

Fusions = Mapping[str, Mapping[str, float]]  # {row: {feature: weight}}
FUSE = ("accumulate", "store")
MEMORY_BYTES = 1 << 30  # of the side that is kept, on every device


class Embedded(NamedTuple):
    """What the images of a retrieval problem are scored by."""

    query: Features  # {feature: [Q, D]}
    gallery: Features  # {feature: [G, D]}
    similarity: dict[str, np.ndarray]  # {row: float32 [Q, G]}, before the features in a result


def parts_of(fusions: Fusions) -> list[str]:
    """The features that the rows are sums of."""
    return sorted({name for weights in fusions.values() for name in weights})


def accumulate(
    embed: Embed,
    variables: Variables,
    retrieval: Retrieval,
    fusions: Fusions,
    *,
    flip: bool = False,
    memory_bytes: int = MEMORY_BYTES,
    **options: Any,
) -> Embedded:
    """Embeds both sides and sums similarities up, without keeping the features summed over.

    The smaller side is kept in blocks of up to `memory_bytes`; for each the other is embedded.

    Args:
      embed: from `evaluate.make_embed`.
      variables: on the mesh.
      retrieval: queries and gallery.
      fusions: rows that are sums.
      flip: of the sum of the vectors of an image and its mirror image, halved and not scaled to
        length 1 again, as in DEEN's and PDM's test; other features: the mean direction of both.
      memory_bytes: of a block.
      options: of `evaluate.embedded_batches`: mesh, image_size, filter, batch_size, should_stop.

    Returns:
      Other features as they come, and the similarities.
    """
    parts = parts_of(fusions)
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
        check_complete(others)
    check_complete(embedded)
    if kept == 1:
        similarity = {row: np.ascontiguousarray(value.T) for row, value in similarity.items()}
    ordered = [{name: side[name] for name in names} for side in out]
    return Embedded(ordered[0], ordered[1], similarity)


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


def stored(features: Features, fusions: Fusions) -> Features:
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
    parts = parts_of(fusions)
    return rows | {name: x for name, x in features.items() if name not in parts}


def mean_direction(features: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """The mean of two unit vectors, row by row [N, D]: the flip test of CAJ's released code."""
    return (unit_rows(features) + unit_rows(mirrored)) / 2
