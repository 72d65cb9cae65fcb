"""Features of a data set on the mesh, and their scores under the protocols."""

import json
import os
import pathlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from vireid_jax import sharding
from vireid_jax.data import arrays
from vireid_jax.data.augment import standardize
from vireid_jax.metrics import protocols
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
Features = dict[str, np.ndarray]

RAW_PIXELS = "raw pixels"


def make_embed(method: Method, mesh: jax.sharding.Mesh) -> Embed:
    """Jits (variables, uint8 images [N, H, W, 3], modality) -> {feature: float32 [N, D]}.

    Images are sharded by rows, features gathered, so every process holds all of them.
    """
    everywhere, rows = sharding.replicated(mesh), sharding.by_rows(mesh)

    @partial(jax.jit, static_argnums=2, in_shardings=(everywhere, rows), out_shardings=everywhere)
    def embed(variables: Variables, images: Any, modality: int) -> dict[str, Any]:
        features = method.embed(variables, standardize(images), modality)
        # jit sorts the keys of a dict; the first feature is the headline.
        return OrderedDict((name, value.astype(np.float32)) for name, value in features.items())

    return embed


def embed_records(
    embed: Embed,
    variables: Variables,
    records: Records,
    *,
    mesh: jax.sharding.Mesh,
    image_size: tuple[int, int],
    batch_size: int = 256,
    should_stop: Callable[[], bool] = lambda: False,
) -> Features:
    """Embeds every image of `records`.

    Args:
      embed: from `make_embed`.
      variables: on the mesh.
      records: N images of one or both modalities, decoded or not.
      mesh: see `sharding.make_mesh`.
      image_size: (height, width) that encoded images are resized to.
      batch_size: images at a time; rounded up to a multiple of the devices. The last batch
        is padded, so that one program per modality is compiled.
      should_stop: polled once a batch.

    Returns:
      {feature name: float32 [N, D]}, rows as in `records`, the headline feature first.

    Raises:
      Stopped: when `should_stop` said so.
    """
    devices = jax.device_count()
    batch_size = -(-batch_size // devices) * devices
    own = sharding.process_rows(batch_size)
    out: Features = {}
    for modality in (VISIBLE, INFRARED):
        rows = np.flatnonzero(records.modality == modality)
        for at in range(0, len(rows), batch_size):
            if should_stop():
                raise Stopped
            index = rows[at : at + batch_size]
            padded = np.resize(index, batch_size)  # repeats rows; the surplus is cut below
            images = _pixels(records, padded[own], image_size)
            batch = sharding.to_global({"images": images}, mesh)["images"]
            for name, value in embed(variables, batch, modality).items():
                feature = np.asarray(value)[: len(index)]
                if name not in out:
                    out[name] = np.empty((len(records), feature.shape[1]), np.float32)
                out[name][index] = feature
    return out


def _pixels(records: Records, rows: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    images = records.images
    if is_decoded(images):
        return images[rows]
    return arrays.decode([images[r] for r in rows], image_size)


def pixel_features(records: Records, image_size: tuple[int, int]) -> Features:
    """The raw-pixel baseline: each image as a vector, less its mean, {RAW_PIXELS: [N, H*W*3]}."""
    rows = np.arange(len(records))
    pixels = _pixels(records, rows, image_size).reshape(len(rows), -1).astype(np.float32)
    return {RAW_PIXELS: pixels - pixels.mean(1, keepdims=True)}


def score(
    query: Features,
    gallery: Features,
    retrieval: Retrieval,
    *,
    protocol_names: Sequence[str],
    trials: int = 10,
) -> Iterator[dict[str, Any]]:
    """Scores every feature under every protocol.

    Args:
      query: {feature: [Q, D]}, rows as in retrieval.query.
      gallery: {feature: [G, D]}.
      retrieval: who and where the images are.
      protocol_names: keys of `metrics.PROTOCOLS`.
      trials: gallery draws to average over.

    Yields:
      `protocols.evaluate`'s dict with "feature" added, headline feature first within a protocol.
    """
    for protocol in protocol_names:
        for feature in query:
            result = protocols.evaluate(
                query[feature],
                gallery[feature],
                query_person=retrieval.query.person,
                gallery_person=retrieval.gallery.person,
                query_camera=retrieval.query.camera,
                gallery_camera=retrieval.gallery.camera,
                gallery_name=retrieval.gallery.name,
                query_name=retrieval.query.name,
                protocol=protocol,
                trials=trials,
            )
            yield {"feature": feature, **result}


def save_results(results: Sequence[dict[str, Any]], folder: str | os.PathLike[str]) -> None:
    """Writes one JSON file for each result, per-query results included."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        name = f"{result['protocol'].replace('/', '-')}-{result['feature']}.json"
        temporary = folder / f".{name}.tmp"
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        temporary.replace(folder / name)
