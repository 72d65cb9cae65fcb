"""The training loop, top to bottom. It knows no method, data set or protocol by name.

One step is one jitted function over the mesh: augment, loss, gradients, update. All its
randomness comes from (seed, step), and the batches from (seed, epoch), so a run that is
killed and started again ends with the bits of a run that was not.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from absl import logging

from vireid_jax import optim
from vireid_jax.runtime import devices, watch
from vireid_jax.runtime.checkpoint import Checkpoints
from vireid_jax.types import Batch, LossFn, Method, Stopped, Variables, epochs_to_steps


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


class Scalars(Protocol):
    """What the loop needs of a writer."""

    def write(self, step: int, scalars: dict[str, float], *, split: str = "train") -> None:
        """Records scalars."""

    def progress(self, step: int, total: int, scalars: dict[str, float]) -> None:
        """Shows how far the run is."""


def init_state(method: Method, transform: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state, filled on the host from `seed`."""
    variables = dict(method.init(jax.random.key(seed)))
    return TrainState(jnp.int32(0), variables, transform.init(variables["params"]))


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

    def minimize(
        loss: LossFn, variables: dict[str, Any], optimizer: Any, batch: Batch, key: Any, step: Any
    ) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        def of_params(params: Any) -> Any:
            # Where devices share a copy (fsdp) it is gathered here, once, so that the compiler
            # has no reason to cut a convolution by its channels and to move activations.
            params = jax.lax.with_sharding_constraint(params, everywhere)
            return loss({**variables, "params": params}, batch, key, step)

        params = variables["params"]
        (total, aux), grads = jax.value_and_grad(of_params, has_aux=True)(params)
        updates, optimizer = transform.update(grads, optimizer, params)
        params = optim.apply(params, updates, learning_rate(step))
        if method.project is not None:
            params = method.project(params)
        scalars = {"loss": total, **aux.terms, **aux.metrics, "grad_norm": optax.tree.norm(grads)}
        return {**variables, **aux.updates, "params": params}, optimizer, scalars

    def step_fn(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, loss_key = jax.random.split(key)
        images = augment(augment_key, batch)
        variables, optimizer, scalars = minimize(
            method.loss, state.variables, state.optimizer, images, loss_key, state.step
        )
        scalars["param_norm"] = optax.tree.norm(variables["params"])
        scalars["lr"] = learning_rate(state.step)
        # jit sorts the keys of a dict; the progress line shows the terms of the loss first.
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
    writer: Scalars,
    checkpoints: Checkpoints | None = None,
    evaluate: Callable[[Variables], Mapping[str, float]] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    log_every: int = 10,
    eval_every: float = 0,
    checkpoint_every: float = 0,
    clock: Callable[[], float] = time.monotonic,
) -> TrainState:
    """Trains from step `start` to the end.

    Args:
      state: where to start, from `restore_or_init`; it is donated.
      start: steps done in `state`.
      step_fn: from `make_train_step`.
      batches: (start, stop) -> this process's host batches of the steps start .. stop-1.
      steps_per_epoch: turns the epochs below into steps.
      epochs: length of the training.
      mesh: see `devices.make_mesh`.
      writer: takes the scalars.
      checkpoints: where states go; None keeps none.
      evaluate: variables -> validation scores; raises `Stopped` when asked to stop.
      should_stop: polled once a step; True saves and raises `Preempted`.
      log_every: steps between records of scalars.
      eval_every: epochs between validations, 0 for none.
      checkpoint_every: epochs between checkpoints, 0 for the last alone.
      clock: seconds, for images per second.

    Returns:
      The final state, which is also saved.

    Raises:
      Preempted: after saving, when `should_stop` said so.
      NonFiniteError: at the first step with a loss that is not finite; nothing is saved.
    """
    total = epochs_to_steps(epochs, steps_per_epoch)
    # 0 means "never" for an interval, so an interval below one step becomes one step.
    eval_steps = max(epochs_to_steps(eval_every, steps_per_epoch), 1) if eval_every else 0
    save_steps = max(epochs_to_steps(checkpoint_every, steps_per_epoch), 1)
    save_steps = save_steps if checkpoint_every else 0
    step = start
    if step:
        logging.info("resumed at step %d of %d", step, total)

    def save(scores: Mapping[str, float] | None = None, wait: bool = False) -> None:
        if checkpoints is not None:
            checkpoints.save(step, state, metrics=scores, wait=wait)

    def validate() -> None:
        if evaluate is None:
            return
        watch.phase("validate")
        try:
            scores = dict(evaluate(state.variables))
        except Stopped:
            save(wait=True)
            raise Preempted(step) from None
        writer.write(step, scores, split="val")
        save(scores)
        watch.phase("train")

    pending: list[tuple[int, dict[str, jax.Array]]] = []

    def check_finite() -> dict[str, float]:
        """Fetches the scalars of the steps since the last call; returns those of the newest."""
        fetched = jax.device_get(pending)
        for at, scalars in fetched:
            if bad := [k for k, v in scalars.items() if not math.isfinite(v)]:
                raise NonFiniteError(_non_finite(at, bad, scalars, checkpoints))
        pending.clear()
        return {k: float(v) for k, v in fetched[-1][1].items()}

    if step and eval_steps and (step % eval_steps == 0 or step == total):
        # Stopped between a save and its validation: do the validation now.
        if checkpoints is not None and checkpoints.metrics(step) is None:
            validate()
    if should_stop():  # asked while the data was loaded; compiling may take minutes
        raise Preempted(step)
    watch.phase("compile")
    mark, mark_step = clock(), step
    for batch in batches(step, total):
        state, scalars = step_fn(state, devices.to_global(batch, mesh))  # type: ignore[arg-type]
        watch.phase("train")
        step += 1
        pending.append((step, scalars))
        log, validation, saving = (
            bool(n) and (step % n == 0 or step == total)
            for n in (log_every, eval_steps, save_steps)
        )
        stop = should_stop()
        last = stop or step == total
        if log or validation or saving or last:
            # Before anything is recorded or saved; fetching more often would stall the device.
            newest = check_finite()
        if log:
            now = clock()
            rate = (step - mark_step) * 2 * batch["label"].shape[0] * jax.process_count()
            newest["images_per_second"] = rate / max(now - mark, 1e-9)
            writer.write(step, newest)
            writer.progress(step, total, newest)
            mark, mark_step = now, step
        if validation or saving or last:
            save(wait=stop)
        if stop:
            raise Preempted(step)
        if validation:
            validate()
            mark, mark_step = clock(), step
    if checkpoints is not None:
        checkpoints.wait()
    return state


def _non_finite(
    step: int, bad: list[str], scalars: Mapping[str, Any], checkpoints: Checkpoints | None
) -> str:
    kept = checkpoints.latest() if checkpoints is not None else None
    values = ", ".join(f"{k} = {float(v):.6g}" for k, v in scalars.items())
    after = f"the last good checkpoint is step {kept}" if kept else "no checkpoint was saved yet"
    return (
        f"{', '.join(bad)} not finite at step {step} ({values}); {after}. Try a lower "
        "--config.optim.lr, more warm-up, or --config.optim.clip_norm=1"
    )
