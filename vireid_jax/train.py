"""Training, top to bottom: a run, its state, a step, the loop. No method or data set by name.

One step is one jitted function over the mesh: augment, loss, gradients, update. All its
randomness comes from (seed, step), and the batches from (seed, epoch), so a run that is
killed and started again ends with the bits of a run that was not.
"""

import contextlib
import math
import pathlib
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from clu import parameter_overview

from vireid_jax import build, optim
from vireid_jax.runtime import (
    checkpoint,
    devices,
    files,
    memory,
    preemption,
    processes,
    runfolder,
    runlock,
    watch,
    writer,
)
from vireid_jax.runtime.checkpoint import Checkpoints
from vireid_jax.runtime.writer import SAY_EVERY_S, Writer, duration
from vireid_jax.types import Batch, Method, Stopped, Variables, epochs_to_steps


class Options(NamedTuple):
    """A recipe's train section; durations are epochs."""

    epochs: float
    log_every: int  # steps
    eval_every: float
    checkpoint_every: float
    keep: int
    tensorboard: bool


class TrainState(NamedTuple):
    """All that changes in training; also what a checkpoint holds."""

    step: Any  # int32 [], optimizer steps done
    variables: dict[str, Any]  # the method's collections
    optimizer: Any  # optax state


class Preempted(Exception):
    """The run was asked to stop; its state is on disk at `step`, if that is not 0."""

    def __init__(self, step: int):
        saved = f"step {step} is saved" if step else "before the first step"
        super().__init__(f"stopped on request; {saved}")
        self.step = step


class NonFiniteError(FloatingPointError):
    """A loss is not finite. The message names the term, the step and the last checkpoint."""


class Trained(NamedTuple):
    """A run at its end."""

    parts: build.Parts
    variables: Variables
    step: int


def fit(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, max_steps: int | None = None
) -> Trained:
    """Trains a recipe in a folder to the end, resuming what the folder holds.

    `max_steps` ends a try after this step; the schedule stays the whole run's, which goes on from
    there without it.

    Raises:
      ValueError, FileNotFoundError: the recipe cannot be carried out, or the folder holds a run of
        another one, or no run; nothing is written.
      InUseError: (an OSError) another process trains in the folder.
      Preempted: the run was asked to stop.
      NonFiniteError: a loss is not finite.
    """
    files.check_writable(workdir)
    with runlock.held(workdir, processes.process()):
        return _fit(config, workdir, max_steps)


def _fit(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, max_steps: int | None
) -> Trained:
    build.check(config, train=Options)
    options = Options(**config.train)
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, expected at least 1")
    runfolder.check_resume(workdir, config.to_dict(), allow=config.allow_changes)
    watch.phase("data")
    ahead, resuming = _CompileAhead(config), _has_checkpoint(workdir)
    try:
        # A run that goes on has compiled before, and one at its end compiles no more.
        planned = {} if resuming else {"planned": ahead.begin}
        parts, feed = build.build(config, resuming=resuming, **planned)
    except Stopped:
        raise Preempted(0) from None
    method, mesh = parts.method, parts.mesh
    facts = {**runfolder.data_facts(parts.split), "max_steps": max_steps}
    processes.check_equal("the data", facts)
    watch.phase("start")
    transform, step_fn = _step_of(config, method, mesh, feed)
    # Tracing finds what is wrong with any option before the folder says that a run has begun. With
    # the run's shardings the first step finds it done.
    shapes = abstract_state(method, transform)
    jax.eval_shape(step_fn, devices.abstract(shapes, mesh), feed.batch)
    runfolder.check_classes(workdir, parts.split, parts.persons, allow=config.allow_changes)
    checkpoint.check_newest(workdir / "checkpoints", shapes)
    runfolder.save_run_info(workdir, config.to_dict(), sys.argv)
    runfolder.save_classes(workdir, parts.split, parts.persons, parts.files)
    if jax.process_index() == 0:
        params = shapes.variables["params"]
        overview = parameter_overview.get_parameter_overview(params, include_stats=False)
        files.write_whole(workdir / "parameters.txt", overview + "\n")
        if parts.weights is not None:
            files.write_whole(workdir / "weights.txt", parts.weights.details() + "\n")
        writer.say(build.summary(config, parts, feed, params, workdir))

    preemption.take_over()
    validate = None
    if parts.split.val is not None:
        validate = partial(parts.scorer.validate, retrieval=parts.split.val)
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep=options.keep)) as checkpoints:
        state, start = restore_or_init(method, transform, checkpoints, mesh=mesh, seed=config.seed)
        if not start and parts.file_is_gone:
            raise FileNotFoundError(
                f"no checkpoint in {checkpoints.directory} can be read, and the file of weights "
                f"that the run began with, {config.init.weights}, is gone; bring it back"
            )
        log = Writer(
            workdir,
            tensorboard=options.tensorboard,
            resume_step=start,
            every=options.log_every,
            active=jax.process_index() == 0,
        )
        with contextlib.closing(log):
            state = train(
                state=state,
                start=start,
                step_fn=ahead.waited_for(step_fn),
                batches=feed.batches,
                steps_per_epoch=feed.steps_per_epoch,
                mesh=mesh,
                writer=log,
                checkpoints=checkpoints,
                evaluate=validate,
                should_stop=preemption.requested,
                max_steps=max_steps,
                epochs=options.epochs,
                log_every=options.log_every,
                eval_every=options.eval_every,
                checkpoint_every=options.checkpoint_every,
            )
    return Trained(parts, state.variables, int(state.step))


def _step_of(
    config: ml_collections.ConfigDict, method: Method, mesh: jax.sharding.Mesh, feed: build.Feed
) -> tuple[optax.GradientTransformation, "StepFn"]:
    """The optimizer's transform and the step of a recipe."""
    transform, learning_rate = optim.make(
        steps_per_epoch=feed.steps_per_epoch, epochs=config.train.epochs, **config.optim
    )
    step_fn = make_train_step(
        method, feed.augment, transform, learning_rate, mesh=mesh, seed=config.seed
    )
    return transform, step_fn


class _CompileAhead:
    """Compiles the step in a thread while the images are rendered, decoded or read.

    It fills the cache of compiled programs, where the first step finds the program. Without a cache
    there is nothing to fill, and several processes compile in step with each other.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        self._config, self._thread = config, threading.Thread()

    def begin(self, method: Method, mesh: jax.sharding.Mesh, feed: build.Feed) -> None:
        """Starts; what is wrong with the step is said by the first step."""
        if jax.process_count() > 1 or not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
            return

        def work() -> None:
            with contextlib.suppress(Exception):
                transform, step_fn = _step_of(self._config, method, mesh, feed)
                shapes = devices.abstract(abstract_state(method, transform), mesh)
                step_fn.lower(shapes, feed.batch).compile()  # type: ignore[attr-defined]

        self._thread = threading.Thread(target=work, name="compile")
        self._thread.start()

    def waited_for(self, step_fn: "StepFn") -> "StepFn":
        """The same step; the first waits for the thread."""

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            if self._thread.is_alive():
                self._thread.join()
            return step_fn(state, batch)

        return step


def _has_checkpoint(workdir: pathlib.Path) -> bool:
    try:
        checkpoint.find_step(workdir / "checkpoints")
    except FileNotFoundError:
        return False
    return True


def init_state(method: Method, transform: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state, filled on the host from `seed`."""
    variables = dict(method.init(jax.random.key(seed)))
    # One program, instead of one for every shape.
    optimizer = jax.jit(transform.init)(variables["params"])
    return TrainState(jnp.int32(0), variables, optimizer)


StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def abstract_state(method: Method, transform: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of a state, without drawing any weights."""
    return jax.eval_shape(lambda: init_state(method, transform, 0))


def make_train_step(
    method: Method,
    augment: Callable[[Any, Batch], Batch],
    transform: optax.GradientTransformation,
    learning_rate: Callable[[Any], Any],
    *,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> StepFn:
    """One optimizer step: (state, uint8 batch) -> (state, scalars of the batch).

    The state is donated and placed as `devices.of_state` says, the batch sharded by rows; batch
    statistics and losses are those of the global batch.
    """
    everywhere, rows = devices.replicated(mesh), devices.by_rows(mesh)
    state_sharding: Any = everywhere
    if len(mesh.axis_names) > 1:
        state_sharding = devices.of_state(abstract_state(method, transform), mesh)

    def step_fn(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, loss_key = jax.random.split(key)
        images = augment(augment_key, batch)

        def loss(params: Any) -> Any:
            # Where devices share a copy (fsdp) it is gathered here, once, so that the compiler
            # has no reason to cut a convolution by its channels and to move activations.
            params = jax.lax.with_sharding_constraint(params, everywhere)
            variables = {**state.variables, "params": params}
            total, aux = method.loss(variables, images, loss_key, state.step)
            # JAX sorts the keys of a dict; the progress line shows the terms in their own order.
            shown = OrderedDict({"loss": total, **aux.terms, **aux.metrics})
            return total, (shown, aux.updates)

        params = state.variables["params"]
        (_, (scalars, new)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer = transform.update(grads, state.optimizer, params)
        params = optim.apply(params, updates, learning_rate(state.step))
        if method.project is not None:
            params = method.project(params)
        variables = {**state.variables, **new, "params": params}
        scalars["grad_norm"] = optax.tree.norm(grads)
        scalars["param_norm"] = optax.tree.norm(variables["params"])
        scalars["lr"] = learning_rate(state.step)
        scalars = OrderedDict((k, jnp.asarray(v, jnp.float32)) for k, v in scalars.items())
        return TrainState(state.step + 1, variables, optimizer), scalars

    return jax.jit(
        step_fn,
        in_shardings=(state_sharding, rows),
        out_shardings=(state_sharding, everywhere),
        donate_argnums=0,
    )


def restore_or_init(
    method: Method,
    transform: optax.GradientTransformation,
    checkpoints: Checkpoints | None,
    *,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> tuple[TrainState, int]:
    """The newest readable checkpoint, or a fresh state at step 0."""
    if checkpoints is not None and checkpoints.latest() is not None:
        shapes = abstract_state(method, transform)
        if (found := checkpoints.restore(devices.abstract(shapes, mesh))) is not None:
            state, step = found
            if int(state.step) != step:
                raise ValueError(
                    f"checkpoint {step} in {checkpoints.directory} holds the state of step "
                    f"{int(state.step)}; take it away to go on from the one before"
                )
            return found
    return devices.place(init_state(method, transform, seed), mesh), 0


def train(
    *,
    state: TrainState,
    start: int,
    step_fn: StepFn,
    batches: Callable[[int, int], Iterator[Batch]],
    steps_per_epoch: int,
    epochs: float,
    mesh: jax.sharding.Mesh,
    writer: Writer,
    checkpoints: Checkpoints | None = None,
    evaluate: Callable[[Variables], Mapping[str, float]] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    max_steps: int | None = None,
    log_every: int = 10,
    eval_every: float = 0,
    checkpoint_every: float = 0,
    clock: Callable[[], float] = time.monotonic,
) -> TrainState:
    """Trains from step `start` to the end.

    Args:
      state, start: where to start, from `restore_or_init`; the state is donated.
      step_fn: from `make_train_step`.
      batches: (start, stop) -> this process's host batches of the steps start .. stop-1.
      steps_per_epoch: turns the epochs below into steps.
      epochs: length of the training.
      mesh: see `devices.make_mesh`.
      writer: takes scalars and lines; see its `write`, `progress` and `say`.
      checkpoints: where states go; None keeps none.
      evaluate: variables -> validation scores; raises `Stopped` when asked to stop.
      should_stop: polled once a step; True saves and raises `Preempted`.
      max_steps: end after this step and leave the rest for another start.
      log_every: steps between records of scalars.
      eval_every: epochs between validations, 0 for none.
      checkpoint_every: epochs between checkpoints, 0 for the last alone.
      clock: seconds, for the speed and the times that are shown.

    Returns:
      The final state, which is also saved.

    Raises:
      Preempted: after saving, when `should_stop` said so.
      NonFiniteError: at the first step with a loss that is not finite; nothing is saved.
    """
    total = epochs_to_steps(epochs, steps_per_epoch)
    end = total if max_steps is None else min(total, max_steps)
    # 0 means "never" for an interval, so an interval below one step becomes one step.
    eval_steps, save_steps = (
        max(epochs_to_steps(every, steps_per_epoch), 1) if every else 0
        for every in (eval_every, checkpoint_every)
    )
    step = start
    if step >= end:
        ended = "already finished" if step >= total else "already there"
        writer.say(f"{ended}: step {step:,} of {total:,}")
    elif step:
        writer.say(f"resumed at step {step:,} of {total:,}")
    if step > eval_steps > 0 and checkpoints is not None and checkpoints.best() is None:
        writer.say("no scores of earlier validations are left: the best step is not known")

    def save(scores: Mapping[str, float] | None = None, wait: bool = False) -> None:
        if checkpoints is None:
            return
        if checkpoints.save(step, state, metrics=scores, wait=wait):
            writer.say(f"checkpoint of step {step:,}{' saved' if wait else ' is being saved'}")

    def validate() -> None:
        if evaluate is None:
            return
        watch.phase("validate")
        before = clock()
        try:
            scores = dict(evaluate(state.variables))
        except Stopped:
            save(wait=True)
            raise Preempted(step) from None
        writer.write(step, scores, split="val")
        save(scores)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        if checkpoints is not None and (best := checkpoints.best()) is not None:
            at = (checkpoints.metrics(best) or {}).get("mAP", math.nan)
            shown += f"; best mAP {at:.4f} at step {best:,}"
        writer.say(f"validation at step {step:,}: {shown} ({duration(clock() - before)})")
        watch.phase("train")

    pending: list[tuple[int, dict[str, jax.Array]]] = []

    def check_finite() -> dict[str, float]:
        """Fetches the scalars of the steps since the last call; returns the newest step's."""
        fetched = jax.device_get(pending)
        for at, scalars in fetched:
            if bad := [k for k, v in scalars.items() if not math.isfinite(v)]:
                values = ", ".join(f"{k} = {float(v):.6g}" for k, v in scalars.items())
                kept = checkpoints.latest() if checkpoints is not None else None
                good = f"the last good checkpoint is step {kept}"
                raise NonFiniteError(
                    f"{', '.join(bad)} not finite at step {at} ({values}); "
                    f"{good if kept else 'no checkpoint was saved yet'}. Try a lower "
                    "--config.optim.lr, more warm-up, or --config.optim.clip_norm=1"
                )
        pending.clear()
        return {k: float(v) for k, v in fetched[-1][1].items()}

    if step and eval_steps and (step % eval_steps == 0 or step == total):
        # Stopped between a save and its validation: do the validation now.
        if checkpoints is not None and checkpoints.metrics(step) is None:
            validate()
    if should_stop():  # asked while the data was loaded; compiling may take minutes
        raise Preempted(step)
    watch.phase("compile")
    begun = shown = clock()
    shown_step = step
    for batch in batches(step, max(step, end)):
        if step == start:
            writer.say("compiling the training step")
            shown = clock()
        state, scalars = step_fn(state, devices.to_global(batch, mesh))  # type: ignore[arg-type]
        step += 1
        if step == start + 1:
            jax.block_until_ready(scalars)
            memory.trim()  # of what the compiler leaves
            writer.say(f"compiled, first step done in {duration(clock() - shown)}")
            shown, shown_step = clock(), step
        watch.phase("train")
        pending.append((step, scalars))
        log, validation, saving = (
            bool(n) and (step % n == 0 or step == total)
            for n in (log_every, eval_steps, save_steps)
        )
        stop = should_stop()
        last = stop or step == end
        if log or validation or saving or last:
            # Before anything is recorded or saved; fetching more often would stall the device.
            newest = check_finite()
        if log or last or clock() - shown >= SAY_EVERY_S:
            if not (log or last):
                newest = {k: float(v) for k, v in jax.device_get(scalars).items()}
            now = clock()
            if step > shown_step:  # a first step says nothing of the speed
                images = (step - shown_step) * 2 * batch["label"].shape[0] * jax.process_count()
                newest["images_per_second"] = images / max(now - shown, 1e-9)
            if log:
                writer.write(step, newest)
            writer.progress(step, total, newest)
            shown, shown_step = now, step
        if validation or saving or last:
            save(wait=stop)
        if stop:
            raise Preempted(step)
        if validation:
            validate()
            shown, shown_step = clock(), step
    if checkpoints is not None:
        checkpoints.wait()
    if step > start:
        took = f"{step - start:,} steps in {duration(clock() - begun)}"
        rest = f"; {total - step:,} steps are left for another start" if step < total else ""
        writer.say(f"trained {took}{' since the resume' if start else ''}{rest}")
    return state
