"""Signals stop a run after the step, once; several processes stop after the same step."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from vireid_jax.runtime import EXIT_PREEMPTED, command, preemption

REPO = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def installed():
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    preemption.install()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    preemption._state.signum = None


def test_a_signal_raises_the_flag(installed, capfd):
    for signum, code in ((signal.SIGTERM, 42), (signal.SIGINT, 130)):
        preemption.install()  # earlier requests are forgotten
        assert not preemption.requested() and preemption.exit_code() == 0
        os.kill(os.getpid(), signum)
        assert preemption.requested() and preemption.exit_code() == code
        said = capfd.readouterr().err
        assert f"{signum.name}: stopping after what is under way, and saving" in said
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat it; the save goes on
        assert preemption.requested() and preemption.exit_code() == code


def test_signals_are_taken_over_once_there_is_something_to_save(installed, monkeypatch):
    monkeypatch.setattr(command, "_guard", lambda: None)  # it would end the tests
    preemption.take_over()
    os.kill(os.getpid(), signal.SIGTERM)
    preemption.take_over()
    assert preemption.requested(), "a request is not forgotten"
    command.answer_signals()
    with pytest.raises(SystemExit, match="42"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    preemption.take_over()
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.requested()


def test_another_thread_cannot_catch_signals(caplog):
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=preemption.install)
    thread.start()
    thread.join()
    assert "main thread only" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before


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
        "    for i in range(60): x = jnp.sort(jnp.sin(x) @ x)\n"
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
