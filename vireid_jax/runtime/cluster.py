"""How many processes a run has, and where they meet, as the environment says.

explicit   JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID
Slurm      a step of several tasks (srun)
TPU        a machine with TPU chips: a pod slice on Google Cloud, by its own metadata, or on
           Kubernetes; jax knows both
otherwise  one process, as on a laptop
"""

import dataclasses
import re
from collections.abc import Mapping

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclasses.dataclass(frozen=True)
class Found:
    """How a run of several processes is set up."""

    kind: str  # "explicit", "slurm" or "tpu"
    coordinator: str | None = None  # host:port; None: jax finds the rest itself
    processes: int | None = None
    process: int | None = None
    devices: tuple[int, ...] | None = None  # local ones to use; None: all that are visible


class SetupError(ValueError):
    """The processes of a run cannot be set up, or are not equal."""


def detect(env: Mapping[str, str], *, chips: bool = False, libtpu: bool = False) -> Found | None:
    """What the environment says of a run of several processes; None for one.

    Args:
      env: as os.environ.
      chips: whether this machine has TPU chips.
      libtpu: whether the library for them is installed.

    Raises:
      SetupError: half of an explicit set-up, or numbers that are none.
    """
    devices = None
    if env.get("JAX_LOCAL_DEVICE_IDS"):
        devices = tuple(
            number("JAX_LOCAL_DEVICE_IDS", n) for n in env["JAX_LOCAL_DEVICE_IDS"].split(",")
        )
    given = [name for name in EXPLICIT if env.get(name)]
    if len(given) == len(EXPLICIT):
        count = number("JAX_NUM_PROCESSES", env["JAX_NUM_PROCESSES"])
        own = number("JAX_PROCESS_ID", env["JAX_PROCESS_ID"])
        if not re.fullmatch(r".+:\d+", env["JAX_COORDINATOR_ADDRESS"]):
            raise SetupError(
                f"JAX_COORDINATOR_ADDRESS is {env['JAX_COORDINATOR_ADDRESS']!r}, expected "
                "host:port of process 0, with a port that is free there, such as node1:8476"
            )
        if not 0 <= own < count:
            raise SetupError(
                f"JAX_PROCESS_ID is {own} with JAX_NUM_PROCESSES={count}, expected 0 to "
                f"{count - 1}, another for every process"
            )
        if count == 1:
            return None
        return Found("explicit", env["JAX_COORDINATOR_ADDRESS"], count, own, devices)
    tasks = number("SLURM_STEP_NUM_TASKS", env.get("SLURM_STEP_NUM_TASKS") or "1")
    if tasks > 1 and "SLURM_PROCID" in env:
        return _slurm(env, devices)
    if chips and libtpu and env.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return Found("tpu", env.get("JAX_COORDINATOR_ADDRESS"), devices=devices)
    if given:
        missing = [name for name in EXPLICIT if name not in given]
        raise SetupError(
            f"{', '.join(given)} given without {', '.join(missing)}; expected all three (host:port "
            "of process 0, how many processes there are, the number of this one), or none"
        )
    return None


def _slurm(env: Mapping[str, str], devices: tuple[int, ...] | None) -> Found:
    """A Slurm step: process 0 is on its first node."""
    job = number("SLURM_JOB_ID", env.get("SLURM_JOB_ID", ""))
    # Ports that nobody registers; jobs that share a node get different ones.
    port = env.get("JAX_COORDINATOR_PORT") or str(61440 + job % 4096)
    tasks = _tasks_here(env)
    bound = len([d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]) == 1
    if devices is None and tasks > 1 and not bound:
        devices = (number("SLURM_LOCALID", env.get("SLURM_LOCALID", "")),)  # a GPU for each task
    host = first_host(env.get("SLURM_STEP_NODELIST", ""))
    return Found(
        "slurm",
        env.get("JAX_COORDINATOR_ADDRESS") or f"{host}:{port}",
        int(env["SLURM_STEP_NUM_TASKS"]),
        number("SLURM_PROCID", env["SLURM_PROCID"]),
        devices,
    )


def _tasks_here(env: Mapping[str, str]) -> int:
    """Tasks of the step on this node, of a list such as "4(x2),3"."""
    counts: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        if not (match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)):
            raise SetupError(
                f"SLURM_STEP_TASKS_PER_NODE is {env['SLURM_STEP_TASKS_PER_NODE']!r}, expected such "
                "as '4(x2),3'; start the job with srun"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[min(int(env.get("SLURM_NODEID") or 0), len(counts) - 1)]


def first_host(nodes: str) -> str:
    """The first host of a Slurm list: "gpu[003-007,9],x" -> "gpu003"."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if not match:
        raise SetupError(
            f"SLURM_STEP_NODELIST is {nodes!r}, expected hosts such as gpu[003-007]; start the job "
            "with srun, or set JAX_COORDINATOR_ADDRESS=host:port of process 0"
        )
    return "".join(part or "" for part in match.groups())


def number(name: str, text: str) -> int:
    """The number that a variable holds.

    Raises:
      SetupError: it holds something else.
    """
    if not re.fullmatch(r"\d+", text.strip()):
        raise SetupError(f"{name} is {text!r}, expected a number")
    return int(text)
