"""Features of a data set on the mesh, and their scores under the protocols."""

import json
import math
import os
import pathlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from vireid_jax.data import arrays
from vireid_jax.data.augment import standardize
from vireid_jax.metrics import protocols
from vireid_jax.metrics.combine import row_label
from vireid_jax.runtime import devices, files
from vireid_jax.types import (
    INFRARED,
    MODALITIES,
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
BASELINE_PIXELS = 96 * 48


def make_embed(method: Method, mesh: jax.sharding.Mesh) -> Embed:
    """Jits (variables, uint8 images [N, H, W, 3], modality) -> {feature: float32 [N, D]}.

    Images are sharded by rows, features gathered, so every process holds all of them. The
    variables may be placed in any way, as those of a training state.
    """
    everywhere, rows = devices.replicated(mesh), devices.by_rows(mesh)

    @partial(jax.jit, static_argnums=2, in_shardings=(None, rows), out_shardings=everywhere)
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
    filter: str = "lanczos",
    batch_size: int = 256,
    mirror: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Features:
    """Embeds every image of `records`.

    Args:
      embed: from `make_embed`.
      variables: on the mesh.
      records: N images of one or both modalities, decoded or not.
      mesh: see `devices.make_mesh`.
      image_size: (height, width) that encoded images are resized to.
      filter: of that resizing, "lanczos" or "bilinear".
      batch_size: images at a time; rounded up to a multiple of the devices. The last batch
        is padded, so that one program per modality is compiled.
      mirror: embed every image reflected left to right.
      should_stop: polled once a batch.

    Returns:
      {feature name: float32 [N, D]}, rows as in `records`, the headline feature first.

    Raises:
      Stopped: when `should_stop` said so.
      RuntimeError: not every image has one row of features.
    """
    out: Features = {}
    embedded = np.zeros(len(records), np.int64)
    for index, features in embedded_batches(
        embed,
        variables,
        records,
        mesh=mesh,
        image_size=image_size,
        filter=filter,
        batch_size=batch_size,
        mirror=mirror,
        should_stop=should_stop,
    ):
        for name, value in features.items():
            feature = np.asarray(value)[: len(index)]
            if name not in out:
                out[name] = np.empty((len(records), feature.shape[1]), np.float32)
            out[name][index] = feature
        embedded[index] += 1
    check_complete(embedded)
    return out


def check_complete(embedded: np.ndarray) -> None:
    """Raises RuntimeError unless every image was embedded once; int [N], how often each was.

    A loss of rows between hosts would not show in the scores, which are means.
    """
    if (wrong := np.flatnonzero(embedded != 1)).size:
        raise RuntimeError(
            f"{wrong.size} of {len(embedded)} images were not embedded once, the first of them row "
            f"{wrong[0]}, {embedded[wrong[0]]} times; expected as many features as images"
        )


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
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Batches of `embed_records`, on the device.

    Yields:
      Rows of the records, int [n], and {feature name: [batch size, D]}, whose first n are theirs.
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

    Images of more than `BASELINE_PIXELS` pixels are reduced by means over squares of 2 x 2, 3 x 3,
    ... pixels, the fewest that bring them near it: a whole test set has to fit into memory. What
    is left over at the right and the lower edge is dropped.
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


def directed(protocol: protocols.Protocol, retrieval: Retrieval) -> Retrieval:
    """Query and gallery in the direction of the protocol: `Retrieval` has infrared queries.

    Its own inverse.
    """
    if protocol.query == MODALITIES[VISIBLE]:
        return Retrieval(retrieval.gallery, retrieval.query)
    return retrieval


def score(
    query: Features,
    gallery: Features,
    retrieval: Retrieval,
    similarity: Mapping[str, np.ndarray] = MappingProxyType({}),
    *,
    protocol_names: Sequence[str],
    trials: int | None = None,
    gallery_draw: str = "agw",
    permutations: Any = None,
    rerank: str | None = None,
    block_bytes: int = protocols.BLOCK_BYTES,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """Scores every feature under every protocol.

    Args:
      query: {feature: [Q, D]}, rows as in retrieval.query (the infrared images).
      gallery: {feature: [G, D]}, rows as in retrieval.gallery (the visible ones). Protocols that
        search the other way swap the two here.
      retrieval: who and where the images are.
      similarity: {row: [Q, G]}, further rows, before the features.
      protocol_names: keys of `metrics.PROTOCOLS`.
      trials: draws to average over, where the protocol draws; None for its own number.
      gallery_draw: "agw", or "official" where a protocol has fixed permutations.
      permutations: from `metrics.read_permutations`, for "official".
      rerank: None, "all" or "queries", see `metrics.evaluate`.
      block_bytes: working memory beyond the features.
      should_stop: polled before every evaluation.

    Yields:
      `protocols.evaluate`'s dict with "feature" added, headline feature first within a protocol.

    Raises:
      Stopped: when `should_stop` said so.
    """
    for name in protocol_names:
        protocol = protocols.get_protocol(name)
        sides = directed(protocol, retrieval)
        for feature in (*similarity, *query):
            if should_stop():
                raise Stopped
            turned = sides is not retrieval
            if feature in similarity:
                matrix = similarity[feature]
                values: dict[str, Any] = {"similarity": matrix.T if turned else matrix}
            else:
                first, second = (gallery, query) if turned else (query, gallery)
                values = {"query_features": first[feature], "gallery_features": second[feature]}
            result = protocols.evaluate(
                **values,
                query_person=sides.query.person,
                gallery_person=sides.gallery.person,
                query_camera=sides.query.camera,
                gallery_camera=sides.gallery.camera,
                gallery_name=sides.gallery.name,
                query_name=sides.query.name,
                protocol=name,
                gallery=gallery_draw,
                permutations=permutations,
                rerank=rerank,
                trials=trials if protocol.drawn else None,
                block_bytes=block_bytes,
            )
            yield {"feature": feature, **result}


def save_results(results: Sequence[dict[str, Any]], folder: str | os.PathLike[str]) -> None:
    """Writes one JSON file for each result, per-query results included.

    A file is replaced by the same row scored again. Rows of another gallery draw or of other test
    images ("test_set") have names of their own.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        official = ["official"] * (result.get("gallery") == "official")
        test_set = [result["test_set"][:8]] if "test_set" in result else []
        label = "-".join([result["protocol"], *official, row_label(result), *test_set])
        name = re.sub(r"[^\w.]+", "-", label) + ".json"  # as safe as it is legible
        files.write_whole(folder / name, json.dumps(result, indent=1, allow_nan=False) + "\n")
