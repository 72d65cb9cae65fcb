"""Memory of one chunk for a loss of the whole batch (`config.devices.accumulate`).

Metric losses compare all rows of a batch, so losses of chunks would add up to another loss. But
features are small and maps are large: all rows are embedded chunk by chunk without keeping maps,
the loss sees all features, and its exact gradient goes back through one chunk at a time, whose maps
are computed a second time. Gao et al. (RepL4NLP 2021) do so by hand; here a scan does. The cost is
a second forward pass, and a sum of gradients over devices for each chunk.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vireid_jax.types import Variables

# (variables, images, key) -> (outputs, updates of "batch_stats")
Forward = Callable[[Variables, Sequence[jax.Array], Any], tuple[Any, Any]]


def check(accumulate: int) -> None:
    """Raises ValueError for what is no number of chunks."""
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(
            f"devices.accumulate is {accumulate!r}, expected a whole number of chunks, 1 (the "
            "batch in one piece) or more"
        )


def apply(
    forward: Forward,
    variables: Variables,
    images: Sequence[jax.Array],
    key: Any,
    *,
    chunks: int,
) -> tuple[Any, Any]:
    """A network's training pass, in chunks of slots.

    Chunk c has the rows r with r % chunks == c, so a batch that is sharded over devices by
    contiguous rows stays where it is. A chunk is normalized by its own statistics; running
    statistics move once a chunk, as in PyTorch when a loop accumulates gradients.

    Args:
      forward: the pass on some slots. All that it returns first has their rows in front, slot b
        as a run of rows if there are several for each, and no mean over rows.
      variables: with the collection "batch_stats", the only one that changes.
      images: arrays [B, ...].
      key: of the random streams; chunk c takes it folded with c.
      chunks: 1 is `forward` itself.

    Returns:
      What `forward` returns, in the order of the batch, with the statistics after the last chunk.

    Raises:
      ValueError: the chunks do not divide the rows.
    """
    if chunks == 1:
        return forward(variables, images, key)
    rows = images[0].shape[0]
    if rows % chunks:
        raise ValueError(
            f"devices.accumulate is {chunks} with a batch of {rows} rows (sampler.num_ids x "
            "sampler.num_instances), expected a divisor of them; change one of the two"
        )

    def one(stats: Any, chunk: Any) -> tuple[Any, Any]:
        index, parts = chunk
        out, updates = forward(
            {**variables, "batch_stats": stats}, parts, jax.random.fold_in(key, index)
        )
        return updates["batch_stats"], out

    # Nothing but the chunk itself is kept; a scan shares no work between its two passes anyway.
    body = jax.checkpoint(one, prevent_cse=False)
    cut = (jnp.arange(chunks), [_cut(x, chunks) for x in images])
    stats, out = jax.lax.scan(body, variables["batch_stats"], cut)
    return jax.tree.map(lambda x: _joined(x, rows // chunks), out), {"batch_stats": stats}


def _cut(x: jax.Array, chunks: int) -> jax.Array:
    """[B, ...] -> [chunks, B / chunks, ...]."""
    return x.reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1)


def _joined(x: jax.Array, slots: int) -> jax.Array:
    """[chunks, slots * k, ...], k rows for each slot -> [chunks * slots * k, ...], as the batch."""
    if x.ndim < 2 or x.shape[1] % slots:
        raise ValueError(
            f"a chunk of {slots} slots gave {x.shape[1:]}, expected rows in front, a multiple of "
            "them; use devices.accumulate=1 with what is no array of rows"
        )
    chunks, rows = x.shape[:2]
    x = x.reshape(chunks, slots, rows // slots, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(-1, *x.shape[3:])
