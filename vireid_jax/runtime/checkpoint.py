"""Checkpoints: asynchronous saves, exact restores, damage found before it trains, by Orbax.

A step is one Orbax folder `<directory>/<step>/`, committed by a rename, with three items:

  variables   the flax collections (parameters, statistics): all that evaluation needs
  training    the rest of the state (optimizer moments, counters)
  manifest    JSON: shape, dtype and CRC-32 of every array, and a CRC-32 of itself

Orbax notices files that it cannot parse, not sound files with the wrong arrays in them. The
manifest closes that gap: a restore either returns the bits that were saved or says that it
cannot. (An array that is sharded over several processes has no checksum: none of them holds all
of it.) Scores live beside the steps in `scores.json`, so that a step is
written once and may be scored later.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from vireid_jax.runtime import manifest, orbax_settings, scores

DAMAGED = "damaged"  # the folder, beside the steps, that unreadable steps are moved into


class Checkpoints:
    """The checkpoints of one run: the last `keep` steps, and the best-scored one.

    Every process of a run makes one and calls the same methods in the same order.
    """

    def __init__(
        self, directory: str | pathlib.Path, *, keep: int = 3, best_metric: str | None = "mAP"
    ):
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1: resuming needs one checkpoint")
        orbax_settings.apply()
        self.directory = pathlib.Path(directory).absolute()
        self.best_metric = best_metric
        self._scores = scores.read(self.directory)
        policy = ocp.checkpoint_managers
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,  # what a killed save left behind
                save_root_metadata=False,
                preservation_policy=policy.AnyPreservationPolicy(
                    [policy.LatestN(keep), _KeepBest(self)]
                ),
            ),
        )

    def steps(self) -> list[int]:
        """The steps on disk or being saved, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, None if there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the highest `best_metric` (the later of equals), None if none is scored."""
        return scores.best(self.steps(), self._scores, self.best_metric)

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics that `step` was saved with; None means that it is yet to be evaluated."""
        return self._scores.get(step)

    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
        wait: bool = False,
    ) -> bool:
        """Saves `state` as `step` in the background; the state may be donated on return.

        A step that is there already is not written again: only its metrics are noted.

        Args:
          step: optimizer steps done.
          state: pytree of arrays with a top-level entry (key or field) "variables".
          metrics: scores of this state, if it was evaluated.
          force: also save a step older than the newest one.
          wait: return only when the step is on disk.

        Returns:
          Whether arrays were written.

        Raises:
          ValueError: no "variables" in the state, or an old step without `force`.
        """
        if metrics is not None:
            # Before the arrays: a step without a score would never become the best.
            self._note(step, metrics)
        written = step not in self.steps()
        if written:
            newest = self.latest()
            if newest is not None and step < newest and not force:
                raise ValueError(
                    f"step {step} is older than the newest checkpoint, {newest}, in "
                    f"{self.directory}; is a second run using this folder? Pass force=True to "
                    "save it nevertheless"
                )
            items = manifest.split(state)
            args = {k: ocp.args.StandardSave(manifest.nest(v)) for k, v in items.items() if v}
            args["manifest"] = ocp.args.JsonSave(manifest.describe(items, step))
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        if wait:
            self.wait()
        return written

    def restore(self, target: Any, step: int | None = None) -> tuple[Any, int] | None:
        """Restores a state, bit for bit as it was saved, onto any devices.

        Args:
          target: pytree of jax.ShapeDtypeStruct with shardings, as the state that was saved.
          step: a step; None takes the newest readable one. On the way, steps that cannot be
            read are moved into `<directory>/damaged/` with a warning.

        Returns:
          (state, step), or None where there is no checkpoint.

        Raises:
          ValueError: the arrays differ from the target's (names and shapes are listed, the
            folder is left alone), or the `step` asked for is damaged.
          FileNotFoundError: the `step` asked for is not there.
        """
        self.wait()
        if step is not None:
            _require(self.directory, step)
            return _read(self.directory / str(step), target, manifest.ITEMS), step
        while (newest := self.latest()) is not None:
            try:
                return _read(self.directory / str(newest), target, manifest.ITEMS), newest
            except manifest.DamageError as error:
                self._set_aside(newest, error)
        return None

    def wait(self) -> None:
        """Blocks until every save is on disk; raises what a save in the background raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the saves and lets go of the threads."""
        self._manager.close()

    def _note(self, step: int, metrics: Mapping[str, float]) -> None:
        self._scores[step] = {k: float(v) for k, v in metrics.items()}
        if jax.process_index() == 0:
            scores.write(self.directory, self._scores)

    def _set_aside(self, step: int, error: Exception) -> None:
        folder = self.directory / DAMAGED
        target = folder / str(step)
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            n = 1
            while target.exists():
                n += 1
                target = folder / f"{step}-{n}"
            (self.directory / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"vireid_jax/set_aside/{step}")
        self._manager.reload()
        rest = self.latest()
        logging.warning(
            "checkpoint %d is damaged (%s); moved to %s, %s",
            step,
            error,
            target,
            "and no other is left: starting anew" if rest is None else f"trying step {rest}",
        )


def restore_variables(
    directory: str | pathlib.Path,
    target: Any,
    step: int | str = "last",
    *,
    best_metric: str = "mAP",
) -> tuple[Any, int]:
    """Restores the variables alone, for evaluation; nothing in the folder changes.

    Args:
      directory: the folder of a `Checkpoints`; a run may be writing to it.
      target: pytree of jax.ShapeDtypeStruct, as the state's "variables". Leaves without a
        sharding are placed on the first local device.
      step: "last", "best" or a step.
      best_metric: the metric whose highest value is "best".

    Returns:
      (variables, step).

    Raises:
      FileNotFoundError: no such checkpoint; the message lists what the folder holds.
      ValueError: the checkpoint is damaged, or its arrays differ from the target's.
    """
    chosen = find_step(directory, step, best_metric=best_metric)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device), target
    )
    restored = _read(
        pathlib.Path(directory).absolute() / str(chosen), {"variables": target}, ("variables",)
    )
    return restored["variables"], chosen


def find_step(
    directory: str | pathlib.Path, step: int | str = "last", *, best_metric: str = "mAP"
) -> int:
    """The number behind "last", "best" or a number, of a step that is on disk.

    Raises:
      FileNotFoundError: there is none; the message lists what the folder holds.
      ValueError: `step` is something else.
    """
    directory = pathlib.Path(directory).absolute()
    steps = _steps(directory)
    if isinstance(step, int):
        _require(directory, step)
        return step
    if step not in ("last", "best"):
        raise ValueError(f"step is {step!r}, expected 'last', 'best' or a number of {steps}")
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {directory}; {_listing(directory)}")
    if step == "last":
        return steps[-1]
    known = scores.read(directory)
    best = scores.best(steps, known, best_metric)
    if best is None:
        raise FileNotFoundError(
            f"no checkpoint in {directory} has a score '{best_metric}' (steps {steps}, scored "
            f"{sorted(set(known) & set(steps))}); take step 'last' or one of these"
        )
    return best


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, deaf to preemption.

    Orbax polls JAX's preemption service with the train step as id; `preemption.py` polls it with
    a counter of its own. Mixed ids can miss the step that all processes agreed to stop at.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _KeepBest:
    """Preservation policy: the best-scored of the steps on disk."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        own = self._checkpoints
        best = scores.best([c.step for c in checkpoints], own._scores, own.best_metric)
        return [c.step == best for c in checkpoints]


def _steps(directory: pathlib.Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and p.is_dir())


def _listing(directory: pathlib.Path) -> str:
    """What the nearest existing folder holds, for an error message."""
    folder = directory
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{folder} holds {shown or 'nothing'}; train first, or name another --workdir"


def _require(directory: pathlib.Path, step: int) -> None:
    if step not in (steps := _steps(directory)):
        raise FileNotFoundError(
            f"no checkpoint of step {step} in {directory}; steps there: {steps}; "
            f"{_listing(directory)}"
        )


def _read(folder: pathlib.Path, target: Any, items: tuple[str, ...]) -> Any:
    """The arrays of `target` from a step's folder; the checksums are checked.

    Raises:
      DamageError: unreadable, or not the bits that were saved. On every process, if on one.
      ValueError: names, shapes or dtypes differ from the target's.
    """
    paths, _, treedef = manifest.flatten(target)
    state: dict[manifest.Key, Any] = {}
    error: Exception | None = None
    try:
        saved = manifest.read(folder)
        wanted = {k: v for k, v in manifest.split(target).items() if k in items and v}
        manifest.check_arrays(folder, wanted, saved, items)
        args = {k: ocp.args.StandardRestore(manifest.nest(v)) for k, v in wanted.items()}
        state = _restore(folder, args)
        for path in paths:
            crc = saved[manifest.array_name(path)]["crc32"]
            found = manifest.checksum(state[path])
            if None not in (crc, found) and crc != found:
                raise manifest.DamageError(
                    f"{folder}: {manifest.array_name(path)} has checksum {found}, "
                    f"it was saved with {crc}"
                )
    except manifest.DamageError as caught:
        error = caught
    if jax.process_count() > 1:
        fine = multihost_utils.process_allgather(np.asarray(error is None))
        if error is None and not fine.all():
            error = manifest.DamageError(f"{folder}: process {int(np.argmin(fine))} cannot read it")
    if error is not None:
        raise error
    return jax.tree.unflatten(treedef, [state[path] for path in paths])


def _restore(folder: pathlib.Path, args: Mapping[str, Any]) -> dict[manifest.Key, Any]:
    orbax_settings.apply()
    reason = ""
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(folder, args=ocp.args.Composite(**args))
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise  # of this machine, not of the files
    except Exception as error:  # Orbax and TensorStore document no narrower class
        reason = _reason(error)
    if reason:
        raise manifest.DamageError(f"{folder}: {reason}")
    state: dict[manifest.Key, Any] = {}
    for item in args:
        paths, leaves, _ = manifest.flatten(restored[item])
        state.update(zip(paths, leaves, strict=True))
    return state


def _reason(error: BaseException) -> str:
    """The first line of the error at the root: Orbax wraps TensorStore's."""
    while error.__cause__ is not None:
        error = error.__cause__
    # TensorStore quotes the bytes that it could not parse.
    text = str(error).encode("ascii", "backslashreplace").decode()
    return f"{type(error).__name__}: {text.partition(chr(10))[0][:500]}"
