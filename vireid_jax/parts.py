"""The parts that a recipe describes, built: data, method, batches, mesh."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from vireid_jax import sharding
from vireid_jax.data import arrays, datasets, sampler
from vireid_jax.methods import get_build
from vireid_jax.metrics import get_protocol
from vireid_jax.types import Batch, Method, Split, check_batch, train_labels


class Parts(NamedTuple):
    """What a recipe describes, built."""

    split: Split
    method: Method
    batches: Callable[[int, int], Iterator[Batch]]
    batch: Any  # shapes and dtypes of a global batch
    steps_per_epoch: int
    image_size: tuple[int, int]
    mesh: jax.sharding.Mesh


def build(config: ml_collections.ConfigDict) -> Parts:
    """Builds what the recipe describes; cheap checks come before the data is loaded."""
    num_ids, num_instances = config.sampler.num_ids, config.sampler.num_instances
    rows = sharding.process_rows(num_ids * num_instances)
    method_options = config.method.to_dict()
    make_method = get_build(method_options.pop("name"))
    if config.loader.name not in LOADERS:
        raise ValueError(f"no loader {config.loader.name!r}; expected one of {sorted(LOADERS)}")
    for name in (*config.eval.protocols, config.eval.validation):
        get_protocol(name)
    for name in ("trials", "batch_size"):
        if config.eval[name] < 1:
            raise ValueError(f"eval.{name} is {config.eval[name]}, expected at least 1")
    image_size = tuple(config.data.image_size)
    split = datasets.load(**config.data)
    label, persons = train_labels(split.train)
    pk = dict(num_ids=num_ids, num_instances=num_instances)
    steps = config.sampler.steps_per_epoch
    if steps is None:
        steps = sampler.steps_per_epoch(label, split.train.modality, **pk)
    method = make_method(
        num_classes=len(persons), image_size=image_size, steps_per_epoch=steps, **method_options
    )

    def plan(epoch: int) -> Any:
        return sampler.plan(
            label,
            split.train.modality,
            seed=config.seed,
            epoch=epoch,
            steps_per_epoch=steps,
            replacement=config.sampler.replacement,
            **pk,
        )

    plan(0)  # refuses what cannot be sampled, before anything is traced

    def batches(start: int, stop: int) -> Iterator[Batch]:
        load = LOADERS[config.loader.name](image_size, config.loader.prefetch)
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
    return Parts(split, method, batches, batch, steps, image_size, sharding.make_mesh())


def _arrays(image_size: tuple[int, int], prefetch: int) -> Callable[..., Iterator[Batch]]:
    return arrays.batches


def _tfdata(image_size: tuple[int, int], prefetch: int) -> Callable[..., Iterator[Batch]]:
    from vireid_jax.data import tfdata  # TensorFlow: seconds and 600 MB, only when asked for

    return partial(tfdata.batches, image_size=image_size, prefetch=prefetch)


LOADERS = {"arrays": _arrays, "tfdata": _tfdata}
