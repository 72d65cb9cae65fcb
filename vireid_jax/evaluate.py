"""A model's scores: images become vectors on the mesh, and vectors the rows of a table.

Top to bottom: features of images; similarities that are sums over features too wide to be kept;
scores under the protocols; the rows that a recipe's eval section asks for; which options may differ
when a run is scored by another command.

The headline rows are plain features under each protocol. Rows that improve on them by more work at
test time (mirrored images, re-ranking) and rows under corruption are separate and labelled.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from vireid_jax.data import arrays, corrupt
from vireid_jax.data.augment import standardize
from vireid_jax.metrics import (
    check_permutations,
    combine,
    get_protocol,
    protocols,
    row_label,
    sampled_rows,
)
from vireid_jax.metrics.distance import unit_rows
from vireid_jax.runtime import devices, files, runfolder
from vireid_jax.runtime.writer import Progress
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
Features = dict[str, np.ndarray]  # {feature: float32 [N, D]}, the headline first
Fusions = Mapping[str, Mapping[str, float]]  # `types.Method.fusions`: {row: {feature: weight}}

RAW_PIXELS, UNTRAINED = "raw pixels", "untrained network"
FILE_ALONE = "weights of the file alone"  # the untrained network where init.weights names a file
BASELINES = (RAW_PIXELS, UNTRAINED, FILE_ALONE)
BASELINE_PIXELS = 96 * 48
FUSE = ("accumulate", "store")
FUSE_BYTES = 1 << 30  # of the side that `accumulate` keeps, on every device


# Features ------------------------------------------------------------------------------------


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
      image_size: (height, width) that encoded images are resized to.
      filter: of that resizing, "lanczos" or "bilinear".
      batch_size: images at a time; rounded up to a multiple of the devices. The last batch
        is padded, so that one program per modality is compiled.
      mirror: embed every image reflected left to right.
      should_stop: polled once a batch.
      count: called with the number of images of each batch.

    Yields:
      Rows of the records, int [n], and {feature: [batch size, D]} on the device, whose first n
      rows are theirs.

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
    """Raises RuntimeError unless every image was embedded once; int [N], how often each was.

    A loss of rows between hosts would not show in the scores, which are means.
    """
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


def mean_direction(features: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """The mean of two unit vectors, row by row [N, D]: the flip test of CAJ's released code."""
    return (unit_rows(features) + unit_rows(mirrored)) / 2


# Sums of similarities --------------------------------------------------------------------------
#
# DEEN and PDM compare two images by a weighted sum of inner products, branch by branch: at the size
# of the papers 12,288 and 73,728 numbers an image. Either the sum is accumulated: one side is kept
# in parts that fit into memory, the other streams past it, and what is left is one number a pair.
# Or, where vectors are wanted (re-ranking), each row becomes one vector whose inner products are
# that sum.


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
      embed: from `make_embed`.
      variables: on the mesh.
      retrieval: queries and gallery.
      fusions: rows that are sums.
      flip: of the sum of the vectors of an image and its mirror image, halved and not scaled to
        length 1 again, as in DEEN's and PDM's test; other features: the mean direction of both.
      memory_bytes: of a block.
      options: of `embedded_batches`, but `mirror`.

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


# Scores under the protocols ----------------------------------------------------------------------


class Search(NamedTuple):
    """A protocol with its queries and gallery, in its own direction."""

    name: str
    protocol: protocols.Protocol
    sides: Retrieval
    turned: bool  # visible images search: the sides of the `Retrieval` are swapped

    def labels(self) -> dict[str, Any]:
        """People, cameras and names of both sides, as arguments of `vireid_jax.metrics`."""
        return {
            f"{side}_{what}": getattr(records, what)
            for side, records in self.sides._asdict().items()
            for what in ("person", "camera", "name")
        }

    def rows(self, gallery: str, permutations: Any, trial: int = 0) -> Any:
        """Which rows of the queries and of the gallery a trial uses."""
        options = dict(gallery=gallery, permutations=permutations, trial=trial)
        return sampled_rows(self.name, **self.labels(), **options)


def search(name: str, retrieval: Retrieval) -> Search:
    """A protocol on a retrieval problem, whose queries are infrared whoever searches."""
    protocol = get_protocol(name)
    turned = protocol.query == MODALITIES[VISIBLE]
    sides = Retrieval(retrieval.gallery, retrieval.query) if turned else retrieval
    return Search(name, protocol, sides, turned)


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
        found = search(name, retrieval)
        first, second = (gallery, query) if found.turned else (query, gallery)
        for feature in (*similarity, *query):
            if should_stop():
                raise Stopped
            if feature in similarity:
                matrix = similarity[feature]
                values: dict[str, Any] = {"similarity": matrix.T if found.turned else matrix}
            else:
                values = {"query_features": first[feature], "gallery_features": second[feature]}
            result = protocols.evaluate(
                **values,
                **found.labels(),
                protocol=name,
                gallery=gallery_draw,
                permutations=permutations,
                rerank=rerank,
                trials=trials if found.protocol.drawn else None,
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


# What a recipe asks for --------------------------------------------------------------------------


class Options(NamedTuple):
    """A recipe's eval section; configs/common.py says what each option means."""

    protocols: tuple[str, ...]
    validation: str
    trials: int | None
    gallery: str
    rand_perm: str | None
    flip: bool
    fuse: str
    rerank: str
    corrupt: str | None
    corrupt_repeats: int
    corrupt_seed: int
    batch_size: int
    memory_mb: int
    baselines: bool

    def check(self) -> None:
        """Refuses what could not be carried out, before anything is loaded."""
        names = self.protocols
        if isinstance(names, str) or not names or len(set(names)) < len(names):
            raise ValueError(
                f"eval.protocols is {names!r}, expected names without repetition in a tuple, as in "
                "--config.eval.protocols=\"('sysu/all/single', 'sysu/indoor/single')\""
            )
        for name in (*names, self.validation):
            get_protocol(name)
        for name in ("trials", "batch_size", "corrupt_repeats", "memory_mb"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"eval.{name} is {value}, expected at least 1")
        choices = {"gallery": ("agw", "official"), "rerank": ("none", "all", "queries")}
        for name, known in {**choices, "fuse": FUSE}.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"eval.{name} is {value!r}, expected one of {', '.join(known)}")
        if self.gallery == "official" and self.rand_perm is None:
            raise ValueError(
                "eval.gallery is 'official', whose draws are SYSU-MM01's rand_perm_cam.mat; name "
                "that file with --config.eval.rand_perm=FILE (it is in the evaluation code at "
                "https://github.com/wuancong/SYSU-MM01, not in the data set), or use gallery=agw"
            )
        if self.corrupt is not None:
            corrupt.parse(self.corrupt)
            if self.flip or self.rerank != "none":
                raise ValueError(
                    f"eval.corrupt is {self.corrupt!r} with eval.flip={self.flip} and "
                    f"eval.rerank={self.rerank}, expected flip=False and rerank=none: corrupted "
                    "images are scored by plain features; score flip and re-ranking by another "
                    "command"
                )

    def accumulates(self, fusions: Fusions, method: str) -> bool:
        """Whether similarities of the method are summed up, keeping no features.

        Raises:
          ValueError: re-ranking needs those features.
        """
        sums = bool(fusions) and self.fuse == FUSE[0]
        if sums and self.rerank != "none":
            raise ValueError(
                f"eval.rerank is {self.rerank!r}, but similarities of {method} are accumulated and "
                "nothing of the gallery is kept to compare it with itself; add "
                "--config.eval.fuse=store, which keeps a wide vector for each image"
            )
        return sums


def check_protocols(
    options: Options,
    test: Retrieval,
    val: Retrieval | None,
    *,
    permutations: Any = None,
    strict: bool = False,
) -> None:
    """Refuses protocols that do not fit the data set, before anything long is begun.

    Needs to know who and where the images are, and looks at none.

    Args:
      options: the recipe's eval section.
      test: the test set.
      val: the images of people who are held out from training, if some are.
      permutations: from `metrics.read_permutations`, if they are asked for.
      strict: they have to be SYSU-MM01's, all of them.

    Raises:
      ValueError: no images to search with or among, no query with a match, cameras of another
        data set, an image of the official gallery that is missing, more trials than it has, or a
        file that does not hold the official permutations.
    """
    if permutations is not None and strict:
        check_permutations(permutations, np.unique(test.query.person).tolist())
    for name in options.protocols:
        found = search(name, test)
        _check_protocol(found, "test", options.gallery, permutations)
        if found.protocol.drawn:  # the last trial needs images, or a row of the file, of its own
            last = (options.trials or found.protocol.trials) - 1
            found.rows(options.gallery, permutations, last)
    if val is not None:
        _check_protocol(search(options.validation, val), "validation", "agw", None)


def _check_protocol(found: Search, part: str, gallery: str, permutations: Any) -> None:
    name, protocol = found.name, found.protocol
    modalities = (protocol.query, protocol.gallery)
    for what, modality, side in zip(
        ("searches with", "searches"), modalities, found.sides, strict=True
    ):
        if not len(side):
            raise ValueError(
                f"{name} {what} {modality} images, and the {part} people have none; check how the "
                "data set is divided"
            )
    try:
        rows = found.rows(gallery, permutations)
    except ValueError as error:
        if permutations is not None:  # it may be the file that does not fit
            raise
        raise ValueError(
            f"{error}; leave {name} out of eval.protocols, or complete the data set"
        ) from error
    query, others = map(Records.take, found.sides, rows)
    for person in np.intersect1d(query.person, others.person):
        q, g = query.person == person, others.person == person
        if protocol.exclude is None or not np.all(
            protocol.exclude(query.person[q], query.camera[q], others.person[g], others.camera[g])
        ):
            return
    rule = f" ({protocol.explain})" if protocol.exclude is not None else ""
    raise ValueError(
        f"{name}: none of the {len(query):,} {protocol.query} images of the {part} people that it "
        f"searches with has its person among the {len(others):,} {protocol.gallery} ones that it "
        f"searches{rule}; "
        + ("leave it out of eval.protocols" if part == "test" else "choose another eval.validation")
        + ", or complete the data set"
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """Scores variables of a method as a recipe's eval section asks.

    Attributes:
      options: the eval section.
      embed: from `make_embed`.
      mesh: see `devices.make_mesh`.
      image_size: (height, width) in pixels.
      filter: of resizing.
      fusions: the method's rows that are sums of similarities.
      method: its name, for messages.
      permutations: the fixed ones, if the options ask for them.
      untrained: what the row of the variables before training is called.
      should_stop: polled between batches; `Stopped` is raised when it says so.
      say: takes lines that tell how far the work is.
    """

    options: Options
    embed: Embed
    mesh: Any
    image_size: tuple[int, int]
    filter: str = "lanczos"
    fusions: Fusions = dataclasses.field(default_factory=dict)
    method: str = "the method"
    permutations: Any = None
    untrained: str = UNTRAINED
    should_stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda text: None

    def validate(self, variables: Any, retrieval: Retrieval) -> dict[str, float]:
        """mAP, R1 and mINP of the headline feature under the validation protocol."""
        found = self._embedded(variables, retrieval)
        result = next(self._score(found, retrieval, [self.options.validation], gallery_draw="agw"))
        scores = {name: result["metrics"][name] for name in ("mAP", "R1", "mINP")}
        return scores | {"chance_mAP": result["chance"]["mAP"]}

    def test(
        self, variables: Any, retrieval: Retrieval, fresh: Callable[[], Any] | None = None
    ) -> list[dict[str, Any]]:
        """Every row that the eval section asks for.

        Args:
          variables: on the mesh.
          retrieval: the test set.
          fresh: () -> the variables before training, for the baseline rows.
        """
        o = self.options
        if o.corrupt is not None:
            return list(self._corrupted(variables, retrieval, corrupt.parse(o.corrupt)))
        names = o.protocols
        found = self._embedded(variables, retrieval)
        results = self._rows(found, retrieval, names)
        if o.flip:
            both = self._embedded(variables, retrieval, flip=True, plain=found)
            results += [r | {"flip": True} for r in self._rows(both, retrieval, names)]
        if o.rerank != "none":
            query, gallery = ({name: side[name] for name in list(side)[:1]} for side in found[:2])
            headline = Embedded(query, gallery, {})
            results += self._rows(headline, retrieval, names, rerank=o.rerank)
        if o.baselines:
            query, gallery = (
                pixel_features(side, self.image_size, self.filter) for side in retrieval
            )
            results += self._rows(Embedded(query, gallery, {}), retrieval, names[:1])
            if fresh is not None:
                untrained = self._embedded(fresh(), retrieval)
                result = next(self._score(untrained, retrieval, names[:1]))
                results.append(result | {"feature": self.untrained})
        return results

    @property
    def _accumulates(self) -> bool:
        return self.options.accumulates(self.fusions, self.method)

    def _embedded(
        self,
        variables: Any,
        retrieval: Retrieval,
        *,
        flip: bool = False,
        plain: Embedded | None = None,
    ) -> Embedded:
        """Both sides embedded; with `flip` images and their mirror images together.

        Args:
          variables: on the mesh.
          retrieval: the images.
          flip: add the mirror images.
          plain: what the images alone gave, so that they are not embedded a second time.
        """
        if self._accumulates:
            images = (1 + flip) * sum(map(len, retrieval))
            with Progress(self.say, "images embedded", images) as progress:
                options = self._embed_options(progress)
                return accumulate(
                    self.embed, variables, retrieval, self.fusions, flip=flip, **options
                )
        if not flip:
            query, gallery = self._features(variables, retrieval)
            return Embedded(query, gallery, {})
        both = [
            {name: mean_direction(before[name], mirrored[name]) for name in before}
            for before, mirrored in zip(
                plain[:2] if plain else self._features(variables, retrieval),
                self._features(variables, retrieval, mirror=True),
                strict=True,
            )
        ]
        return Embedded(both[0], both[1], {})

    def _features(
        self, variables: Any, sides: Sequence[Records], *, mirror: bool = False
    ) -> list[Features]:
        with Progress(self.say, "images embedded", sum(map(len, sides))) as progress:
            options = self._embed_options(progress)
            return [
                join(
                    embed_records(self.embed, variables, side, mirror=mirror, **options),
                    self.fusions,
                )
                for side in sides
            ]

    def _embed_options(self, progress: Progress) -> dict[str, Any]:
        return dict(
            mesh=self.mesh,
            image_size=self.image_size,
            filter=self.filter,
            batch_size=self.options.batch_size,
            should_stop=self.should_stop,
            count=progress.add,
        )

    def _rows(
        self, found: Embedded, retrieval: Retrieval, names: Sequence[str], **options: Any
    ) -> list[dict[str, Any]]:
        rows = []
        total = len(names) * len([*found.similarity, *found.query])
        with Progress(self.say, "rows scored", total) as progress:
            for row in self._score(found, retrieval, names, **options):
                rows.append(row)
                progress.add(1)
        return rows

    def _score(
        self, found: Embedded, retrieval: Retrieval, names: Sequence[str], **options: Any
    ) -> Iterator[dict[str, Any]]:
        own: dict[str, Any] = dict(
            protocol_names=names,
            trials=self.options.trials,
            gallery_draw=self.options.gallery,
            permutations=self.permutations,
            block_bytes=self.options.memory_mb << 20,
            should_stop=self.should_stop,
        )
        return score(found.query, found.gallery, retrieval, found.similarity, **{**own, **options})

    def _corrupted(
        self, variables: Any, retrieval: Retrieval, asked: corrupt.Spec
    ) -> Iterator[dict[str, Any]]:
        """Mean over repeats with new corruptions, as CIL-ReID (NeurIPS 2021) and MUN, table 5.

        Where a protocol draws its gallery, the first draw alone is used, as in CIL's code.
        """
        o = self.options
        about = {"corrupt": o.corrupt, "corrupt_seed": o.corrupt_seed}
        for name in o.protocols:
            some = self._first_trial(name, retrieval)
            clean = None if self._accumulates else self._features(variables, some)
            repeats: list[list[dict[str, Any]]] = []
            for repeat in range(o.corrupt_repeats):
                damaged = Retrieval(*(self._damage(records, asked, repeat) for records in some))
                if clean is None:
                    found = self._embedded(variables, damaged)
                else:  # a side of which nothing is corrupted is embedded once
                    query, gallery = (
                        features if after is before else self._features(variables, [after])[0]
                        for before, after, features in zip(some, damaged, clean, strict=True)
                    )
                    found = Embedded(query, gallery, {})
                rows = self._score(found, damaged, [name], trials=1)
                repeats.append([row | about for row in rows])
            for results in zip(*repeats, strict=True):
                yield combine(results, over="repeats")

    def _first_trial(self, name: str, retrieval: Retrieval) -> Retrieval:
        """The images that the first trial uses: no other needs corrupting."""
        found = search(name, retrieval)
        rows = found.rows(self.options.gallery, self.permutations)
        first, second = map(Records.take, found.sides, rows)
        return Retrieval(second, first) if found.turned else Retrieval(first, second)

    def _damage(self, records: Records, asked: corrupt.Spec, repeat: int) -> Records:
        """The records with the modalities that are asked for corrupted; the same if none is."""
        rows = np.flatnonzero(np.isin(records.modality, asked.modalities))
        if not len(rows):
            return records
        images = np.empty((len(records), *self.image_size, 3), np.uint8)
        step = self.options.batch_size
        for at in range(0, len(records), step):
            if self.should_stop():
                raise Stopped
            some = np.arange(at, min(at + step, len(records)))
            part = pixels(records, some, self.image_size, self.filter)
            images[some] = part
            hit = np.isin(some, rows)
            images[some[hit]] = corrupt.corrupt_images(
                part[hit],
                [records.name[r] for r in some[hit].tolist()],
                seed=self.options.corrupt_seed,
                repeat=repeat,
                kinds=asked.kinds,
                severities=asked.severities,
            )
        return dataclasses.replace(records, images=images)


# Scoring a run by another command ---------------------------------------------------------------

SCORED = ("data", "eval", "loader")  # sections that --mode=eval takes from a recipe
# Options that say who is trained on.
DIVIDING = ("name", "trial", "test_share", "seed", "val_ids", "train_ids")


def config_to_score(
    config: ml_collections.ConfigDict | None,
    workdir: pathlib.Path,
    overrides: Mapping[str, Any],
) -> ml_collections.ConfigDict:
    """The run's own config; a recipe that is given replaces what is tested on, and how.

    Raises:
      FileNotFoundError: `workdir` is not a run.
      ValueError: an override of a section that the run decides, or a model of one RegDB split
        that would be tested on another, half of whose people it was trained on.
    """
    own = runfolder.load_config(workdir)
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
                f"{key} is {was!r} in the run in {workdir}, whose model --mode=eval scores, and "
                f"{asked!r} on the command line; only {', '.join(SCORED)} options can be changed"
            )
    mixed = own.copy_and_resolve_references().unlock()
    for section in SCORED:
        mixed[section] = given[section]
    mixed.data.image_size = own.data.image_size  # the model's
    if own.data.name == given.data.name == "regdb" and own.data.trial != given.data.trial:
        raise ValueError(
            f"the model in {workdir} was trained on trial {own.data.trial} of RegDB, and half of "
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

    `own` is the config of the run in `workdir`, `config` what `config_to_score` made of it, and
    `classes` are from `runfolder.load_classes`.
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

    `persons` (int [C]) are the people it was trained on. RegDB's trials are told apart earlier;
    this is for one's own images, divided another way.
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
