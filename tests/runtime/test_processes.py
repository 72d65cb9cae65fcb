"""How a run of several processes is found in the environment, and what is refused."""

import os
import pathlib

import pytest

from vireid_jax.runtime import processes
from vireid_jax.runtime.processes import Found, SetupError, detect

EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "node1:8476",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_laptop_is_one_process():
    assert detect({}) is None
    assert detect({"PATH": "/bin", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}) is None  # salloc
    assert detect(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert detect(EXPLICIT | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    assert detect({}, libtpu=True) is None
    assert detect({}, chips=True) is None


def test_explicit():
    assert detect(EXPLICIT) == Found("explicit", "node1:8476", 4, 3)
    with_devices = EXPLICIT | {"JAX_LOCAL_DEVICE_IDS": "0,2"}
    assert detect(with_devices) == Found("explicit", "node1:8476", 4, 3, (0, 2))
    # What is said outright goes before what is found.
    assert detect(EXPLICIT | SLURM, chips=True, libtpu=True).kind == "explicit"


def without(env, name):
    return {k: v for k, v in env.items() if k != name}


REFUSED = [
    *((without(EXPLICIT, name), f"given without {name}; exp.* all three") for name in EXPLICIT),
    (EXPLICIT | {"JAX_PROCESS_ID": "4"}, "ID is 4 with JAX_NUM_PROCESSES=4, expected 0 to 3"),
    (EXPLICIT | {"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1', expected a number"),
    (EXPLICIT | {"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES is 'four', expected a number"),
    (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "node1"}, "'node1', expected host:port of process 0"),
    (EXPLICIT | {"JAX_LOCAL_DEVICE_IDS": "0,x"}, "JAX_LOCAL_DEVICE_IDS is 'x', expected a number"),
    (SLURM | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is '', expected hosts"),
    (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "many"}, "TASKS_PER_NODE is 'many', expected such"),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS is 'x', expected a number"),
    (without(SLURM, "SLURM_JOB_ID"), "SLURM_JOB_ID is '', expected a number"),
]


def test_wrong_settings_are_refused():
    assert set(EXPLICIT) == set(processes.EXPLICIT)
    for env, message in REFUSED:
        with pytest.raises(SetupError, match=message):
            detect(env)


def test_slurm():
    port = 61440 + 70001 % 4096
    assert detect(SLURM) == Found("slurm", f"gpu03:{port}", 8, 5, (1,))
    # A single task on its node takes all its GPUs; so does one that Slurm gave a GPU of its own.
    alone = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,1"}
    assert detect(alone).devices is None
    assert detect(alone | {"SLURM_NODEID": "0"}).devices == (1,)
    assert detect(SLURM | {"CUDA_VISIBLE_DEVICES": "2"}).devices is None
    assert detect(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}).devices == (1,)
    assert detect(SLURM | {"JAX_LOCAL_DEVICE_IDS": "3"}).devices == (3,)
    assert detect(SLURM | {"JAX_COORDINATOR_PORT": "8476"}).coordinator == "gpu03:8476"
    assert detect(SLURM | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:9"}).coordinator == "10.0.0.1:9"
    for nodes, first in {
        "node7": "node7",
        "node7,node9": "node7",
        "gpu[003-007,9],x": "gpu003",
        "gpu[12,15]": "gpu12",
        "rack1-n[2-4]-ib": "rack1-n2-ib",
    }.items():
        assert detect(SLURM | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{first}:{port}"


def test_tpu():
    assert detect({}, chips=True, libtpu=True) == Found("tpu")
    assert detect({"JAX_PLATFORMS": "cpu"}, chips=True, libtpu=True) is None
    assert detect({"JAX_PLATFORMS": "tpu,cpu"}, chips=True, libtpu=True) == Found("tpu")


def test_start_of_one_process(tmp_path, monkeypatch):
    for name in (*processes.EXPLICIT, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    processes.start(tmp_path, "auto")
    assert processes.count() == 1 and processes.process() == 0
    processes.check_equal("anything", {"a": 1})
    assert processes.finish(7) == 7
    assert not os.listdir(tmp_path)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    processes.start(tmp_path, "off")  # whatever the environment says
    with pytest.raises(SetupError, match="--dist is 'maybe', expected one of auto, off, on"):
        processes.start(tmp_path, "maybe")
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS")
    with pytest.raises(SetupError, match="--dist=on, but nothing here says that the run has sev"):
        processes.start(tmp_path, "on")


def test_an_error_of_communication_without_a_suspect():
    """It is this process's own, which a restart may not cure: not 43."""
    error = RuntimeError("RESOURCE_EXHAUSTED: out\nof memory")
    code, message = processes.explain(error, patience_s=0)
    assert code == 70
    assert message.startswith("internal error: RuntimeError: RESOURCE_EXHAUSTED: out; please")
    pathlib.Path(message.rpartition(" ")[2]).unlink()
