"""A recipe's method and steps without its data: shapes follow from published facts."""

import copy
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from vireid_jax import build, evaluate, optim, train
from vireid_jax.data import augment, sampler
from vireid_jax.data.readers import get_reader, sysu
from vireid_jax.runtime import devices
from vireid_jax.types import INFRARED, VISIBLE, Method


class Facts(NamedTuple):
    """What a recipe's training data comes to."""

    classes: int
    visible: int  # images
    infrared: int


class Built(NamedTuple):
    """Steps to compile, and the shapes to compile them for."""

    step: Any  # jitted, (state, batch)
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    embed: Any  # jitted, (variables, images, modality)
    images: jax.ShapeDtypeStruct
    method: Method


def facts(config: ml_collections.ConfigDict, num_classes: int | None = None) -> Facts:
    """People and images of the recipe's data set, from what is published.

    Args:
      config: the recipe.
      num_classes: people to train on, where they are not known: of your own images.

    Raises:
      ValueError: they are not known and not given.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
    data = config.data
    if data.name == "synthetic":
        ids = data.train_ids
        # Before each of four visible and two infrared cameras.
        found = Facts(ids, 4 * ids * data.train_visible, 2 * ids * data.train_infrared)
    elif (counts := get_reader(data.name).PUBLISHED) is not None:
        if held := data.val_ids:
            out = sysu.HELD_OUT if data.name == "sysu" else (held, *(
                round(n * held / counts[0]) for n in counts[1:]
            ))  # fmt: skip
            counts = tuple(a - b for a, b in zip(counts, out, strict=True))
        found = Facts(*counts)
    elif num_classes is None:
        raise ValueError(
            f"how many people are trained on is not known of the data set {data.name!r}; expected "
            "--num_classes=N (python -m vireid_jax.data show counts them)"
        )
    else:
        found = Facts(num_classes, 10 * num_classes, 10 * num_classes)  # of no matter to shapes
    if num_classes is not None and num_classes != found.classes:
        scale = num_classes / found.classes
        found = Facts(num_classes, round(scale * found.visible), round(scale * found.infrared))
    if config.sampler.num_ids > found.classes:
        raise ValueError(
            f"sampler.num_ids is {config.sampler.num_ids}, but {data.name} has {found.classes} "
            "people to train on, and a batch has each at most once"
        )
    return found


def resized(config: ml_collections.ConfigDict, rows: int, classes: int) -> Any:
    """The recipe with another number of rows in a batch.

    More identities, as far as there are people: beyond that, more images of each.

    Raises:
      ValueError: no such batch can be made.
    """
    config = copy.deepcopy(config)
    instances = config.sampler.num_instances
    if rows % instances:
        raise ValueError(
            f"a batch of {rows} rows is no multiple of sampler.num_instances, {instances}; choose "
            "another topology or sampler.num_ids"
        )
    ids = rows // instances
    more = next(n for n in range(1, ids + 1) if ids % n == 0 and ids // n <= classes)
    config.sampler.num_ids, config.sampler.num_instances = ids // more, instances * more
    return config


def enlarged(config: ml_collections.ConfigDict, devices: int, classes: int) -> Any:
    """The recipe with a batch a little larger, of rows that divide as its own do."""
    ids, instances = config.sampler.num_ids, config.sampler.num_instances
    d = config.devices
    unit = math.lcm(devices * d.accumulate, devices * d.bn_groups, instances)
    return resized(config, ids * instances + unit, classes)


def check_rows(config: ml_collections.ConfigDict, devices: int) -> None:
    """Refuses a batch whose rows do not divide over the devices, with the nearest `num_ids`.

    Raises:
      ValueError: they do not, or the recipe's devices section has impossible values.
    """
    ids, instances = config.sampler.num_ids, config.sampler.num_instances
    if ids < 1 or instances < 1:
        raise ValueError(
            f"sampler.num_ids is {ids} and sampler.num_instances {instances}, expected at least 1"
        )
    if ids * instances % devices:
        unit = devices // math.gcd(devices, instances)
        low = ids // unit * unit
        near = f"{low} or {low + unit}" if low else str(unit)
        raise ValueError(
            f"a batch of {ids} identities x {instances} images, {ids * instances} rows, does not "
            f"divide over {devices} chips; choose --config.sampler.num_ids={near}"
        )


def assemble(config: ml_collections.ConfigDict, found: Facts, mesh: jax.sharding.Mesh) -> Built:
    """The real train step and embed step of a recipe on a mesh, and their shapes.

    Nothing is computed. The kernels are XLA's, whatever the recipe has: "auto" would take those
    for the CPU on a machine that has only that.

    Args:
      config: the recipe.
      found: from `facts`.
      mesh: of devices that need not be there.

    Raises:
      ValueError: by the package, for whatever is wrong with the recipe.
    """
    config = copy.deepcopy(config)
    config.method.kernels = "xla"
    check_rows(config, mesh.size)
    ids, instances = config.sampler.num_ids, config.sampler.num_instances
    steps = config.sampler.steps_per_epoch
    if steps is None:
        steps = _steps_per_epoch(config, found)
    method, _ = build.make_method(config, found.classes, steps)
    transform, learning_rate = optim.make(
        steps_per_epoch=steps, epochs=config.train.epochs, **config.optim
    )
    step = train.make_train_step(
        method,
        partial(augment.augment, **config.augment),
        transform,
        learning_rate,
        mesh=mesh,
        seed=config.seed,
    )
    size = tuple(config.data.image_size)
    count = ids * instances
    image = jax.ShapeDtypeStruct((count, *size, 3), np.uint8)
    label, camera = (jax.ShapeDtypeStruct((count, *s), np.int32) for s in ((), (2,)))
    embedded = -(-config.eval.batch_size // mesh.size) * mesh.size
    state = train.abstract_state(method, transform)
    placed = devices.abstract(state, mesh)
    return Built(
        step,
        placed,
        {"visible": image, "infrared": image, "label": label, "camera": camera},
        evaluate.make_embed(method, mesh),
        jax.ShapeDtypeStruct((embedded, *size, 3), np.uint8),
        method,
    )


def _steps_per_epoch(config: ml_collections.ConfigDict, found: Facts) -> int:
    """By the sampler's rule, as if all people had equally many images; schedules depend on it."""
    label, modality = [], []
    for number, images in ((VISIBLE, found.visible), (INFRARED, found.infrared)):
        label.append(np.arange(max(images, found.classes)) % found.classes)
        modality.append(np.full(len(label[-1]), number))
    return sampler.steps_per_epoch(
        np.concatenate(label).astype(np.int32),
        np.concatenate(modality).astype(np.int8),
        num_ids=config.sampler.num_ids,
        num_instances=config.sampler.num_instances,
        rule=config.sampler.rule,
    )
