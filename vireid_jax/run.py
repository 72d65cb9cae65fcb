"""One run of a recipe: builds the parts, trains, scores, and leaves a folder behind."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import logging
from clu import parameter_overview

from vireid_jax import checkpoint, evaluate, optim, preemption, runinfo, sharding, train, writer
from vireid_jax.data import arrays, augment, datasets, sampler
from vireid_jax.methods import get_build
from vireid_jax.metrics import format_table
from vireid_jax.types import Batch, Method, Retrieval, Split, Stopped, check_batch, train_labels


class Parts(NamedTuple):
    """What a recipe describes, built."""

    split: Split
    method: Method
    batches: Callable[[int, int], Iterator[Batch]]
    steps_per_epoch: int
    image_size: tuple[int, int]
    mesh: jax.sharding.Mesh


def run(
    config: ml_collections.ConfigDict | None,
    *,
    workdir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    mode: str = "train",
    step: str = "last",
    debug: bool = False,
) -> int:
    """Trains and scores a recipe, or scores a run.

    Args:
      config: a recipe; None takes the one stored in `workdir`.
      workdir: folder of the run; None names one under runs/ after the recipe and `overrides`.
      overrides: the values that were changed in the recipe, for that name.
      mode: "train" or "eval".
      step: what "eval" scores: "last", "best" or a number.
      debug: let errors through with their traceback.

    Returns:
      The exit code, as `main` documents.
    """
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    preemption.install()
    _use_compilation_cache()
    try:
        folder = _folder(config, workdir, overrides or {})
        if config is None:
            config = runinfo.load_config(folder)
        sharding.use_cpu_cores(config.sampler.num_ids * config.sampler.num_instances)
        if mode == "eval":
            score_run(config, folder, step=step)
        else:
            train_and_score(config, folder)
    except train.Preempted as stop:
        print(f"{stop}; run the same command again to go on", file=sys.stderr)
        return preemption.exit_code()
    except Stopped:
        print("evaluation stopped on request; run the same command again", file=sys.stderr)
        return preemption.exit_code()
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        if debug:
            raise
        print(f"error: {error}\n(--debug shows where)", file=sys.stderr)
        return 1
    return 0


def train_and_score(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Trains to the end, resuming what `workdir` holds, and scores the last state.

    Returns:
      The results that are printed and saved under `workdir`/eval.
    """
    runinfo.check_resume(workdir, config.to_dict(), allow=config.allow_changes)
    parts = build(config)
    transform, learning_rate = optim.make(
        steps_per_epoch=parts.steps_per_epoch, epochs=config.train.epochs, **config.optim
    )
    step_fn = train.make_train_step(
        parts.method,
        partial(augment.augment, **config.augment),
        transform,
        learning_rate,
        mesh=parts.mesh,
        seed=config.seed,
    )
    options = config.train.to_dict()
    keep, tensorboard = options.pop("keep"), options.pop("tensorboard")
    runinfo.save_run_info(workdir, config.to_dict(), sys.argv)
    shapes = jax.eval_shape(parts.method.init, jax.random.key(config.seed))
    if jax.process_index() == 0:
        overview = parameter_overview.get_parameter_overview(shapes["params"], include_stats=False)
        (workdir / "parameters.txt").write_text(overview + "\n")
        print(_summary(config, parts, shapes, workdir), flush=True)

    embed = evaluate.make_embed(parts.method, parts.mesh)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=keep)
    with contextlib.closing(checkpoints):
        state, start = train.restore_or_init(
            parts.method, transform, checkpoints, mesh=parts.mesh, seed=config.seed
        )
        log = writer.Writer(
            workdir,
            tensorboard=tensorboard,
            resume_step=start,
            active=jax.process_index() == 0,
        )
        with contextlib.closing(log):
            state = train.train(
                state=state,
                start=start,
                step_fn=step_fn,
                batches=parts.batches,
                steps_per_epoch=parts.steps_per_epoch,
                mesh=parts.mesh,
                writer=log,
                checkpoints=checkpoints,
                evaluate=_validation(config, parts, embed),
                should_stop=preemption.requested,
                **options,
            )
    return _score(config, parts, embed, state.variables, workdir, int(state.step))


def score_run(config: ml_collections.ConfigDict, workdir: pathlib.Path, *, step: str) -> list[dict]:
    """Scores a checkpoint of `workdir`.

    Raises:
      FileNotFoundError: if there is no such checkpoint; the message lists what is there.
    """
    chosen: str | int = int(step) if step.isdigit() else step
    # Before any data is loaded: a wrong folder is told at once.
    checkpoint.find_step(workdir / "checkpoints", chosen)
    parts = build(config)
    shapes = jax.eval_shape(parts.method.init, jax.random.key(config.seed))
    variables, at = checkpoint.restore_variables(
        workdir / "checkpoints", sharding.abstract(dict(shapes), parts.mesh), chosen
    )
    embed = evaluate.make_embed(parts.method, parts.mesh)
    return _score(config, parts, embed, variables, workdir, at)


def build(config: ml_collections.ConfigDict) -> Parts:
    """Builds what the recipe describes; cheap checks come before the data is loaded."""
    num_ids, num_instances = config.sampler.num_ids, config.sampler.num_instances
    rows = sharding.process_rows(num_ids * num_instances)
    method_options = config.method.to_dict()
    make_method = get_build(method_options.pop("name"))
    if config.loader.name not in LOADERS:
        raise ValueError(f"no loader {config.loader.name!r}; expected one of {sorted(LOADERS)}")
    image_size = tuple(config.data.image_size)
    split = datasets.load(**config.data)
    label, persons = train_labels(split.train)
    pk = dict(num_ids=num_ids, num_instances=num_instances)
    steps = config.sampler.steps_per_epoch or sampler.steps_per_epoch(
        label, split.train.modality, **pk
    )
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

    def batches(start: int, stop: int) -> Iterator[Batch]:
        load = LOADERS[config.loader.name](image_size, config.loader.prefetch)
        local_ids = (rows.stop - rows.start) // num_instances
        for n, batch in enumerate(
            load(split.train, label, plan, start=start, stop=stop, rows=rows)
        ):
            if not n:
                check_batch(batch, num_ids=local_ids, num_instances=num_instances)
            yield batch

    return Parts(split, method, batches, steps, image_size, sharding.make_mesh())


def _arrays(image_size: tuple[int, int], prefetch: int) -> Callable[..., Iterator[Batch]]:
    return arrays.batches


def _tfdata(image_size: tuple[int, int], prefetch: int) -> Callable[..., Iterator[Batch]]:
    from vireid_jax.data import tfdata  # TensorFlow: seconds and 600 MB, only when asked for

    return partial(tfdata.batches, image_size=image_size, prefetch=prefetch)


UNTRAINED = "untrained network"
LOADERS = {"arrays": _arrays, "tfdata": _tfdata}


def _embed_both(
    config: ml_collections.ConfigDict,
    parts: Parts,
    embed: evaluate.Embed,
    variables: Any,
    retrieval: Retrieval,
) -> tuple[evaluate.Features, evaluate.Features]:
    options = dict(
        mesh=parts.mesh,
        image_size=parts.image_size,
        batch_size=config.eval.batch_size,
        should_stop=preemption.requested,
    )
    query = evaluate.embed_records(embed, variables, retrieval.query, **options)
    gallery = evaluate.embed_records(embed, variables, retrieval.gallery, **options)
    return query, gallery


def _validation(
    config: ml_collections.ConfigDict, parts: Parts, embed: evaluate.Embed
) -> Callable[[Any], dict[str, float]] | None:
    """Variables -> scores on the held-out identities, None where there are none."""
    val = parts.split.val
    if val is None:
        return None

    def validate(variables: Any) -> dict[str, float]:
        query, gallery = _embed_both(config, parts, embed, variables, val)
        results = evaluate.score(
            query, gallery, val, protocol_names=[config.eval.validation], trials=config.eval.trials
        )
        result = next(results)
        scores = {name: result["metrics"][name] for name in ("mAP", "R1", "mINP")}
        return scores | {"chance_mAP": result["chance"]["mAP"]}

    return validate


def _score(
    config: ml_collections.ConfigDict,
    parts: Parts,
    embed: evaluate.Embed,
    variables: Any,
    workdir: pathlib.Path,
    step: int,
) -> list[dict]:
    """Scores the test set, prints the table, saves it with per-query results."""
    test = parts.split.test
    score = partial(evaluate.score, retrieval=test, trials=config.eval.trials)
    query, gallery = _embed_both(config, parts, embed, variables, test)
    results = list(score(query, gallery, protocol_names=config.eval.protocols))
    if config.eval.baselines:
        pixels = [evaluate.pixel_features(r, parts.image_size) for r in test]
        results += score(*pixels, protocol_names=config.eval.protocols[:1])
        fresh = sharding.replicate(dict(parts.method.init(jax.random.key(config.seed))), parts.mesh)
        query, gallery = _embed_both(config, parts, embed, fresh, test)
        first = next(iter(query))
        untrained = [{UNTRAINED: f[first]} for f in (query, gallery)]
        results += score(*untrained, protocol_names=config.eval.protocols[:1])
    for result in results:
        result |= {"step": step, "dataset": parts.split.name, "seed": config.seed}
    if jax.process_index() == 0:
        folder = workdir / "eval" / str(step)
        evaluate.save_results(results, folder)
        print(f"\n{parts.split.name}, test identities, step {step} ({workdir})")
        rows = {(r["protocol"], r["feature"]): r for r in results}
        baselines = (evaluate.RAW_PIXELS, UNTRAINED)
        print(format_table(rows, baselines=baselines), flush=True)
        print(f"per-query results: {folder}")
    return results


def _folder(
    config: ml_collections.ConfigDict | None,
    workdir: str | os.PathLike[str] | None,
    overrides: Mapping[str, Any],
) -> pathlib.Path:
    """The run's folder; unless named, runs/<recipe>[,key=value...] in the working directory."""
    if workdir is not None:
        return pathlib.Path(workdir)
    if config is None:
        raise ValueError("neither a recipe nor a workdir is given")
    changed = [
        f"{key}={value}"
        for key, value in sorted(overrides.items())
        if runinfo.changes_training(key)
    ]
    name = ",".join([config.run_name, *changed])
    return pathlib.Path("runs") / "".join(c if c.isalnum() or c in "._-=," else "_" for c in name)


def _use_compilation_cache() -> None:
    """Compiled programs outlive the process: a repeated command starts in seconds."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(home, "vireid_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _summary(
    config: ml_collections.ConfigDict, parts: Parts, shapes: Any, workdir: pathlib.Path
) -> str:
    """What is about to happen, before it takes long."""
    count = parameter_overview.count_parameters(shapes["params"])
    pk = f"{config.sampler.num_ids} identities x {config.sampler.num_instances} images"
    devices = jax.devices()
    return "\n".join(
        [
            datasets.records_summary(parts.split),
            f"method    {config.method.name}, {count / 1e6:.2f} M parameters",
            f"batch     {pk} per modality, {parts.image_size[0]} x {parts.image_size[1]} pixels",
            f"schedule  {parts.steps_per_epoch} steps/epoch x {config.train.epochs:g} epochs",
            f"devices   {len(devices)} x {devices[0].device_kind}, "
            f"{jax.process_count()} process(es)",
            f"run       {workdir}",
        ]
    )
