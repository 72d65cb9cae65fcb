"""Stopping a run on SIGTERM or ctrl-C: a flag that the loop polls, set by the signal.

One process catches the signals itself; JAX's preemption service would need a port, answer only at
its next poll, and take SIGTERM away from whoever embeds the package. Several processes must stop
after the same step, so there the service decides: `jax.distributed.initialize` starts it, it
catches SIGTERM in whichever process it reaches, and the processes agree on a poll to stop at.
Ctrl-C becomes a SIGTERM there. A signal that arrives while XLA compiles is acted on right after.
"""

import os
import signal
import threading
from types import FrameType

import jax
from absl import logging
from jax.experimental import multihost_utils

from vireid_jax.runtime import EXIT_INTERRUPTED, EXIT_PREEMPTED, command, say


class _State:
    """The process's flag: signals are a matter of the whole process."""

    signum: int | None = None
    polls: int = 0  # they must rise and be equal on all processes
    interrupted: bool = False  # by ctrl-C, in a run of several processes


_state = _State()


def install() -> None:
    """Catches SIGTERM and SIGINT from here on. Call once, from the main thread, at set-up.

    In a run of several processes, call it after `jax.distributed.initialize`, whose service then
    keeps SIGTERM.
    """
    command.hand_over()
    _state.signum, _state.polls, _state.interrupted = None, 0, False
    several = _several_processes()
    if threading.current_thread() is not threading.main_thread():
        if not several:
            logging.warning("SIGTERM is not caught: signals can be caught in the main thread only")
        return
    signal.signal(signal.SIGINT, _pass_on if several else _handle)
    if not several:
        signal.signal(signal.SIGTERM, _handle)


def take_over() -> None:
    """From here on there is something to save: no signal ends a command at once any more."""
    if command.answers():
        install()


def requested() -> bool:
    """Whether to stop now: save, close the writers, and exit with `exit_code()`.

    Poll once per train step and once per evaluation batch, on all processes in the same order.
    Once true, it stays true.
    """
    if _state.signum is None and _several_processes():
        _state.polls += 1
        if multihost_utils.reached_preemption_sync_point(_state.polls):
            _state.signum = signal.SIGTERM
    return _state.signum is not None


def exit_code() -> int:
    """The code to exit with: 0 if no stop was requested."""
    if _state.signum is None:
        return 0
    return EXIT_INTERRUPTED if _state.signum == signal.SIGINT else EXIT_PREEMPTED


def _several_processes() -> bool:
    # Before initialize(), asking for the process count would start the backends.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _handle(signum: int, frame: FrameType | None) -> None:
    del frame
    if _state.signum is None:
        _state.signum = signum
        hint = "; again to leave at once" if signum == signal.SIGINT else ""
        say(f"{signal.Signals(signum).name}: stopping after what is under way, and saving{hint}")
    elif signum == signal.SIGINT:
        _leave()
    # A second SIGTERM changes nothing: the save is under way.


def _pass_on(signum: int, frame: FrameType | None) -> None:
    """Ctrl-C in a run of several processes."""
    del signum, frame
    if _state.interrupted:
        _leave()
    _state.interrupted = True
    say("SIGINT: stopping all processes after the same step and saving; again to leave at once")
    os.kill(os.getpid(), signal.SIGTERM)  # jax's service catches it, and tells the others


def _leave() -> None:
    # Steps are committed by a rename, so the folder stays sound whatever is cut off here.
    say("SIGINT again: leaving at once, without waiting for the save")
    os._exit(EXIT_INTERRUPTED)
