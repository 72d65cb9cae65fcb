"""Schedules and per-parameter options, as one optax transform and one learning rate.

The learning rate is a function of the training step, not of an optimizer's own counter, so that
it can be logged.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vireid_jax import options
from vireid_jax.types import epochs_to_steps

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("multistep", "cosine", "constant")
WARMUPS = ("step", "epoch")


def make(
    *,
    steps_per_epoch: int,
    epochs: float,
    name: str = "adam",
    lr: float = 3.5e-4,
    weight_decay: float = 0.0,
    decay: str = "coupled",
    momentum: float = 0.9,
    nesterov: bool = False,
    schedule: str = "multistep",
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    warmup_epochs: float = 0.0,
    warmup_factor: float = 0.1,
    warmup_by: str = "step",
    restart_epoch: float | None = None,
    clip_norm: float | None = None,
    multipliers: Sequence[tuple[str, float]] = (),
    no_decay: Sequence[str] = (),
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """Builds the update rule.

    Args:
      steps_per_epoch: turns epochs into steps.
      epochs: length of the training, for the cosine schedule.
      name: "adam" (b1 0.9, b2 0.999, epsilon 1e-8) or "sgd" with momentum.
      lr: peak learning rate.
      weight_decay: L2 strength, of all parameters as in torch, except those of no_decay.
      decay: "coupled" adds weight_decay * parameter to the gradient before the moments, as
        torch.optim.Adam and SGD do; "decoupled" is AdamW.
      momentum, nesterov: of SGD, as torch.optim.SGD's.
      schedule: "multistep" multiplies by gamma at each milestone, "cosine" falls to 0,
        "constant" stays.
      milestones: epochs, ascending; one that is given twice counts twice.
      gamma: factor at a milestone.
      warmup_epochs: linear rise from warmup_factor * lr.
      warmup_factor: where the rise starts.
      warmup_by: "step", a rise to lr at the end of warmup_epochs; or "epoch", constant within an
        epoch, warmup_factor * lr in the first and lr in the last of warmup_epochs (AGW's code
        and its descendants: lr (e + 1) / 10 for ten epochs).
      restart_epoch: the whole schedule, without warm-up, starts again here.
      clip_norm: upper bound of the global gradient norm; None or 0 for none.
      multipliers: (regular expression, factor) pairs; a parameter whose path, such as
        "backbone/stem/conv1/kernel", matches from its start takes factor * lr; the first match
        counts.
      no_decay: regular expressions; a parameter whose path matches has no weight decay.

    Returns:
      (transform, learning_rate): updates are `-learning_rate(step)` times what the
      transform returns; see `apply`.

    Raises:
      ValueError: naming the option. The transform's `init` refuses a pattern that matches no
        parameter.
    """
    own = {k: v for k, v in locals().items() if k not in ("steps_per_epoch", "epochs")}
    options.check("optim", make, own)
    options.check_ranges("train", {"epochs": epochs})
    for option, chosen, allowed in (
        ("name", name, OPTIMIZERS),
        ("schedule", schedule, SCHEDULES),
        ("decay", decay, ("coupled", "decoupled")),
        ("warmup_by", warmup_by, WARMUPS),
    ):
        if chosen not in allowed:
            raise ValueError(f"optim.{option} is {chosen!r}, expected one of {list(allowed)}")
    if warmup_by == "epoch" and warmup_epochs and (warmup_epochs % 1 or warmup_epochs < 2):
        raise ValueError(
            f"optim.warmup_epochs is {warmup_epochs} with warmup_by=epoch, expected 0 or a whole "
            "number from 2 on"
        )
    if nesterov and (name != "sgd" or not momentum):
        raise ValueError(f"optim.nesterov with {name} and momentum {momentum}, expected sgd, > 0")
    if list(milestones) != sorted(milestones):
        raise ValueError(f"optim.milestones {tuple(milestones)} must ascend")
    _check_patterns("multipliers", [pattern for pattern, _ in multipliers])
    _check_patterns("no_decay", no_decay)

    def decayed_weight(path: str, update: Any, param: Any) -> Any:
        if not weight_decay or any(re.match(pattern, path) for pattern in no_decay):
            return update
        return update + weight_decay * param

    def scaled(path: str, update: Any, _: Any) -> Any:
        return next((f for pattern, f in multipliers if re.match(pattern, path)), 1.0) * update

    # Also with weight_decay 0, so that a wrong list does not wait until it counts.
    decays = weight_decay or no_decay
    with_decay = [_by_path("no_decay", no_decay, decayed_weight)] if decays else []
    transform = optax.chain(
        *([optax.clip_by_global_norm(clip_norm)] if clip_norm else []),
        *(with_decay if decay == "coupled" else []),
        optax.scale_by_adam() if name == "adam" else optax.trace(momentum, nesterov),
        *(with_decay if decay == "decoupled" else []),
        *([_by_path("multipliers", [p for p, _ in multipliers], scaled)] if multipliers else []),
    )

    def steps(value: float) -> int:
        return epochs_to_steps(value, steps_per_epoch)

    def decayed(step: Any, length: int) -> Any:
        if schedule == "cosine":
            return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(step / max(length, 1), 0, 1)))
        if schedule == "multistep":
            passed = sum((step >= steps(m)).astype(jnp.float32) for m in milestones)
            return jnp.float32(gamma) ** passed
        return jnp.float32(1)

    def learning_rate(step: Any) -> Any:
        step = jnp.asarray(step)
        total, factor = steps(epochs), decayed(step, steps(epochs))
        if warmup_epochs:
            if warmup_by == "epoch":
                ramp = jnp.clip(step // steps_per_epoch / (warmup_epochs - 1), 0, 1)
            else:
                ramp = jnp.clip(step / max(steps(warmup_epochs), 1), 0, 1)
            factor = factor * (warmup_factor + (1 - warmup_factor) * ramp)
        if restart_epoch is not None:
            again = steps(restart_epoch)
            factor = jnp.where(step >= again, decayed(step - again, total - again), factor)
        return lr * factor

    return transform, learning_rate


def apply(params: Any, updates: Any, learning_rate: Any) -> Any:
    """Params - learning_rate * updates, leaf by leaf, in each parameter's dtype."""
    return jax.tree.map(
        lambda p, u: p - (jnp.asarray(learning_rate, p.dtype) * u).astype(p.dtype), params, updates
    )


def _by_path(
    option: str, patterns: Sequence[str], change: Callable[[str, Any, Any], Any]
) -> optax.GradientTransformation:
    """Updates become change(path, update, parameter); a pattern must match some parameter."""

    def init(params: Any) -> optax.EmptyState:
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in patterns:
            if not any(re.match(pattern, path) for path in paths):
                raise ValueError(
                    f"optim.{option}: {pattern!r} matches no parameter; paths look like {paths[:3]}"
                )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changed = jax.tree_util.tree_map_with_path(
            lambda path, *leaves: change(path_name(path), *leaves), updates, params
        )
        return changed, state

    return optax.GradientTransformation(init, update)


def path_name(path: Any) -> str:
    """A key path of a tree as "a/b/c"."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def _check_patterns(option: str, patterns: Sequence[str]) -> None:
    """Raises ValueError unless these are regular expressions."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"optim.{option}: {pattern!r} is not a regular expression: {error}"
            ) from error
