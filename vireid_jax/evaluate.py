"""A model's scores: vectors become the rows of a table.

Headline rows are plain features under each protocol. More work at test time (mirrored images,
re-ranking) and corruption make separate, labelled rows.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.data import corrupt
from vireid_jax.embedding import (
    RAW_PIXELS,
    Embed,
    Embedded,
    Features,
    Fusions,
    accumulate,
    embed_records,
    join,
    mean_direction,
    pixel_features,
    pixels,
)
from vireid_jax.metrics import (
    check_permutations,
    combine,
    get_protocol,
    protocols,
    sampled_rows,
)
from vireid_jax.metrics.draws import draw_digest
from vireid_jax.metrics.results import file_name
from vireid_jax.options import check_ranges
from vireid_jax.runtime import files
from vireid_jax.runtime.writer import Progress
from vireid_jax.types import MODALITIES, VISIBLE, Records, Retrieval, Stopped

UNTRAINED = "untrained network"
FILE_ALONE = "weights of the file alone"  # the untrained network where init.weights names a file
STARTED = "pretrained start"  # the same with the weights that come with the package
BASELINES = (RAW_PIXELS, UNTRAINED, FILE_ALONE, STARTED)
FUSE = ("accumulate", "store")


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
    cmc: str | None = None,
    distance: str = "cosine",
    rerank: str | None = None,
    block_bytes: int = protocols.BLOCK_BYTES,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """Scores every feature under every protocol.

    Args:
      query, gallery: {feature: [Q, D]} and [G, D], rows as in `retrieval`. Protocols that search
        the other way swap the two here.
      retrieval: who and where the images are.
      similarity: {row: [Q, G]}, further rows, before the features.
      protocol_names: keys of `metrics.PROTOCOLS`.
      trials: draws to average over, where the protocol draws; None for its own number.
      gallery_draw, permutations, cmc, distance, rerank, block_bytes: see `metrics.evaluate`.
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
                cmc=cmc,
                distance=distance,
                rerank=rerank,
                trials=trials if found.protocol.drawn else None,
                block_bytes=block_bytes,
            )
            yield {"feature": feature, **result}


def save_results(results: Sequence[dict[str, Any]], folder: str | os.PathLike[str]) -> None:
    """Writes a JSON file for each result, per-query results included.

    A row that was measured in the same way replaces it; one with another number of draws, other
    images or any other difference in how it came about has its own name.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        name = file_name(result)
        files.write_whole(folder / name, json.dumps(result, indent=1, allow_nan=False) + "\n")


# What a recipe asks for --------------------------------------------------------------------------


class Options(NamedTuple):
    """A recipe's eval section; configs/common.py says what each option means."""

    protocols: tuple[str, ...]
    validation: str
    trials: int | None
    gallery: str
    rand_perm: str | None
    cmc: str
    distance: str
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
        check_ranges("eval", self._asdict())
        choices = {"gallery": ("agw", "official"), "rerank": ("none", "all", "queries")}
        choices |= {"distance": ("cosine", "euclidean"), "cmc": ("protocol", "id", "image")}
        for name, known in {**choices, "fuse": FUSE}.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"eval.{name} is {value!r}, expected one of {', '.join(known)}")
        if self.gallery == "official" and self.rand_perm is None:
            raise ValueError(
                "eval.gallery is 'official', whose draws are SYSU-MM01's rand_perm_cam.mat; name "
                "that file with --config.eval.rand_perm=FILE (it is in the evaluation code at "
                "https://github.com/wuancong/SYSU-MM01, not in the data set), or use gallery=agw"
            )
        if self.distance != "cosine" and self.flip:
            raise ValueError(
                f"eval.distance is {self.distance!r} with eval.flip=True, expected flip=False: "
                "a flip test takes the mean of unit features"
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
        if fusions and self.distance != "cosine":
            raise ValueError(
                f"eval.distance is {self.distance!r}, but {method} ranks by a sum of similarities, "
                "which has no distance; take --config.eval.distance=cosine"
            )
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
    """Refuses protocols that do not fit the data set, by a ValueError; looks at no image.

    Args:
      options: the recipe's eval section.
      test: the test set.
      val: the images of people who are held out from training, if some are.
      permutations: from `metrics.read_permutations`, if they are asked for.
      strict: they have to be SYSU-MM01's, all of them.
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
    searched = (("searches with", protocol.query), ("searches", protocol.gallery))
    for (what, modality), side in zip(searched, found.sides, strict=True):
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
    """Scores variables of a method as a recipe's eval section asks."""

    options: Options  # the eval section
    embed: Embed  # from `make_embed`
    mesh: Any  # see `devices.make_mesh`
    image_size: tuple[int, int]
    filter: str = "lanczos"  # of resizing
    fusions: Fusions = dataclasses.field(default_factory=dict)  # rows that are sums
    method: str = "the method"  # its name, for messages
    permutations: Any = None  # the fixed ones, if the options ask for them
    untrained: str = UNTRAINED  # the name of the row of the variables before training
    should_stop: Callable[[], bool] = lambda: False  # polled between batches; raises `Stopped`
    say: Callable[[str], None] = lambda text: None  # takes lines that tell how far the work is

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

        `fresh` makes the variables before training, for the baseline rows.
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
                untrained = self._embedded_drawn(fresh(), retrieval, names[0])
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

        `plain` is what the images alone gave, so that they are not embedded a second time.
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
        alone = plain[:2] if plain else self._features(variables, retrieval)
        turned = self._features(variables, retrieval, mirror=True)
        query, gallery = (
            {name: mean_direction(before[name], mirrored[name]) for name in before}
            for before, mirrored in zip(alone, turned, strict=True)
        )
        return Embedded(query, gallery, {})

    def _embedded_drawn(self, variables: Any, retrieval: Retrieval, name: str) -> Embedded:
        """The same, of the images that the protocol draws in some trial.

        Features of the others are ones, which nothing is compared with.
        """
        found = search(name, retrieval)
        trials = range(self.options.trials or found.protocol.trials)
        drawn = [found.rows(self.options.gallery, self.permutations, trial) for trial in trials]
        rows = [np.unique(np.concatenate(side)) for side in zip(*drawn, strict=True)]
        rows = rows[::-1] if found.turned else rows
        some = self._embedded(variables, Retrieval(*map(Records.take, retrieval, rows)))
        sizes = [len(side) for side in retrieval]

        def placed(values: np.ndarray, side: int) -> np.ndarray:
            out = np.ones((sizes[side], *values.shape[1:]), values.dtype)
            out[rows[side]] = values
            return out

        query, gallery = (
            {name: placed(x, side) for name, x in features.items()}
            for side, features in enumerate(some[:2])
        )
        similarity = {row: placed(placed(x, 0).T, 1).T for row, x in some.similarity.items()}
        return Embedded(query, gallery, similarity)

    def _features(
        self, variables: Any, sides: Sequence[Records], *, mirror: bool = False
    ) -> list[Features]:
        with Progress(self.say, "images embedded", sum(map(len, sides))) as progress:
            embed = partial(embed_records, self.embed, variables, mirror=mirror)
            options = self._embed_options(progress)
            return [join(embed(side, **options), self.fusions) for side in sides]

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
        rows, total = [], len(names) * len([*found.similarity, *found.query])
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
            cmc=None if self.options.cmc == "protocol" else self.options.cmc,
            distance=self.options.distance,
            block_bytes=self.options.memory_mb << 20,
            should_stop=self.should_stop,
        )
        own |= options
        for row in score(found.query, found.gallery, retrieval, found.similarity, **own):
            if row["gallery"] == "official":
                cells = sorted(self.permutations.items())
                row["permutations"] = draw_digest(f"{key} {rows.tolist()}" for key, rows in cells)
            if row["feature"] in self.fusions:
                row["fuse"] = self.options.fuse
            yield row

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
