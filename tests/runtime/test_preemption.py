"""Signals stop a run after the step, once; several processes stop after the same step."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from vireid_jax.runtime import EXIT_PREEMPTED, preemption

REPO = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def installed():
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    preemption.install()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    preemption._state.signum = None


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_raises_the_flag(installed, signum, code, capfd):
    assert not preemption.requested() and preemption.exit_code() == 0
    os.kill(os.getpid(), signum)
    assert preemption.requested() and preemption.requested()
    assert preemption.exit_code() == code
    assert f"{signum.name}: stopping after this step and saving" in capfd.readouterr().err
    os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat it; the save goes on
    assert preemption.requested() and preemption.exit_code() == code


def test_install_forgets_earlier_requests(installed):
    os.kill(os.getpid(), signal.SIGTERM)
    preemption.install()
    assert not preemption.requested() and preemption.exit_code() == 0


def test_another_thread_cannot_catch_signals(caplog):
    thread = threading.Thread(target=preemption.install)
    thread.start()
    thread.join()
    assert "main thread only" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )


def test_second_interrupt_leaves_at_once():
    process = start(
        "import time\n"
        "from vireid_jax.runtime import preemption\n"
        "preemption.install()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"  # a save that hangs, say; the first signal does not end it
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130 and "leaving at once" in errors


def test_a_signal_during_compilation_is_acted_on_after_it():
    process = start(
        "import jax, jax.numpy as jnp\n"
        "from vireid_jax.runtime import preemption\n"
        "jax.config.update('jax_enable_compilation_cache', False)\n"
        "preemption.install()\n"
        "def f(x):\n"
        "    for i in range(150): x = jnp.sort(jnp.sin(x) @ x)\n"
        "    return x\n"
        "lowered = jax.jit(f).lower(jnp.ones((8, 8)))\n"
        "print('ready', flush=True)\n"
        "lowered.compile()\n"
        "print('compiled', preemption.requested(), flush=True)\n"
        "raise SystemExit(preemption.exit_code())\n"
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=120)
    assert out == "compiled True\n", errors
    assert process.returncode == EXIT_PREEMPTED == 42


WORKER = """
import sys, time
import jax
port, index, folder = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(index), initialization_timeout=60)
from vireid_jax.runtime import preemption
preemption.install()
import numpy as np
from vireid_jax.runtime.checkpoint import Checkpoints
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
spec = jax.sharding.PartitionSpec
shardings = {"variables": {"w": jax.NamedSharding(mesh, spec())},
             "rows": jax.NamedSharding(mesh, spec("data"))}
def state(step):
    host = {"variables": {"w": np.full(4, step, "f4")}, "rows": np.arange(8, dtype="f4") + step}
    return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]),
                        host, shardings)
checkpoints = Checkpoints(folder)
target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                      state(0), shardings)
found = checkpoints.restore(target)
step = 0
if found is not None:
    restored, step = found
    same = jax.tree.map(lambda a, b: bool((a.addressable_data(0) == b.addressable_data(0)).all()),
                        restored, state(step))
    print("restored", step, all(jax.tree.leaves(same)), flush=True)
if found is None:
    checkpoints.save(1, state(1), metrics={"mAP": 0.1}, wait=True)
    print("ready", flush=True)
    for step in range(2, 3000):
        time.sleep(0.01)
        if preemption.requested():
            break
    checkpoints.save(step, state(step), wait=True)
    print("saved", step, flush=True)
checkpoints.close()
jax.distributed.shutdown()
sys.stdout.flush()
raise SystemExit(preemption.exit_code())
"""


def two_processes(folder):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(port), str(index), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPO,
            env=env,
        )
        for index in range(2)
    ]


def said(out):
    """What the worker printed; Gloo prints as well."""
    return "".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]"))


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step_and_resume(tmp_path):
    folder = tmp_path / "ckpt"
    processes = two_processes(folder)
    try:
        for process in processes:
            while (line := process.stdout.readline()) and not said(line):
                pass
            assert line == "ready\n", process.communicate()[1]
        time.sleep(0.3)
        processes[1].send_signal(signal.SIGTERM)  # to one of them only
        outputs = [p.communicate(timeout=120) for p in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [42, 42], outputs
    (saved,) = {said(out) for out, _ in outputs}  # the same on both
    step = int(saved.removeprefix("saved "))
    assert 2 < step < 2999
    shutil.copytree(folder, tmp_path / "damaged")
    for where, expected in [(folder, step), (tmp_path / "damaged", 1)]:
        if expected == 1:
            (where / str(step) / "variables/manifest.ocdbt").write_bytes(b"")
        processes = two_processes(where)
        outputs = [p.communicate(timeout=120) for p in processes]
        assert [said(out) for out, _ in outputs] == [f"restored {expected} True\n"] * 2, outputs
    assert (tmp_path / "damaged/damaged" / str(step)).is_dir()
