"""The index stream of AGW's released sampler, number for number, in NumPy only.

The authors' code draws every epoch from NumPy's global generator, seeded once, so what an epoch
shows depends on all epochs before it. Here a generator of its own is replayed from the last
epoch whose start is known; a plan is still a function of its arguments alone.
"""

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from vireid_jax.data.sampler_rules import Draw, Index
from vireid_jax.types import INFRARED, VISIBLE

# The generator's state at the start of epoch 0, 1, ... for the streams asked for last: it only
# saves replaying them. A state takes 2.5 kB.
_STREAMS = 8
_starts: OrderedDict[tuple[Any, ...], list[Any]] = OrderedDict()
_lock = threading.Lock()


def legacy_rows(index: Index, draw: Draw) -> np.ndarray:
    """The batches of an epoch as `RandomState(seed)` draws them, kept over the epochs.

    For each batch P classes without replacement; then for each of them K visible and K
    infrared images with replacement. An epoch begins where one of as many steps ended.

    Returns:
      int64 [S, 2, P * K].

    Raises:
      ValueError: if distinct images are asked for.
    """
    if not draw.replacement:
        raise ValueError(
            "replacement is False, expected True with the rule 'agw_legacy': the released sampler "
            "draws images with replacement; choose 'agw' for distinct images of an identity"
        )
    counts = index.count.T.tolist()  # [C][2]
    key = (index.count.tobytes(), draw.num_ids, draw.num_instances, draw.seed, draw.steps)
    with _lock:
        starts = _starts.pop(key, None)
        if starts is None:
            starts = [np.random.RandomState(draw.seed).get_state(legacy=False)]
        _starts[key] = starts
        while len(_starts) > _STREAMS:
            _starts.popitem(last=False)
        generator = np.random.RandomState()
        while len(starts) <= draw.epoch:
            generator.set_state(starts[-1])
            _replay(generator, counts, draw)
            starts.append(generator.get_state(legacy=False))
        start = starts[draw.epoch]
    generator = np.random.RandomState()
    generator.set_state(start)
    slot, pick = _replay(generator, counts, draw)
    with _lock:
        if len(starts) == draw.epoch + 1:
            starts.append(generator.get_state(legacy=False))
    return np.stack(
        [
            (index.order[m][index.first[m][slot][..., None] + pick[:, :, m]]).reshape(len(slot), -1)
            for m in (VISIBLE, INFRARED)
        ],
        axis=1,
    )


def _replay(
    generator: np.random.RandomState, counts: list[list[int]], draw: Draw
) -> tuple[np.ndarray, np.ndarray]:
    """One epoch's draws in the order of the authors' loop: classes [S, P], images [S, P, 2, K]."""
    slot, pick = [], []
    for _ in range(draw.steps):
        slot.append(generator.choice(len(counts), draw.num_ids, replace=False))
        for c in slot[-1]:
            for n in counts[c]:
                pick.append(generator.choice(n, draw.num_instances))
    images = np.array(pick).reshape(draw.steps, draw.num_ids, 2, draw.num_instances)
    return np.array(slot), images
