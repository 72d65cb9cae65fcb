"""Process set-up: one function, called before any other use of jax.

The environment says how many processes a run has, and where they meet: see `detect`. JAX's own
detection is left to TPUs. Under Slurm it gives every task one GPU, even one that has a node to
itself; it counts the tasks of the job, not of the step; and what it finds is known only after all
have connected, whereas the watch has to name who is missing until then.

Before they compute anything, the processes compare what must be equal (versions, config,
devices), over the connection alone: a collective between unequal processes would hang.
"""

import glob
import importlib.util
import json
import os
import pathlib
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from absl import logging

from vireid_jax.runtime import (
    ENDED_WELL,
    EXIT_INTERNAL,
    EXIT_PEER_LOST,
    command,
    indented,
    watch,
)

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
MODES = ("auto", "off", "on")
START_TIMEOUT = "VIREID_START_TIMEOUT"
HEARTBEAT_TIMEOUT = "VIREID_HEARTBEAT_TIMEOUT"
DEFAULT_S = {START_TIMEOUT: 600, HEARTBEAT_TIMEOUT: 100}
WATCH_FIRST_S = 30

# Variables that decide how processes find each other and their devices, by their beginnings; shown
# where they do not.
SHOWN = (
    *("JAX_COORDINATOR_", "JAX_NUM_", "JAX_PROCESS_", "JAX_LOCAL_DEVICE_", "JAX_PLATFORMS"),
    *("CUDA_VISIBLE_", "XLA_PYTHON_CLIENT_MEM_", "LIBTPU_INIT_", "TPU_WORKER_", "MEGASCALE_"),
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_", "http_proxy", "https_proxy"),
)


class Found(NamedTuple):
    """How a run of several processes is set up."""

    kind: str  # "explicit", "slurm" or "tpu"
    coordinator: str | None = None  # host:port; None: jax finds the rest itself
    processes: int | None = None
    process: int | None = None
    devices: tuple[int, ...] | None = None  # local ones to use; None: all that are visible


class SetupError(ValueError):
    """The processes of a run cannot be set up, or are not equal."""


def start(
    workdir: str | os.PathLike[str],
    mode: str = "auto",
    hold: Callable[[int], object] = lambda process: None,
) -> None:
    """Connects the processes of the run, if it has several, and starts to watch them.

    Args:
      workdir: the run's folder, which all hosts share.
      mode: "auto"; "off" is one process whatever the environment says (notebooks, a single TPU
        machine without metadata); "on" refuses to be only one.
      hold: takes the number of this process, before it writes into the folder.

    Raises:
      SetupError: wrong settings, or a folder that the hosts do not share.
    """
    if mode not in MODES:
        raise SetupError(f"--dist is {mode!r}, expected one of {', '.join(MODES)}")
    env = os.environ
    found = None
    if mode != "off" and not jax.distributed.is_initialized():
        found = detect(env, chips=_has_chips(), libtpu=bool(importlib.util.find_spec("libtpu")))
    if found is None:
        if mode == "on":
            raise SetupError(
                "--dist=on, but nothing here says that the run has several processes; expected "
                f"{', '.join(EXPLICIT)}, a Slurm step of several tasks, or TPU chips"
            )
        return
    waits = {name: _seconds(name) for name in DEFAULT_S}
    if found.process is not None and found.processes is not None:
        hold(found.process)
        _watch(workdir, found.process, found.processes, waits)
    logging.info("several processes (%s): %s", found.kind, _shown())
    _connect(found, waits)
    if count() > 1:
        if watch.current() is None:
            hold(process())
            _watch(workdir, process(), count(), waits)
        watch.phase("devices")
        _check_shared(pathlib.Path(workdir))


def _connect(found: Found, waits: Mapping[str, int]) -> None:
    try:
        # The watch can name who is missing, so it gives up before jax aborts the process.
        jax.distributed.initialize(
            *found[1:],
            cluster_detection_method=None if found.kind == "tpu" else "deactivate",
            initialization_timeout=waits[START_TIMEOUT] + WATCH_FIRST_S,
            heartbeat_timeout_seconds=waits[HEARTBEAT_TIMEOUT] + WATCH_FIRST_S,
        )
    except (RuntimeError, ValueError) as error:
        hint = "is the port free, and open between the hosts?"
        if found.kind == "tpu":
            hint = "on a single machine with TPUs and no metadata server, add --dist=off."
        raise SetupError(
            f"the processes cannot be connected ({found.kind}): {command.first_line(error)}; "
            f"{hint} The environment says: {_shown()}"
        ) from error


def _watch(folder: str | os.PathLike[str], own: int, total: int, waits: Mapping[str, int]) -> None:
    start, silence = waits[START_TIMEOUT], waits[HEARTBEAT_TIMEOUT]
    watch.start(watch.Watch(folder, own, total, start_timeout=start, silence_timeout=silence))


def check_equal(topic: str, facts: Mapping[str, Any]) -> None:
    """Compares facts over all processes; nothing is computed. All call it in the same order.

    Args:
      topic: names the comparison; another one for each call.
      facts: name -> what JSON can hold.

    Raises:
      SetupError: on every process, if one differs from process 0.
    """
    if count() == 1:
        return
    first, *others = map(json.loads, _exchange(topic, json.dumps(facts, sort_keys=True)))
    lines = [
        f"{name}: {_short(first.get(name))} on process 0, {_short(other.get(name))} on process "
        f"{number}"
        for number, other in enumerate(others, 1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if lines:
        raise SetupError(
            f"the processes differ in {topic}, expected the same everywhere:\n{indented(lines, 12)}"
        )


def _exchange(topic: str, text: str) -> list[str]:
    """The texts of all processes, by their numbers."""
    client = _state().client
    client.key_value_set(f"vireid_jax/{topic}/{process()}", text)
    wait_ms = 1000 * _seconds(START_TIMEOUT)
    return [
        client.blocking_key_value_get(f"vireid_jax/{topic}/{other}", wait_ms)
        for other in range(count())
    ]


def _state() -> Any:
    # The one place that looks behind jax.distributed: its key-value store has no public name
    # (Orbax uses it, too), and the public numbers of processes would start the backends.
    from jax._src.distributed import global_state

    return global_state


def count() -> int:
    """How many processes the run has; starts no backend."""
    return _state().num_processes if jax.distributed.is_initialized() else 1


def process() -> int:
    """The number of this process; starts no backend."""
    return _state().process_id if jax.distributed.is_initialized() else 0


def _check_shared(workdir: pathlib.Path) -> None:
    """Refuses a run folder that another host does not see."""
    token = secrets.token_hex(8)
    path = workdir / watch.HOSTS / "token"
    if process() == 0:
        path.write_text(token)
    token = _exchange("token", token)[0]
    try:
        here = path.read_text()
    except OSError:
        here = ""
    answers = _exchange("shared", "seen" if here == token else "missing")
    apart = [str(n) for n, answer in enumerate(answers) if answer == "missing"]
    if apart:
        raise SetupError(
            f"process(es) {', '.join(apart)} do not see the folder {workdir.absolute()} of process "
            "0; expected a --workdir that all hosts share (NFS, Lustre, Filestore, or a bucket "
            "mounted with gcsfuse), under the same path"
        )


def finish(code: int, message: str = "") -> int:
    """Marks this process as ended, so that the others know; returns `code`, for sys.exit.

    Processes that end alike wait for each other. One that ends with an error leaves at once; the
    others learn it from their watch.
    """
    several = count() > 1
    # With process 0 goes the service that connects them, and jax aborts whoever still needs it;
    # so it gives the others the time to read why.
    failed_first = several and code not in ENDED_WELL and process() == 0
    watch.end(code, message, linger_s=2 * watch.GRACE_S if failed_first else 0)
    if several:
        sys.stdout.flush()
        sys.stderr.flush()
        if code not in ENDED_WELL:
            os._exit(code)
        jax.distributed.shutdown()
    return code


def explain(error: Exception, patience_s: float = 5 * watch.BEAT_S) -> tuple[int, str]:
    """The exit code for an error that has no better explanation, and what to say.

    `EXIT_PEER_LOST` where a process is gone, for which it looks `patience_s`; else it is an error
    of the program.
    """
    found, until = watch.current(), time.monotonic() + patience_s
    while found is not None:
        if suspects := found.suspects():
            return EXIT_PEER_LOST, f"{found.lost_message(suspects)}\n({command.first_line(error)})"
        if time.monotonic() > until:
            break
        time.sleep(0.2)
    return EXIT_INTERNAL, command.explain(error)


def _has_chips() -> bool:
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def _seconds(name: str) -> int:
    return _number(name, text) if (text := os.environ.get(name)) else DEFAULT_S[name]


def _shown() -> str:
    env = sorted(os.environ.items())
    return ", ".join(f"{k}={v}" for k, v in env if v and k.startswith(SHOWN))


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


# --- What the environment says --------------------------------------------------------------


def detect(env: Mapping[str, str], *, chips: bool = False, libtpu: bool = False) -> Found | None:
    """What the environment says of a run of several processes; None for one.

      explicit   JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID
      slurm      a step of several tasks (srun)
      tpu        a machine with TPU chips: a pod slice on Google Cloud, by its own metadata, or on
                 Kubernetes; jax knows both, and finds the rest itself
      otherwise  one process, as on a laptop

    Args:
      env: as os.environ.
      chips: whether this machine has TPU chips.
      libtpu: whether the library for them is installed.

    Raises:
      SetupError: half of an explicit set-up, or numbers that are none.
    """
    devices = None
    if text := env.get("JAX_LOCAL_DEVICE_IDS"):
        devices = tuple(_number("JAX_LOCAL_DEVICE_IDS", n) for n in text.split(","))
    given = [name for name in EXPLICIT if env.get(name)]
    if len(given) == len(EXPLICIT):
        return _explicit(env, devices)
    tasks = _number("SLURM_STEP_NUM_TASKS", env.get("SLURM_STEP_NUM_TASKS") or "1")
    if tasks > 1 and "SLURM_PROCID" in env:
        return _slurm(env, tasks, devices)
    if chips and libtpu and env.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return Found("tpu", env.get("JAX_COORDINATOR_ADDRESS"), devices=devices)
    if given:
        missing = [name for name in EXPLICIT if name not in given]
        raise SetupError(
            f"{', '.join(given)} given without {', '.join(missing)}; expected all three (host:port "
            "of process 0, how many processes there are, the number of this one), or none"
        )
    return None


def _explicit(env: Mapping[str, str], devices: tuple[int, ...] | None) -> Found | None:
    address, *texts = (env[name] for name in EXPLICIT)
    count, own = map(_number, EXPLICIT[1:], texts)
    if not re.fullmatch(r".+:\d+", address):
        raise SetupError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}, expected host:port of process 0, with a port "
            "that is free there, such as node1:8476"
        )
    if own >= count:
        raise SetupError(
            f"JAX_PROCESS_ID is {own} with JAX_NUM_PROCESSES={count}, expected 0 to {count - 1}, "
            "another for every process"
        )
    return None if count == 1 else Found("explicit", address, count, own, devices)


def _slurm(env: Mapping[str, str], count: int, devices: tuple[int, ...] | None) -> Found:
    """A Slurm step: process 0 is on its first node."""
    job = _number("SLURM_JOB_ID", env.get("SLURM_JOB_ID", ""))
    # Ports that nobody registers; jobs that share a node get different ones.
    port = env.get("JAX_COORDINATOR_PORT") or str(61440 + job % 4096)
    bound = len([d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]) == 1
    if devices is None and _tasks_here(env) > 1 and not bound:
        devices = (_number("SLURM_LOCALID", env.get("SLURM_LOCALID", "")),)  # a GPU for each task
    host = _first_host(env.get("SLURM_STEP_NODELIST", ""))
    address = env.get("JAX_COORDINATOR_ADDRESS") or f"{host}:{port}"
    return Found("slurm", address, count, _number("SLURM_PROCID", env["SLURM_PROCID"]), devices)


def _tasks_here(env: Mapping[str, str]) -> int:
    """Tasks of the step on this node, of a list such as "4(x2),3"."""
    counts: list[int] = []
    text = env.get("SLURM_STEP_TASKS_PER_NODE", "1")
    for part in text.split(","):
        if not (match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)):
            raise SetupError(
                f"SLURM_STEP_TASKS_PER_NODE is {text!r}, expected such as '4(x2),3'; start the job "
                "with srun"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[min(int(env.get("SLURM_NODEID") or 0), len(counts) - 1)]


def _first_host(nodes: str) -> str:
    """The first host of a Slurm list: "gpu[003-007,9],x" -> "gpu003"."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if not match:
        raise SetupError(
            f"SLURM_STEP_NODELIST is {nodes!r}, expected hosts such as gpu[003-007]; start the job "
            "with srun, or set JAX_COORDINATOR_ADDRESS=host:port of process 0"
        )
    return "".join(part or "" for part in match.groups())


def _number(name: str, text: str) -> int:
    """The number that a variable holds; anything else is a SetupError."""
    if not re.fullmatch(r"\d+", text.strip()):
        raise SetupError(f"{name} is {text!r}, expected a number")
    return int(text)
