"""From a recipe to what it describes: data, method, batches, mesh; and what is refused early.

Each section of a recipe is splatted into one callable without `**kwargs`, so that a key that is
misspelt or that nothing takes fails.
"""

import importlib.util
import inspect
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging
from clu import parameter_overview

from vireid_jax import optim, weights
from vireid_jax.data import arrays, augment, datasets, sampler
from vireid_jax.embedding import make_embed
from vireid_jax.evaluate import (
    FILE_ALONE,
    STARTED,
    UNTRAINED,
    Options,
    Scorer,
    check_protocols,
)
from vireid_jax.methods import get_build
from vireid_jax.methods.common import Backbone, with_backbone
from vireid_jax.metrics import read_permutations
from vireid_jax.options import (
    RENDERED,
    OptionError,
    check_keys,
    check_ranges,
    check_types,
    full_path,
    hints_of,
)
from vireid_jax.runtime import devices, preemption, runfolder, writer
from vireid_jax.types import (
    Batch,
    Method,
    Records,
    Retrieval,
    Split,
    Stopped,
    Variables,
    check_batch,
    epochs_to_steps,
    train_labels,
)
from vireid_jax.weights import Report, check_unused, shipped
from vireid_jax.weights import read as read_weights

FILTER = "lanczos"  # of data without the option: it is rendered at its size


class Parts(NamedTuple):
    """What a recipe describes, built: all that scoring needs."""

    split: Split
    method: Method
    image_size: tuple[int, int]
    mesh: jax.sharding.Mesh
    persons: np.ndarray  # int32 [C], the person behind each class
    scorer: Scorer
    weights: Report | None = None  # what was taken from the file of config.init
    file_is_gone: bool = False  # the run began with a file that these parts were built without
    files: Records | None = None  # one's own images to train on, undecoded


class Feed(NamedTuple):
    """What training needs besides."""

    batches: Callable[[int, int], Iterator[Batch]]
    batch: Any  # shapes and dtypes of a global batch
    steps_per_epoch: int
    augment: Callable[[Any, Batch], Batch]


class Devices(NamedTuple):
    """A recipe's devices section: how a step is laid out."""

    fsdp: int
    bn_groups: int
    accumulate: int
    remat: bool

    def mesh(self, num_ids: int, num_instances: int) -> jax.sharding.Mesh:
        """The mesh of a step on that batch; refuses what cannot be cut that way."""
        rows = num_ids * num_instances
        check_ranges("devices", self._asdict())
        for name in ("bn_groups", "accumulate"):
            if rows % (value := getattr(self, name)):
                raise ValueError(
                    f"devices.{name} is {value}, which does not divide a batch of {rows} rows "
                    f"(sampler.num_ids x sampler.num_instances); choose a divisor of {rows}"
                )
        devices.check_rows(num_ids, num_instances, jax.device_count())
        chunk = rows // self.accumulate
        if chunk % self.bn_groups:
            raise ValueError(
                f"devices.bn_groups is {self.bn_groups}, which does not divide a chunk of {chunk} "
                f"rows (devices.accumulate is {self.accumulate}); choose a divisor"
            )
        if chunk % jax.device_count():
            raise ValueError(
                f"devices.accumulate is {self.accumulate}: chunks of {chunk} rows do not divide "
                f"over {jax.device_count()} devices; choose fewer chunks, or a larger batch"
            )
        return devices.make_mesh(fsdp=self.fsdp)


# Facts of a run, which are no options: a method has a parameter for each that it depends on.
FACTS = (
    *("num_classes", "image_size", "steps_per_epoch", "num_steps", "num_ids", "num_instances"),
    *("second_view", "backbone"),
)
SCORED = ("data", "eval", "loader")  # sections that --mode=eval takes from a recipe
TOP = {"run_name": str, "seed": int, "allow_changes": bool}  # keys outside of sections
_MOST_STEPS = 2**31 - 1  # that a step counter of 32 bits holds
_TRIED = 100  # steps of an epoch, where their number does not matter


def section_types(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
    """{section: {key: its type}}, by the signatures of what takes them; not of "train".

    Raises:
      ValueError: there is no such method or data set.
    """
    build = hints_of(get_build(config.method.name))
    own = {k: v for k, v in build.items() if k not in FACTS}
    shared = {k: v for k, v in hints_of(Backbone).items() if k not in Devices._fields}
    planned = ("label", "modality", "seed", "epoch")
    takes = {
        "data": datasets.types_of(config.data.name),
        "init": hints_of(_read_weights),
        "sampler": {k: v for k, v in hints_of(sampler.plan).items() if k not in planned},
        "loader": hints_of(_loader),
        "augment": hints_of(augment.augment),
        "method": {"name": str, **(shared if "backbone" in build else {}), **own},
        "optim": hints_of(optim.make),
        "devices": hints_of(Devices),
        "eval": hints_of(Options),
    }
    given = {"init": ("resuming", "depth", "width"), "augment": ("key", "batch")}
    given["optim"] = ("steps_per_epoch", "epochs")
    return {s: {k: v for k, v in h.items() if k not in given.get(s, ())} for s, h in takes.items()}


def check(
    config: ml_collections.ConfigDict,
    *,
    train: Callable[..., Any] | None = None,
    sections: Collection[str] = (),
) -> None:
    """Refuses keys, types and numbers of a recipe; loads nothing and is done at once.

    Starts no backend of JAX: several processes have not found each other yet.

    Args:
      config: the recipe.
      train: what takes its train section.
      sections: that are looked at; () for all.

    Raises:
      OptionError: (a ValueError) naming the key.
      ValueError: options do not go together.
    """
    content = config.to_dict()
    top = {k: v for k, v in content.items() if not isinstance(v, Mapping)}
    named = {"name": str}
    for name, needed in (("method", named), ("data", {**named, "image_size": Sequence})):
        check_keys("", content, [name], content)
        if not isinstance(content[name], Mapping):
            raise OptionError(name, f"{name} is {content[name]!r}, expected a section")
        check_keys(name, content[name], needed, content[name])
        check_types(name, {key: content[name][key] for key in needed}, needed)
    types = section_types(config)
    if train is not None:
        types["train"] = hints_of(train)
    if not sections:
        check_keys("", content, [*TOP, *types], {*TOP, *types, "train"})
        check_types("", top, TOP)
        check_ranges("", top)
    for name in sections or types:
        hints, values = types[name], content.get(name, {})
        if not isinstance(values, Mapping):
            raise OptionError(name, f"{name} is {values!r}, expected a section")
        if name == "data":  # None leaves an option at the data set's own default, or has no effect
            known = datasets.all_options()
            values = {k: v for k, v in values.items() if v is not None or k not in known}
        check_keys(name, values, () if name == "data" else hints, {"name", *hints})
        check_types(name, values, hints)
        check_ranges(name, values)
    _eval_options(config, read=False)
    if sections:
        return
    if config.sampler.rule not in sampler.RULES:
        raise OptionError(
            "sampler.rule",
            f"sampler.rule is {config.sampler.rule!r}, expected one of {sorted(sampler.RULES)}",
        )
    _loader(**config.loader)
    optim.make(steps_per_epoch=_TRIED, epochs=config.train.epochs, **config.optim)


def _rehearse(config: ml_collections.ConfigDict, batch: Any, pretrained: Any) -> None:
    """Traces a loss on augmented images before there are any; refuses what that cannot take."""
    method, _ = make_method(config, config.sampler.num_ids, _TRIED, pretrained)
    key = jax.random.key(0)
    shapes = jax.eval_shape(method.init, key)
    transform, _ = optim.make(steps_per_epoch=_TRIED, epochs=config.train.epochs, **config.optim)
    jax.eval_shape(transform.init, shapes["params"])

    def loss(variables: Any, batch: Any) -> Any:
        return method.loss(variables, augment.augment(key, batch, **config.augment), key, 0)[0]

    jax.eval_shape(loss, shapes, batch)


def build(
    config: ml_collections.ConfigDict,
    *,
    resuming: bool = False,
    planned: Callable[[Method, jax.sharding.Mesh, Feed], None] = lambda method, mesh, feed: None,
) -> tuple[Parts, Feed]:
    """Builds what the recipe describes; cheap checks come before the data is loaded.

    Args:
      config: the recipe.
      resuming: the run has a checkpoint, so that the file of config.init may have gone. Then
        `Parts.weights` is None and `Parts.method` starts from random weights.
      planned: called before the images are loaded, with what they are expected to be trained by.

    Raises:
      ValueError, FileNotFoundError: the recipe cannot be carried out; says how to cure it.
      Stopped: the run was asked to stop.
    """
    num_ids, num_instances = config.sampler.num_ids, config.sampler.num_instances
    count = num_ids * num_instances
    mesh = Devices(**config.devices).mesh(num_ids, num_instances)
    rows = devices.process_rows(count)
    if (rows.stop - rows.start) % num_instances:  # a process loads whole identities
        processes = jax.process_count()
        low = max(num_ids // processes, 1) * processes
        raise ValueError(
            f"sampler.num_ids is {num_ids}, which does not divide over {processes} processes; "
            f"choose {low} or {low + processes}"
        )
    load = partial(_loader(**config.loader), filter=config.data.get("filter", FILTER))
    options, permutations = _eval_options(config)
    image_size = tuple(config.data.image_size)
    # A wrong file is refused before the data is loaded, and is read once.
    pretrained = _pretrained(config, resuming=resuming)
    shape = partial(jax.ShapeDtypeStruct, sharding=devices.by_rows(mesh))
    image = shape((count, *image_size, 3), np.uint8)
    label_shape, camera = (shape((count, *s), np.int32) for s in ((), (2,)))
    batch = {"visible": image, "infrared": image, "label": label_shape, "camera": camera}
    if not resuming or config.allow_changes:
        _rehearse(config, batch, pretrained)

    def training(train: Records) -> tuple[Method, Report | None, np.ndarray, Feed]:
        label, persons = train_labels(train)
        steps = config.sampler.steps_per_epoch
        if steps is None:
            pk = dict(num_ids=num_ids, num_instances=num_instances)
            steps = sampler.steps_per_epoch(label, train.modality, rule=config.sampler.rule, **pk)
        if (total := epochs_to_steps(config.train.epochs, steps)) > _MOST_STEPS:
            raise ValueError(
                f"train.epochs is {config.train.epochs:g}, which is {total:,} steps of {steps:,} "
                f"an epoch, expected at most {_MOST_STEPS:,} steps"
            )
        method, report = make_method(config, len(persons), steps, pretrained)
        section = {**config.sampler, "steps_per_epoch": steps}

        def plan(epoch: int) -> Any:
            return sampler.plan(label, train.modality, seed=config.seed, epoch=epoch, **section)

        def batches(start: int, stop: int) -> Iterator[Batch]:
            local_ids = (rows.stop - rows.start) // num_instances
            span = dict(start=start, stop=stop, rows=rows)
            for n, batch in enumerate(load(train, label, plan, image_size=image_size, **span)):
                if not n:
                    check_batch(batch, num_ids=local_ids, num_instances=num_instances)
                yield batch

        feed = Feed(batches, batch, steps, partial(augment.augment, **config.augment))
        return method, report, persons, feed

    def expect(split: Split) -> None:
        method, _, _, feed = training(split.train)
        planned(method, mesh, feed)

    split, own_files = _load(config, options, permutations, train=True, expect=expect)
    method, report, persons, feed = training(split.train)
    scorer = _scorer(config, options, permutations, method, mesh)
    gone = config.init.weights is not None and report is None
    return Parts(split, method, image_size, mesh, persons, scorer, report, gone, own_files), feed


def build_to_score(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Parts:
    """Builds what scoring the run in `workdir` needs; the data set may be another one.

    The recipe's init section is not used, since the run's checkpoint is.

    Raises:
      ValueError: the run cannot be scored under this config; says why.
    """
    check_known(config, workdir)
    own, persons = runfolder.load_config(workdir), runfolder.load_classes(workdir)
    options, permutations = _eval_options(config)

    def check(split: Split) -> None:
        _check_unseen(config.data, own.data, split.test, persons, workdir)

    split, _ = _load(config, options, permutations, check_test=check)
    # The length of an epoch does not matter to embedding. A file may be gone, the package's is not.
    start = _pretrained(config) if config.init.weights == RENDERED else None
    method, _ = make_method(config, len(persons), 1, start)
    mesh = devices.make_mesh()
    scorer = _scorer(config, options, permutations, method, mesh)
    gone = config.init.weights is not None and start is None
    size = tuple(config.data.image_size)
    return Parts(split, method, size, mesh, persons, scorer, file_is_gone=gone)


def is_file_alone(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether there is no run to score in `workdir`, but the file that `config.init` names."""
    trained = any((workdir / name).exists() for name in ("checkpoints", runfolder.CLASSES))
    return not trained and config.init.weights not in (None, RENDERED)


def build_file_to_score(config: ml_collections.ConfigDict) -> Parts:
    """Builds what scoring an author's checkpoint, the file of `config.init`, needs.

    Raises:
      ValueError, FileNotFoundError: it is no such file, or does not fit the recipe; says why.
    """
    options, permutations = _eval_options(config)
    pretrained = _pretrained(config)
    if pretrained is None:
        raise ValueError("init.weights is None, expected the file to score")
    num_classes = weights.people(pretrained[1], source=pretrained[0])
    method, report = make_method(config, num_classes, 1, pretrained)
    mesh = devices.make_mesh()
    scorer = _scorer(config, options, permutations, method, mesh)
    split, _ = _load(config, options, permutations)
    size = tuple(config.data.image_size)
    # The file does not say which people they are.
    return Parts(split, method, size, mesh, np.arange(num_classes), scorer, report)


def _load(
    config: ml_collections.ConfigDict,
    options: Options,
    permutations: Any,
    *,
    train: bool = False,
    check_test: Callable[[Split], None] = lambda split: None,
    expect: Callable[[Split], None] = lambda split: None,
) -> tuple[Split, Records | None]:
    """The data set, refused before an image is read if it cannot be scored, or trained on.

    `expect` is called with what is not refused, before its images are read.

    Returns:
      The split, and one's own images to train on as they are before they are decoded.
    """
    # SYSU-MM01's evaluation code comes with fixed permutations.
    strict = config.data.name == "sysu" and config.data.strict

    seen: list[Split] = []

    def check(split: Split) -> None:
        seen.append(split)
        if len(seen) == 1:
            check_test(split)
        if train:
            _check_trainable(config, split)
        val = split.val if train else None
        check_protocols(options, split.test, val, permutations=permutations, strict=strict)
        if len(seen) == 1:
            expect(split)

    def should_stop() -> bool:
        # Of several processes each may have other images to decode, and they must poll alike.
        return jax.process_count() == 1 and preemption.requested()

    _stop_if_asked()
    split = datasets.load(**config.data, check=check, should_stop=should_stop)
    _stop_if_asked()
    return split, seen[0].train if config.data.name == "folders" else None


def check_known(config: ml_collections.ConfigDict, workdir: Any) -> None:
    """Refuses to score a run whose config.json another version of the package has written.

    Raises:
      ValueError: it has keys that this version does not know, or lacks some that it needs.
    """
    build = get_build(config.method.name)
    named = set(inspect.signature(build).parameters)
    known = {
        "data": {"name", *datasets.options_of(config.data.name)},
        "init": ("weights", "unused"),
        "method": {"name", *named, *Backbone._fields} - {"backbone"},
        "devices": Devices._fields,
        "eval": Options._fields,
    }
    needed = {"init": ("weights", "unused"), "devices": Devices._fields, "eval": Options._fields}
    needed |= {"augment": ("second_view",), "data": ("name", "image_size")}
    runfolder.check_known(config.to_dict(), known, workdir, needed=needed)


def config_to_score(
    config: ml_collections.ConfigDict | None,
    workdir: pathlib.Path,
    overrides: Mapping[str, Any],
) -> ml_collections.ConfigDict:
    """The run's own config; a recipe that is given replaces what is tested on, and how.

    Of a recipe that scores the file of its init section it is the recipe.

    Raises:
      FileNotFoundError: `workdir` is not a run.
      ValueError: an override of a section that the run decides, or a model of one RegDB split
        that would be tested on another, half of whose people it was trained on.
    """
    if config is not None and is_file_alone(config, workdir):
        return config
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


def _check_unseen(given: Any, own: Any, test: Retrieval, persons: np.ndarray, workdir: Any) -> None:
    """Refuses to test a model on people of its own data set that it was trained on, int [C].

    Takes the data sections asked for and of the run, and the test images before they are decoded.
    RegDB's trials are compared earlier; this is for one's own images, divided another way. In
    the folder of the run people go by their numbers, anywhere else by their images.
    """
    if given.name == "synthetic":
        return  # other people, whatever their numbers

    def place(data: Any) -> tuple[str | None, ...]:
        paths = (data.get("root"), data.get("prepared"))
        return (data.name, *(path and os.path.realpath(full_path(path)) for path in paths))

    seen = np.array([], np.int32)
    if place(given) == place(own):
        seen = np.intersect1d(test.query.person, persons)
    elif trained := runfolder.load_files(workdir):
        for records in test:
            known = [digest in trained for digest in runfolder.file_digests(records)]
            seen = np.union1d(seen, records.person[known])
    if len(seen):
        raise ValueError(
            f"the model in {workdir} was trained on {len(seen)} people that it would be tested on "
            f"{seen[:5].tolist()}; give the options that divide the people (data.test_share, "
            "data.seed, data.val_ids) the values they have in its config.json, or name the "
            "folder of other people with --config.data.root"
        )


def _stop_if_asked() -> None:
    if preemption.requested():
        raise Stopped


def _eval_options(config: ml_collections.ConfigDict, *, read: bool = True) -> tuple[Options, Any]:
    """The eval section, checked, and the fixed permutations if it asks for them."""
    options = Options(**config.eval)
    options.check()
    if not read or options.gallery != "official" or options.rand_perm is None:
        return options, None
    return options, read_permutations(options.rand_perm)


def _scorer(
    config: ml_collections.ConfigDict,
    options: Options,
    permutations: Any,
    method: Method,
    mesh: jax.sharding.Mesh,
) -> Scorer:
    options.accumulates(method.fusions, config.method.name)  # refuses what it cannot re-rank
    return Scorer(
        options=options,
        embed=make_embed(method, mesh),
        mesh=mesh,
        image_size=tuple(config.data.image_size),
        filter=config.data.get("filter", FILTER),
        fusions=method.fusions,
        method=config.method.name,
        permutations=permutations,
        untrained={None: UNTRAINED, RENDERED: STARTED}.get(config.init.weights, FILE_ALONE),
        should_stop=preemption.requested,
        say=writer.say,
    )


def _check_trainable(config: ml_collections.ConfigDict, split: Split) -> None:
    """Refuses a data set that the recipe cannot be trained on; looks at no image."""
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


def _pretrained(
    config: ml_collections.ConfigDict, *, resuming: bool = False
) -> tuple[str, Mapping[str, np.ndarray]] | None:
    network = {key: config.method[key] for key in ("depth", "width")}
    return _read_weights(**config.init, **network, resuming=resuming)


def _read_weights(
    *, weights: str | None, unused: str, resuming: bool, depth: int, width: int
) -> tuple[str, Mapping[str, np.ndarray]] | None:
    """The file that the recipe's init section names, and its arrays.

    "rendered" names the shipped one for a network of this depth and width.
    """
    check_unused(unused)
    if weights is None:
        return None
    if weights == RENDERED:
        return weights, read_weights(shipped.path_of(depth, width))
    try:
        return weights, read_weights(weights)
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
        "second_view": config.augment.second_view != "none",
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
    fill = partial(weights.fill, content, source=path, unused=config.init.unused)
    shapes = jax.eval_shape(method.init, jax.random.key(config.seed))
    report = fill(shapes)[1]  # refuses what does not fit

    def init(key: Any) -> Variables:
        return fill(method.init(key))[0]

    return method._replace(init=init), report


def _loader(*, name: str, prefetch: int) -> Callable[..., Iterator[Batch]]:
    """The function that makes batches; see `arrays.batches` and `tfdata.batches`."""
    if name == "arrays":
        return partial(arrays.batches, prefetch=prefetch)
    if name != "tfdata":
        raise ValueError(f"no loader {name!r}; expected one of ['arrays', 'tfdata']")
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            "loader.name is 'tfdata', which needs TensorFlow: pip install 'vireid_jax[data]', or "
            "use loader.name=arrays, whose batches are the same to the last bit"
        )
    from vireid_jax.data import tfdata  # seconds of TensorFlow

    return partial(tfdata.batches, prefetch=prefetch)


def summary(
    config: ml_collections.ConfigDict, parts: Parts, feed: Feed, params: Any, workdir: Any
) -> str:
    """What is about to happen, before it takes long."""
    count = parameter_overview.count_parameters(params)
    pk = f"{config.sampler.num_ids} identities x {config.sampler.num_instances} images"
    found = jax.devices()
    origin = "the run's checkpoint" if parts.file_is_gone else "random"
    return "\n".join(
        [
            datasets.records_summary(parts.split),
            f"method    {config.method.name}, {count / 1e6:.2f} M parameters",
            f"weights   {parts.weights or origin}",
            f"batch     {pk} per modality, {parts.image_size[0]} x {parts.image_size[1]} pixels",
            f"schedule  {feed.steps_per_epoch} steps/epoch x {config.train.epochs:g} epochs",
            f"devices   {len(found)} x {found[0].device_kind}, {jax.process_count()} process(es)",
            f"run       {workdir}",
        ]
    )
