"""How a run of several processes is found in the environment, and what is refused."""

import os

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


@pytest.mark.parametrize("missing", processes.EXPLICIT)
def test_half_of_an_explicit_set_up_is_refused(missing):
    env = {k: v for k, v in EXPLICIT.items() if k != missing}
    with pytest.raises(SetupError, match=f"given without {missing}; expected all three"):
        detect(env)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID is 4 with JAX_NUM_PROCESSES=4, expected 0 to 3"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1', expected a number"),
        ({"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES is 'four', expected a number"),
        ({"JAX_COORDINATOR_ADDRESS": "node1"}, "is 'node1', expected host:port of process 0"),
        ({"JAX_LOCAL_DEVICE_IDS": "0,x"}, "JAX_LOCAL_DEVICE_IDS is 'x', expected a number"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(SetupError, match=message):
        detect(EXPLICIT | change)


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


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("gpu[003-007,9],x", "gpu003"),
        ("gpu[12,15]", "gpu12"),
        ("rack1-n[2-4]-ib", "rack1-n2-ib"),
    ],
)
def test_first_host_of_a_slurm_list(nodes, host):
    assert processes._first_host(nodes) == host


def test_wrong_slurm_settings_are_refused():
    with pytest.raises(SetupError, match="SLURM_STEP_NODELIST is '', expected hosts"):
        detect(SLURM | {"SLURM_STEP_NODELIST": ""})
    with pytest.raises(SetupError, match="SLURM_STEP_TASKS_PER_NODE is 'many', expected such"):
        detect(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "many"})
    with pytest.raises(SetupError, match="SLURM_STEP_NUM_TASKS is 'x', expected a number"):
        detect(SLURM | {"SLURM_STEP_NUM_TASKS": "x"})
    with pytest.raises(SetupError, match="SLURM_JOB_ID is '', expected a number"):
        detect({k: v for k, v in SLURM.items() if k != "SLURM_JOB_ID"})


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


def test_an_error_of_communication_without_a_suspect():
    """It is this process's own, which a restart may not cure: not 43."""
    found = processes.explain(RuntimeError("RESOURCE_EXHAUSTED: out\nof memory"), patience_s=0)
    assert found == (1, "error: RuntimeError: RESOURCE_EXHAUSTED: out")
