"""Scores of a trained model as a recipe's eval section asks for them: rows for a table.

The headline rows are plain features under each protocol. Rows that improve on them by more work
at test time (mirrored images, re-ranking) and rows under corruption are separate and labelled.
"""

import dataclasses
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import jax
import ml_collections
import numpy as np

from vireid_jax import evaluate, fused
from vireid_jax.data import corrupt
from vireid_jax.evaluate import Embed, Features
from vireid_jax.fused import FUSE, Embedded, mean_direction
from vireid_jax.metrics import (
    check_permutations,
    combine,
    get_protocol,
    read_permutations,
    sampled_rows,
)
from vireid_jax.runtime import devices
from vireid_jax.types import Records, Retrieval, Stopped

RAW_PIXELS, UNTRAINED = evaluate.RAW_PIXELS, "untrained network"
FILE_ALONE = "weights of the file alone"  # the untrained network where init.from names a file
BASELINES = (RAW_PIXELS, UNTRAINED, FILE_ALONE)


Sides = tuple[Features, Features]  # of the queries and the gallery of a Retrieval


def check_protocols(
    config: ml_collections.ConfigDict, test: Retrieval, val: Retrieval | None
) -> Any:
    """Refuses protocols that do not fit the data set, before anything long is begun.

    Needs to know who and where the images are, and looks at none.

    Returns:
      The fixed permutations if the recipe asks for them, otherwise None.

    Raises:
      ValueError: no images to search with or among, no query with a match, cameras of another
        data set, an image of the official gallery that is missing, more trials than it has, or a
        file that does not hold the official permutations.
      FileNotFoundError: that file does not exist.
    """
    section = config.eval
    permutations = None
    if section.gallery == "official":
        permutations = read_permutations(section.rand_perm)
        if config.data.name == "sysu" and config.data.strict:
            check_permutations(permutations, np.unique(test.query.person).tolist())
    for name in section.protocols:
        _check_protocol(name, "test", test, section.gallery, permutations)
        protocol = get_protocol(name)
        if protocol.drawn:  # the last trial needs images, or a row of the file, that others do not
            last = (section.trials or protocol.trials) - 1
            _rows(name, evaluate.directed(protocol, test), section.gallery, permutations, last)
    if val is not None:
        _check_protocol(section.validation, "validation", val, "agw", None)
    return permutations


def _check_protocol(
    name: str, part: str, retrieval: Retrieval, gallery: str, permutations: Any
) -> None:
    protocol = get_protocol(name)
    sides = evaluate.directed(protocol, retrieval)
    modalities = (protocol.query, protocol.gallery)
    for what, modality, side in zip(("searches with", "searches"), modalities, sides, strict=True):
        if not len(side):
            raise ValueError(
                f"{name} {what} {modality} images, and the {part} people have none; check how the "
                "data set is divided"
            )
    try:
        rows = _rows(name, sides, gallery, permutations)
    except ValueError as error:
        if permutations is not None:  # it may be the file that does not fit
            raise
        raise ValueError(
            f"{error}; leave {name} out of eval.protocols, or complete the data set"
        ) from error
    query, found = map(Records.take, sides, rows)
    for person in np.intersect1d(query.person, found.person):
        q, g = query.person == person, found.person == person
        if protocol.exclude is None or not np.all(
            protocol.exclude(query.person[q], query.camera[q], found.person[g], found.camera[g])
        ):
            return
    rule = f" ({protocol.explain})" if protocol.exclude is not None else ""
    raise ValueError(
        f"{name}: none of the {len(query):,} {protocol.query} images of the {part} people that it "
        f"searches with has its person among the {len(found):,} {protocol.gallery} ones that it "
        f"searches{rule}; "
        + ("leave it out of eval.protocols" if part == "test" else "choose another eval.validation")
        + ", or complete the data set"
    )


def _rows(
    name: str, sides: Retrieval, gallery: str, permutations: Any, trial: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of the queries and of the gallery a trial of a protocol uses."""
    return sampled_rows(
        name,
        query_person=sides.query.person,
        query_camera=sides.query.camera,
        query_name=sides.query.name,
        gallery_person=sides.gallery.person,
        gallery_camera=sides.gallery.camera,
        gallery_name=sides.gallery.name,
        gallery=gallery,
        permutations=permutations,
        trial=trial,
    )


class Scorer:
    """What is needed to score variables: a recipe, its data, the mesh, and when to stop.

    Args:
      config: the recipe; its eval section says what is scored.
      image_size: (height, width) in pixels.
      mesh: see `devices.make_mesh`.
      embed: from `evaluate.make_embed`.
      fusions: the method's rows that are sums of similarities.
      should_stop: polled between batches; `Stopped` is raised when it says so.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        image_size: tuple[int, int],
        mesh: jax.sharding.Mesh,
        embed: Embed,
        fusions: fused.Fusions = MappingProxyType({}),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.image_size, self.mesh = config, image_size, mesh
        self.embed, self.fusions, self.should_stop = embed, fusions, should_stop
        self._permutations: Any = None

    @property
    def _filter(self) -> str:
        return self.config.data.get("filter", "lanczos")  # embedded data is rendered at its size

    def check(self, test: Retrieval, val: Retrieval | None) -> None:
        """Refuses protocols that do not fit the data set: see `check_protocols`."""
        if self._accumulates and self.config.eval.rerank != "none":
            raise ValueError(
                f"eval.rerank is {self.config.eval.rerank!r}, but similarities of "
                f"{self.config.method.name} are accumulated and nothing of the gallery is kept to "
                "compare it with itself; add --config.eval.fuse=store, which keeps a wide vector "
                "for each image"
            )
        self._permutations = check_protocols(self.config, test, val)

    def validate(self, variables: Any, retrieval: Retrieval) -> dict[str, float]:
        """mAP, R1 and mINP of the headline feature under the validation protocol."""
        found = self._embedded(variables, retrieval)
        names = [self.config.eval.validation]
        result = next(self._plain(found, retrieval, names, gallery="agw"))
        scores = {name: result["metrics"][name] for name in ("mAP", "R1", "mINP")}
        return scores | {"chance_mAP": result["chance"]["mAP"]}

    def test(self, variables: Any, retrieval: Retrieval, fresh: Any = None) -> list[dict[str, Any]]:
        """Every row that the eval section asks for.

        Args:
          variables: on the mesh.
          retrieval: the test set.
          fresh: () -> the variables before training, for the baseline rows.
        """
        names = self.config.eval.protocols
        if self.config.eval.corrupt is not None:
            return list(self._corrupted(variables, retrieval))
        found = self._embedded(variables, retrieval)
        features = found[:2]
        results = list(self._plain(found, retrieval, names))
        if self.config.eval.flip:
            both = self._flipped(variables, retrieval, features)
            results += [r | {"flip": True} for r in self._plain(both, retrieval, names)]
        if self.config.eval.rerank != "none":
            headline = _each(lambda side: {name: side[name] for name in list(side)[:1]}, features)
            results += self._plain(
                Embedded(*headline, {}), retrieval, names, rerank=self.config.eval.rerank
            )
        if self.config.eval.baselines:
            pixels = _each(
                lambda r: evaluate.pixel_features(r, self.image_size, self._filter), retrieval
            )
            results += self._plain(Embedded(*pixels, {}), retrieval, names[:1])
            if fresh is not None:
                label = UNTRAINED if self.config["init"]["from"] is None else FILE_ALONE
                untrained = self._embedded(fresh(), retrieval)
                result = next(self._plain(untrained, retrieval, names[:1]))
                results.append(result | {"feature": label})
        return results

    @property
    def _accumulates(self) -> bool:
        # Runs from before there were fused rows have no such key, and no such methods.
        return bool(self.fusions) and self.config.eval.fuse == FUSE[0]

    def _embedded(self, variables: Any, retrieval: Retrieval) -> Embedded:
        if self._accumulates:
            return self._accumulated(variables, retrieval)
        return Embedded(*self._features(variables, retrieval), {})

    def _flipped(self, variables: Any, retrieval: Retrieval, features: Sides) -> Embedded:
        """The same from images and their mirror images together."""
        if self._accumulates:
            return self._accumulated(variables, retrieval, flip=True)
        mirrored = self._features(variables, retrieval, mirror=True)
        both = _each(
            lambda a, b: {name: mean_direction(a[name], b[name]) for name in a}, features, mirrored
        )
        return Embedded(*both, {})

    def _accumulated(self, variables: Any, retrieval: Retrieval, *, flip: bool = False) -> Embedded:
        return fused.accumulate(
            self.embed, variables, retrieval, self.fusions, flip=flip, **self._options
        )

    @property
    def _options(self) -> dict[str, Any]:
        return dict(
            mesh=self.mesh,
            image_size=self.image_size,
            filter=self._filter,
            batch_size=self.config.eval.batch_size,
            should_stop=self.should_stop,
        )

    def _features(self, variables: Any, retrieval: Retrieval, *, mirror: bool = False) -> Sides:
        query, gallery = (
            fused.stored(
                evaluate.embed_records(
                    self.embed, variables, records, mirror=mirror, **self._options
                ),
                self.fusions,
            )
            for records in retrieval
        )
        return query, gallery

    def _plain(
        self,
        found: Embedded,
        retrieval: Retrieval,
        names: Any,
        *,
        rerank: str | None = None,
        trials: int | None = None,
        gallery: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        section = self.config.eval
        return evaluate.score(
            found.query,
            found.gallery,
            retrieval,
            found.similarity,
            protocol_names=names,
            trials=section.trials if trials is None else trials,
            gallery_draw=gallery or section.gallery,
            permutations=self._permutations,
            rerank=rerank,
            block_bytes=section.memory_mb << 20,
            should_stop=self.should_stop,
        )

    def _corrupted(self, variables: Any, retrieval: Retrieval) -> Iterator[dict[str, Any]]:
        """Mean over repeats with new corruptions, as CIL-ReID (NeurIPS 2021) and MUN, table 5.

        Where a protocol draws its gallery, the first draw alone is used, as in CIL's code.
        """
        section = self.config.eval
        asked = corrupt.parse(section.corrupt)
        for name in section.protocols:
            some = self._first_trial(name, retrieval)
            clean = None if self._accumulates else self._features(variables, some)
            repeats: list[list[dict[str, Any]]] = []
            for repeat in range(section.corrupt_repeats):
                damaged = Retrieval(*(self._damage(records, asked, repeat) for records in some))
                if clean is None:
                    found = self._accumulated(variables, damaged)
                else:
                    sides = []
                    for before, after, features in zip(some, damaged, clean, strict=True):
                        if after is before:  # nothing of this side is corrupted
                            sides.append(features)
                        else:
                            sides.append(self._one_side(variables, after))
                    found = Embedded(sides[0], sides[1], {})
                rows = self._plain(found, damaged, [name], trials=1)
                asked_for = {"corrupt": section.corrupt, "corrupt_seed": section.corrupt_seed}
                repeats.append([r | asked_for for r in rows])
            for results in zip(*repeats, strict=True):
                yield combine(results, over="repeats")

    def _one_side(self, variables: Any, records: Records) -> Features:
        return self._features(variables, Retrieval(records, records.take(np.arange(0))))[0]

    def _first_trial(self, name: str, retrieval: Retrieval) -> Retrieval:
        """The images that the first trial uses: no other needs corrupting."""
        protocol = get_protocol(name)
        sides = evaluate.directed(protocol, retrieval)
        rows = _rows(name, sides, self.config.eval.gallery, self._permutations)
        some = Retrieval(*(side.take(r) for side, r in zip(sides, rows, strict=True)))
        return evaluate.directed(protocol, some)

    def _damage(self, records: Records, asked: corrupt.Spec, repeat: int) -> Records:
        """The records with the modalities that are asked for corrupted; the same if none is."""
        rows = np.flatnonzero(np.isin(records.modality, asked.modalities))
        if not len(rows):
            return records
        images = np.empty((len(records), *self.image_size, 3), np.uint8)
        step = self.config.eval.batch_size
        for at in range(0, len(records), step):
            if self.should_stop():
                raise Stopped
            some = np.arange(at, min(at + step, len(records)))
            part = evaluate.pixels(records, some, self.image_size, self._filter)
            images[some] = part
            hit = np.isin(some, rows)
            images[some[hit]] = corrupt.corrupt_images(
                part[hit],
                [records.name[r] for r in some[hit].tolist()],
                seed=self.config.eval.corrupt_seed,
                repeat=repeat,
                kinds=asked.kinds,
                severities=asked.severities,
            )
        return dataclasses.replace(records, images=images)


def fresh_variables(init: Callable[[Any], Any], seed: int, mesh: jax.sharding.Mesh) -> Any:
    """The variables before training, on the mesh."""
    return devices.place(dict(init(jax.random.key(seed))), mesh)


def _each(function: Callable[..., Features], *sides: Any) -> Sides:
    query, gallery = (function(*of_a_side) for of_a_side in zip(*sides, strict=True))
    return query, gallery
