"""One run of a recipe: builds the parts, trains, scores, and leaves a folder behind."""

import contextlib
import hashlib
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import ml_collections
from absl import logging
from clu import parameter_overview

from vireid_jax import evaluate, optim, scored_run, scoring, train
from vireid_jax.build import Feed, Parts, build, build_to_score
from vireid_jax.data import augment, datasets
from vireid_jax.metrics import format_table, row_label
from vireid_jax.runtime import (
    checkpoint,
    devices,
    files,
    preemption,
    processes,
    runfolder,
    watch,
    writer,
)
from vireid_jax.scoring import Scorer
from vireid_jax.types import Stopped


def run(
    config: ml_collections.ConfigDict | None,
    *,
    workdir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    mode: str = "train",
    step: str = "last",
    dist: str = "auto",
    debug: bool = False,
) -> int:
    """Trains and scores a recipe, or scores a run.

    Args:
      config: a recipe; None takes the one stored in `workdir`. To "eval" a recipe gives the
        data, loader and eval sections, the run in `workdir` all others.
      workdir: folder of the run; None names one under runs/ after the recipe and `overrides`.
      overrides: the values that were changed in the recipe, for that name.
      mode: "train" or "eval".
      step: what "eval" scores: "last", "best" or a number.
      dist: "auto", "off" or "on", see `processes.start`.
      debug: let errors through with their traceback.

    Returns:
      The exit code, as `main` documents.
    """
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    code, message = 0, ""
    try:
        folder = _folder(config, workdir, overrides or {})
        processes.start(folder, dist)
        preemption.install()
        _use_compilation_cache()
        if mode == "eval":
            config = scored_run.config_to_score(config, folder, overrides or {})
        elif config is None:
            config = runfolder.load_config(folder)
        rows = config.sampler.num_ids * config.sampler.num_instances
        # A batch that does not divide over the processes is refused later, with a reason.
        devices.use_cpu_cores(max(rows // processes.count(), min(rows, 1)))
        processes.check_equal(
            "the package and the config", runfolder.shared_facts(config.to_dict())
        )
        processes.check_equal("devices", devices.local_facts())
        if mode == "eval":
            score_run(config, folder, step=step)
        else:
            train_and_score(config, folder)
    except train.Preempted as stop:
        code, message = preemption.exit_code(), f"{stop}; run the same command again to go on"
    except Stopped:
        code = preemption.exit_code()
        message = "evaluation stopped on request; run the same command again"
    except (ValueError, OSError, FloatingPointError) as error:
        if debug and processes.count() == 1:
            raise
        if debug:
            traceback.print_exc()
        code, message = 1, f"error: {error}\n(--debug shows where)"
    except Exception as error:
        if processes.count() == 1:
            raise
        # With another process gone, jax, Orbax and the collectives fail in many ways.
        traceback.print_exc()
        code, message = processes.explain(error)
    if message:
        print(message, file=sys.stderr, flush=True)
    return processes.finish(code, message.partition("\n")[0])


def train_and_score(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Trains to the end, resuming what `workdir` holds, and scores the last state.

    Returns:
      The results that are printed and saved under `workdir`/eval.
    """
    _check_durations(**config.train)
    runfolder.check_resume(workdir, config.to_dict(), allow=config.allow_changes)
    watch.phase("data")
    parts, feed = build(config, resuming=_has_checkpoint(workdir))
    processes.check_equal("the data", runfolder.data_facts(parts.split))
    watch.phase("start")
    transform, learning_rate = optim.make(
        steps_per_epoch=feed.steps_per_epoch, epochs=config.train.epochs, **config.optim
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
    shapes = jax.eval_shape(parts.method.init, jax.random.key(config.seed))
    # Tracing finds what is wrong with any option before the folder says that a run has begun.
    jax.eval_shape(step_fn, train.abstract_state(parts.method, transform), feed.batch)
    embed = evaluate.make_embed(parts.method, parts.mesh)
    scorer = _scorer(config, parts, embed)
    scorer.check(parts.split.test, parts.split.val)
    runfolder.check_classes(workdir, parts.split, parts.persons, allow=config.allow_changes)
    runfolder.save_run_info(workdir, config.to_dict(), sys.argv)
    runfolder.save_classes(workdir, parts.split, parts.persons)
    if jax.process_index() == 0:
        overview = parameter_overview.get_parameter_overview(shapes["params"], include_stats=False)
        (workdir / "parameters.txt").write_text(overview + "\n")
        if parts.weights is not None:
            (workdir / "weights.txt").write_text(parts.weights.details() + "\n")
        print(_summary(config, parts, feed, shapes, workdir), flush=True)

    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=keep)
    with contextlib.closing(checkpoints):
        state, start = train.restore_or_init(
            parts.method, transform, checkpoints, mesh=parts.mesh, seed=config.seed
        )
        if not start and _file_is_gone(config, parts):
            raise FileNotFoundError(
                f"no checkpoint in {checkpoints.directory} can be read, and the file of weights "
                f"that the run began with, {config['init']['from']}, is gone; bring it back"
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
                batches=feed.batches,
                steps_per_epoch=feed.steps_per_epoch,
                mesh=parts.mesh,
                writer=log,
                checkpoints=checkpoints,
                evaluate=_validation(scorer, parts),
                should_stop=preemption.requested,
                **options,
            )
    return _score(config, parts, scorer, state.variables, workdir, int(state.step), "last")


def score_run(config: ml_collections.ConfigDict, workdir: pathlib.Path, *, step: str) -> list[dict]:
    """Scores a checkpoint of `workdir`.

    Raises:
      FileNotFoundError: if there is no such checkpoint; the message lists what is there.
    """
    chosen: str | int = int(step) if step.isdigit() else step
    # Before any data is loaded: a wrong folder is told at once.
    checkpoint.find_step(workdir / "checkpoints", chosen)
    own, classes = runfolder.load_config(workdir), runfolder.load_classes(workdir)
    scored_run.check_classes_known(config, own, classes, workdir)
    parts = build_to_score(config, classes)
    scored_run.check_unseen(config, own, parts.split.test, parts.persons, workdir)
    scorer = _scorer(config, parts, evaluate.make_embed(parts.method, parts.mesh))
    scorer.check(parts.split.test, None)
    shapes = jax.eval_shape(parts.method.init, jax.random.key(config.seed))
    variables, at = checkpoint.restore_variables(
        workdir / "checkpoints", devices.abstract(dict(shapes), parts.mesh), chosen
    )
    return _score(config, parts, scorer, variables, workdir, at, step)


def _has_checkpoint(workdir: pathlib.Path) -> bool:
    try:
        checkpoint.find_step(workdir / "checkpoints")
    except FileNotFoundError:
        return False
    return True


def _file_is_gone(config: ml_collections.ConfigDict, parts: Parts) -> bool:
    """Whether the run began with weights of a file that `parts` were built without."""
    return config["init"]["from"] is not None and parts.weights is None


def _scorer(config: ml_collections.ConfigDict, parts: Parts, embed: evaluate.Embed) -> Scorer:
    return Scorer(
        config,
        image_size=parts.image_size,
        mesh=parts.mesh,
        embed=embed,
        fusions=parts.method.fusions,
        should_stop=preemption.requested,
    )


def _validation(scorer: Scorer, parts: Parts) -> Callable[[Any], dict[str, float]] | None:
    """Variables -> scores on the held-out identities, None where there are none."""
    if parts.split.val is None:
        return None
    return partial(scorer.validate, retrieval=parts.split.val)


def _score(
    config: ml_collections.ConfigDict,
    parts: Parts,
    scorer: Scorer,
    variables: Any,
    workdir: pathlib.Path,
    step: int,
    chosen: str,
) -> list[dict]:
    """Scores the test set, prints the table, saves it with per-query results."""

    def fresh() -> Any:
        return scoring.fresh_variables(parts.method.init, config.seed, parts.mesh)

    watch.phase("score")
    # Without the file, "fresh" would be something else than what the run began with.
    baseline = None if _file_is_gone(config, parts) else fresh
    results = scorer.test(variables, parts.split.test, baseline)
    about = {
        "step": step,
        "checkpoint": chosen,  # "last", "best", or the number that was asked for
        "dataset": parts.split.name,
        "test_set": runfolder.name_test_set(parts.split),
        "seed": config.seed,
        **({"trial": config.data.trial} if "trial" in config.data else {}),
    }
    for result in results:
        result |= about
    if jax.process_index() == 0:
        folder = workdir / "eval" / str(step)
        evaluate.save_results(results, folder)
        print(f"\n{parts.split.name}, test identities, step {step} ({workdir})")
        rows = {(r["protocol"], row_label(r)): r for r in results}
        print(format_table(rows, baselines=scoring.BASELINES), flush=True)
        print(f"per-query results: {folder}")
    return results


def _folder(
    config: ml_collections.ConfigDict | None,
    workdir: str | os.PathLike[str] | None,
    overrides: Mapping[str, Any],
) -> pathlib.Path:
    """The run's folder; unless named, runs/<recipe>[,key=value...] in the working directory."""
    if workdir is not None:
        if "://" in str(workdir):
            raise ValueError(
                f"--workdir is {str(workdir)!r}, expected a folder of the file system, which all "
                "hosts of a run share; mount a bucket with gcsfuse, or use Filestore, NFS or Lustre"
            )
        return pathlib.Path(workdir)
    if config is None:
        raise ValueError("neither a recipe nor a workdir is given")
    changed = [
        f"{key}={value}"
        for key, value in sorted(overrides.items())
        if runfolder.changes_training(key)
    ]
    name = ",".join([config.run_name, *changed])
    name = "".join(c if c.isalnum() or c in "._-=," else "_" for c in name)
    if len(name) > 150:  # file systems stop at 255 bytes
        name = f"{name[:130]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return pathlib.Path("runs") / name


def _check_durations(
    *, epochs: float, log_every: int, eval_every: float, checkpoint_every: float, **_: Any
) -> None:
    """Refuses lengths that make no run; 0 switches an interval off."""
    if not epochs > 0:
        raise ValueError(f"train.epochs is {epochs}, expected more than 0")
    intervals = dict(log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every)
    for name, value in intervals.items():
        if not value >= 0:
            raise ValueError(f"train.{name} is {value}, expected 0 (never) or more")


def _use_compilation_cache() -> None:
    """Compiled programs outlive the process: a repeated command starts in seconds."""
    try:
        folder = files.user_folder("JAX_COMPILATION_CACHE_DIR", "xla")
    except FileNotFoundError:  # no home: every start compiles
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _summary(
    config: ml_collections.ConfigDict,
    parts: Parts,
    feed: Feed,
    shapes: Any,
    workdir: pathlib.Path,
) -> str:
    """What is about to happen, before it takes long."""
    count = parameter_overview.count_parameters(shapes["params"])
    pk = f"{config.sampler.num_ids} identities x {config.sampler.num_instances} images"
    devices = jax.devices()
    origin = "the run's checkpoint" if _file_is_gone(config, parts) else "random"
    return "\n".join(
        [
            datasets.records_summary(parts.split),
            f"method    {config.method.name}, {count / 1e6:.2f} M parameters",
            f"weights   {parts.weights or origin}",
            f"batch     {pk} per modality, {parts.image_size[0]} x {parts.image_size[1]} pixels",
            f"schedule  {feed.steps_per_epoch} steps/epoch x {config.train.epochs:g} epochs",
            f"devices   {len(devices)} x {devices[0].device_kind}, "
            f"{jax.process_count()} process(es)",
            f"run       {workdir}",
        ]
    )
