"""The parts that a recipe describes, built: data, method, batches, mesh."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from vireid_jax import weights
from vireid_jax.data import arrays, corrupt, datasets, sampler
from vireid_jax.fused import FUSE
from vireid_jax.methods import get_build
from vireid_jax.methods.common import Backbone, with_backbone
from vireid_jax.metrics import get_protocol
from vireid_jax.runtime import devices
from vireid_jax.scoring import check_protocols
from vireid_jax.types import (
    Batch,
    Method,
    Split,
    Variables,
    check_batch,
    epochs_to_steps,
    train_labels,
)
from vireid_jax.weights import Report


class Parts(NamedTuple):
    """What a recipe describes, built: all that scoring needs."""

    split: Split
    method: Method
    image_size: tuple[int, int]
    mesh: jax.sharding.Mesh
    persons: np.ndarray  # int32 [C], the person behind each class
    weights: Report | None = None  # what was taken from the file of config.init


class Feed(NamedTuple):
    """What training needs besides."""

    batches: Callable[[int, int], Iterator[Batch]]
    batch: Any  # shapes and dtypes of a global batch
    steps_per_epoch: int


def build(config: ml_collections.ConfigDict, *, resuming: bool = False) -> tuple[Parts, Feed]:
    """Builds what the recipe describes; cheap checks come before the data is loaded.

    Args:
      config: the recipe.
      resuming: the run has a checkpoint, so that the file of config.init may have gone. Then
        `Parts.weights` is None and `Parts.method` starts from random weights.
    """
    num_ids, num_instances = config.sampler.num_ids, config.sampler.num_instances
    rows = devices.process_rows(num_ids * num_instances)
    _check_devices(**config.devices, rows=num_ids * num_instances)
    mesh = devices.make_mesh(fsdp=config.devices.fsdp)
    _check_share(rows.stop - rows.start, num_ids, num_instances)
    get_build(config.method.name)
    if config.loader.name not in LOADERS:
        raise ValueError(f"no loader {config.loader.name!r}; expected one of {sorted(LOADERS)}")
    check_eval(config)
    image_size = tuple(config.data.image_size)
    # A wrong file is told before the data is loaded, and is read once.
    pretrained = _read_weights(config["init"]["from"], resuming)
    split = datasets.load(**config.data, check=partial(_check_split, config))
    label, persons = train_labels(split.train)
    pk = dict(num_ids=num_ids, num_instances=num_instances)
    steps = config.sampler.steps_per_epoch
    if steps is None:
        steps = sampler.steps_per_epoch(label, split.train.modality, rule=config.sampler.rule, **pk)
    method, report = make_method(config, len(persons), steps, pretrained)

    def plan(epoch: int) -> Any:
        return sampler.plan(
            label,
            split.train.modality,
            seed=config.seed,
            epoch=epoch,
            steps_per_epoch=steps,
            rule=config.sampler.rule,
            replacement=config.sampler.replacement,
            **pk,
        )

    def batches(start: int, stop: int) -> Iterator[Batch]:
        load = LOADERS[config.loader.name](image_size, _filter(config), config.loader.prefetch)
        local_ids = (rows.stop - rows.start) // num_instances
        for n, batch in enumerate(
            load(split.train, label, plan, start=start, stop=stop, rows=rows)
        ):
            if not n:
                check_batch(batch, num_ids=local_ids, num_instances=num_instances)
            yield batch

    count = num_ids * num_instances
    image = jax.ShapeDtypeStruct((count, *image_size, 3), np.uint8)
    label_shape, camera = (jax.ShapeDtypeStruct((count, *s), np.int32) for s in ((), (2,)))
    batch = {"visible": image, "infrared": image, "label": label_shape, "camera": camera}
    parts = Parts(split, method, image_size, mesh, persons, report)
    return parts, Feed(batches, batch, steps)


def build_to_score(config: ml_collections.ConfigDict, persons: np.ndarray | None) -> Parts:
    """Builds what scoring a trained model needs; its data set may be another, without training.

    Args:
      config: the recipe; its init section is not used, since the run's checkpoint is.
      persons: int [C], the people that the model was trained on; None takes the data set's.
    """
    check_eval(config)
    get_build(config.method.name)

    def check(split: Split) -> None:
        check_protocols(config, split.test, None)

    split = datasets.load(**config.data, check=check)
    if persons is None:
        persons = train_labels(split.train)[1]
    method, _ = make_method(config, len(persons), steps_per_epoch=1)  # of no matter to embedding

    return Parts(split, method, tuple(config.data.image_size), devices.make_mesh(), persons)


def check_eval(config: ml_collections.ConfigDict) -> None:
    """Refuses an eval section that could not be carried out, before anything is loaded."""
    protocols = config.eval.protocols
    if isinstance(protocols, str) or not protocols or len(set(protocols)) < len(protocols):
        raise ValueError(
            f"eval.protocols is {protocols!r}, expected names without repetition in a tuple, as in "
            "--config.eval.protocols=\"('sysu/all/single', 'sysu/indoor/single')\""
        )
    for name in (*protocols, config.eval.validation):
        get_protocol(name)
    for name in ("trials", "batch_size", "corrupt_repeats", "memory_mb"):
        if config.eval[name] is not None and config.eval[name] < 1:
            raise ValueError(f"eval.{name} is {config.eval[name]}, expected at least 1")
    choices = {"gallery": ("agw", "official"), "rerank": ("none", "all", "queries"), "fuse": FUSE}
    for name, known in choices.items():
        # Runs from before there were fused rows have no eval.fuse.
        if name in config.eval and config.eval[name] not in known:
            raise ValueError(
                f"eval.{name} is {config.eval[name]!r}, expected one of {', '.join(known)}"
            )
    if config.eval.gallery == "official" and config.eval.rand_perm is None:
        raise ValueError(
            "eval.gallery is 'official', whose draws are those of SYSU-MM01's rand_perm_cam.mat; "
            "name that file with --config.eval.rand_perm=FILE (it is in the evaluation code at "
            "https://github.com/wuancong/SYSU-MM01, not in the data set), or use gallery=agw"
        )
    if config.eval.corrupt is not None:
        corrupt.parse(config.eval.corrupt)
        if config.eval.flip or config.eval.rerank != "none":
            raise ValueError(
                f"eval.corrupt is {config.eval.corrupt!r} with eval.flip={config.eval.flip} and "
                f"eval.rerank={config.eval.rerank}, expected flip=False and rerank=none: corrupted "
                "images are scored by plain features; score flip and re-ranking by another command"
            )


def _check_split(config: ml_collections.ConfigDict, split: Split) -> None:
    """Refuses a data set that the recipe cannot be trained or scored on; looks at no image."""
    if not len(split.train):
        raise ValueError(
            f"{split.name} has no images to train on: whoever has images of both modalities is "
            "tested on (data.test_share is 1?) or has too few (python -m vireid_jax.data show "
            "names them); to score a trained model on all of them, use --mode=eval with the "
            "--workdir of its run"
        )
    label, _ = train_labels(split.train)
    # A whole epoch: what cannot be sampled is refused before anything is traced.
    sampler.plan(label, split.train.modality, seed=config.seed, epoch=0, **config.sampler)
    check_protocols(config, split.test, split.val)


def _check_devices(*, fsdp: int, bn_groups: int, accumulate: int, remat: bool, rows: int) -> None:
    """Refuses what no batch can be cut into; `devices.make_mesh` knows what fits the devices."""
    del remat
    for name, value in dict(fsdp=fsdp, bn_groups=bn_groups, accumulate=accumulate).items():
        if value < 1:
            raise ValueError(f"devices.{name} is {value}, expected at least 1")
    for name, value in dict(bn_groups=bn_groups, accumulate=accumulate).items():
        if rows % value:
            raise ValueError(
                f"devices.{name} is {value}, which does not divide a batch of {rows} rows "
                f"(sampler.num_ids x sampler.num_instances); choose a divisor of {rows}"
            )
    if rows // accumulate % bn_groups:
        raise ValueError(
            f"devices.bn_groups is {bn_groups}, which does not divide a chunk of "
            f"{rows // accumulate} rows (devices.accumulate is {accumulate}); choose a divisor"
        )
    if rows // accumulate % jax.device_count():
        raise ValueError(
            f"devices.accumulate is {accumulate}: chunks of {rows // accumulate} rows do not "
            f"divide over {jax.device_count()} devices; choose fewer chunks, or a larger batch"
        )


def _check_share(rows: int, num_ids: int, num_instances: int) -> None:
    """Refuses to cut an identity between processes: a process loads whole ones."""
    processes = jax.process_count()
    if rows % num_instances:
        low = max(num_ids // processes, 1) * processes
        raise ValueError(
            f"sampler.num_ids is {num_ids}, which does not divide over {processes} processes; "
            f"choose {low} or {low + processes}"
        )


def _read_weights(path: str | None, resuming: bool) -> tuple[str, Mapping[str, np.ndarray]] | None:
    """The file that the recipe's init section names, and its arrays."""
    if path is None:
        return None
    try:
        return path, weights.read(path)
    except FileNotFoundError as error:
        if not resuming:
            raise
        logging.warning("%s; going on without it, from the run's checkpoint", error)
        return None


def make_method(
    config: ml_collections.ConfigDict,
    num_classes: int,
    steps_per_epoch: int,
    pretrained: tuple[str, Mapping[str, np.ndarray]] | None = None,
) -> tuple[Method, Report | None]:
    """The method, starting from the arrays of a file if there are some: (path, arrays)."""
    options = config.method.to_dict()
    build = get_build(options.pop("name"))
    facts = {
        "num_classes": num_classes,
        "image_size": tuple(config.data.image_size),
        "steps_per_epoch": steps_per_epoch,
        "num_steps": epochs_to_steps(config.train.epochs, steps_per_epoch),
        "num_ids": config.sampler.num_ids,
        "num_instances": config.sampler.num_instances,
        # Runs from before there was a second view have no such key.
        "second_view": config.augment.get("second_view", "none") != "none",
    }
    options |= {k: v for k, v in config.devices.items() if k in Backbone._fields}
    # A method has a parameter for each fact of the run that it depends on, and for no other.
    wanted = inspect.signature(build).parameters
    if facts["second_view"] and "second_view" not in wanted:
        raise ValueError(
            f"augment.second_view is {config.augment.second_view!r}, but {config.method.name} has "
            "no use for a second view of the visible images; expected none"
        )
    method = build(**{k: v for k, v in facts.items() if k in wanted}, **with_backbone(options))
    if pretrained is None:
        return method, None
    path, content = pretrained
    shapes = jax.eval_shape(method.init, jax.random.key(config.seed))
    report = weights.fill(content, shapes, source=path)[1]  # refuses what does not fit

    def init(key: Any) -> Variables:
        return weights.fill(content, method.init(key), source=path)[0]

    return method._replace(init=init), report


def _filter(config: ml_collections.ConfigDict) -> str:
    return config.data.get("filter", "lanczos")  # the embedded data is rendered at its size


def _arrays(
    image_size: tuple[int, int], filter: str, prefetch: int
) -> Callable[..., Iterator[Batch]]:
    return partial(arrays.batches, image_size=image_size, filter=filter, prefetch=prefetch)


def _tfdata(
    image_size: tuple[int, int], filter: str, prefetch: int
) -> Callable[..., Iterator[Batch]]:
    from vireid_jax.data import tfdata

    return partial(tfdata.batches, image_size=image_size, filter=filter, prefetch=prefetch)


LOADERS = {"arrays": _arrays, "tfdata": _tfdata}
