"""Runs of several processes on this machine, as launch/local_pod.sh starts them."""

import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

from tests.support.plain import QUICK

REPO = pathlib.Path(__file__).resolve().parents[2]
NOISE = re.compile(r"\[Gloo\]|^[WEI]\d{4} ")


@dataclasses.dataclass
class Process:
    """One process of a run; what it writes is read from its log."""

    popen: subprocess.Popen
    log: pathlib.Path

    def out(self):
        """What it wrote, without what libraries chat."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if not NOISE.search(line))


class Pod:
    """Processes that were started together."""

    def __init__(self, processes):
        self.processes = processes

    def wait_for(self, moment, timeout=600):
        """Until `moment()` is true; none may have ended by then."""
        until = time.monotonic() + timeout
        while not moment():
            assert all(p.popen.poll() is None for p in self.processes), self.text()
            assert time.monotonic() < until, self.text()
            time.sleep(0.005)

    def send(self, index, signum):
        self.processes[index].popen.send_signal(signum)

    def wait(self, timeout=600):
        """Until all have ended; whoever has not by then is killed."""
        until = time.monotonic() + timeout
        try:
            for process in self.processes:
                process.popen.wait(max(until - time.monotonic(), 0.1))
        finally:
            self.kill()
        return self

    def kill(self):
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGKILL)
                process.popen.wait()

    @property
    def codes(self):
        return [p.popen.returncode for p in self.processes]

    def text(self):
        return "\n".join(f"--- {n}: {p.out()[-4000:]}" for n, p in enumerate(self.processes))


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(processes, devices, module, *arguments, logs, env=None, own=None, count=None):
    """Starts `python -m module arguments` so many times.

    Args:
      own: {number: arguments} of single processes, in place of the common ones.
      count: how many processes are told that there are; all that are started, usually.
    """
    logs.mkdir(parents=True, exist_ok=True)
    port, started = free_port(), []
    flags = f"--xla_force_host_platform_device_count={devices} "
    flags += f"--xla_cpu_multi_thread_eigen=false {QUICK}"
    for number in range(processes):
        settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "NPROC": "32", **(env or {})}
        if (count or processes) > 1:
            settings |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count or processes),
                "JAX_PROCESS_ID": str(number),
            }
        log = logs / f"{number}-{time.monotonic_ns()}.log"
        mine = (own or {}).get(number, arguments)
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, mine)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=REPO,
                env=os.environ | settings,
            )
        started.append(Process(popen, log))
    return Pod(started)


def pod(processes, devices, module, *arguments, logs=None, **options):
    """Starts a pod and waits for its end."""
    logs = logs or pathlib.Path(str(arguments[0]) + ".logs")
    return start(processes, devices, module, *arguments, logs=logs, **options).wait()
