"""tpu_vm.sh against a gcloud that only records how it is called."""

import shlex

import pytest

from tests.launch.shell import ROOT, StandIns, run

pytestmark = pytest.mark.slow

_VARIABLES = {"PROJECT": "a-project", "ZONE": "z-1", "NAME": "pod", "ACCELERATOR": "v6e-16"}
_PLACE = "<--project=a-project> <--zone=z-1>"
_JOB = ["--", "--config=c.py:sysu", "--workdir=/mnt/vireid/runs/a b"]
# `describe` answers with the states in the file, one after the other, the last one for ever.
_GCLOUD = """
if [[ " $* " == *" describe "* ]]; then
  read -r state <"$STAND_IN/states"
  [[ $(wc -l <"$STAND_IN/states") -lt 2 ]] || sed -i 1d "$STAND_IN/states"
  [[ $state != NOT_FOUND ]] || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }
  [[ $state != DENIED ]] || { echo "ERROR: PERMISSION_DENIED" >&2; exit 1; }
  echo "$state"
fi
"""
_GIT = 'for a in "$@"; do [[ $a != --output=* ]] || echo packed >"${a#*=}"; done'


class Cloud:
    def __init__(self, folder):
        self.stand_ins = StandIns(folder / "the bin", gcloud=_GCLOUD, git=_GIT)

    def __call__(self, *arguments: str, states: str = "ACTIVE", **variables: str):
        (self.stand_ins.folder / "states").write_text("\n".join(states.split()) + "\n")
        (self.stand_ins.folder / "calls").unlink(missing_ok=True)
        settings = {**_VARIABLES, "POLL_SECONDS": "0", "BUCKET": "bkt", **variables}
        return run("tpu_vm.sh", *arguments, **settings, **self.stand_ins.environment())

    def calls(self, word: str = "gcloud") -> list[str]:
        """The recorded calls, without looks at the state."""
        return [c for c in self.stand_ins.calls() if word in c and "<describe>" not in c]

    def on_workers(self) -> list[str]:
        """What was run by ssh on every worker."""
        start = f"gcloud <compute> <tpus> <tpu-vm> <ssh> <pod> {_PLACE} <--worker=all> <--command="
        calls = [c for c in self.calls() if "<ssh>" in c]
        assert all(c.startswith(start) for c in calls), calls
        return [c.removeprefix(start).removesuffix(">") for c in calls]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


@pytest.mark.parametrize(
    ("accelerator", "google", "image"),
    [
        ("v6e-16", "v6e-16", "v2-alpha-tpuv6e"),
        ("v5p-32", "v5p-32", "v2-alpha-tpuv5"),
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5litepod-8", "v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v4-32", "v4-32", "tpu-ubuntu2204-base"),
    ],
)
@pytest.mark.parametrize("spot", ["1", "0"])
def test_up(cloud, accelerator, google, image, spot):
    states = "NOT_FOUND WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
    result = cloud("up", states=states, ACCELERATOR=accelerator, SPOT=spot)
    assert result.returncode == 0, result.stderr
    expected = (
        f"gcloud <compute> <tpus> <queued-resources> <create> <pod-qr> <--node-id=pod> {_PLACE} "
        f"<--accelerator-type={google}> <--runtime-version={image}>"
    )
    assert cloud.calls() == [expected + " <--spot>" * (spot == "1")]
    assert all(state in result.stderr for state in states.split()[1:])


def test_up_does_not_ask_twice_and_refuses_a_lost_one(cloud):
    assert cloud("up", states="PROVISIONING ACTIVE").returncode == 0
    assert cloud.calls() == []
    result = cloud("up", states="SUSPENDED")
    assert result.returncode == 1
    assert "tpu_vm.sh resume" in result.stderr
    result = cloud("up", states="NOT_FOUND FAILED")
    assert result.returncode == 1
    assert "FAILED, expected ACTIVE" in result.stderr


def test_run(cloud):
    variables = {"PASS": "LIBTPU_INIT_ARGS", "LIBTPU_INIT_ARGS": "--a=1 --b"}
    result = cloud("run", *_JOB, **variables)
    assert result.returncode == 0, result.stderr
    idle, unpack, setup, started = cloud.on_workers()
    assert "on_worker.sh idle" in idle
    assert unpack.endswith("tar -xzf vireid.tar.gz -C vireid")
    words = ["bash", "vireid/launch/setup_host.sh", "tpu", "--bucket", "bkt"]
    assert shlex.split(setup) == [*words, "--mount", "/mnt/vireid"]
    assert shlex.split(started) == [
        *("bash", "vireid/launch/on_worker.sh", "start"),
        "JAX_COMPILATION_CACHE_DIR=/mnt/vireid/xla_cache",
        "LIBTPU_INIT_ARGS=--a=1 --b",
        *_JOB,
    ]
    (copy,) = cloud.calls("<scp>")
    assert copy.endswith(f"/vireid.tar.gz> <pod:vireid.tar.gz> {_PLACE} <--worker=all>")
    order = [c.split("<")[4][:3] for c in cloud.calls()]
    assert order == ["ssh", "scp", "ssh", "ssh", "ssh"]
    (pack,) = cloud.calls("<archive>")
    assert pack.endswith(" <HEAD>")


@pytest.mark.parametrize("state", ["SUSPENDED", "PROVISIONING", "NOT_FOUND"])
def test_run_needs_machines(cloud, state):
    result = cloud("run", *_JOB, states=state)
    assert result.returncode == 1
    assert "expected ACTIVE" in result.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize("state", ["SUSPENDED", "SUSPENDING", "FAILED"])
def test_resume_deletes_before_it_creates(cloud, state):
    result = cloud("resume", *_JOB, states=f"{state} PROVISIONING ACTIVE")
    assert result.returncode == 0, result.stderr
    delete, create, *rest = cloud.calls()
    start = "gcloud <compute> <tpus> <queued-resources>"
    assert delete == f"{start} <delete> <pod-qr> {_PLACE} <--force> <--quiet>"
    assert create.startswith(f"{start} <create> <pod-qr>")
    assert len(rest) == 5


def test_resume_keeps_what_is_there_and_makes_what_is_not(cloud):
    assert cloud("resume", *_JOB, states="ACTIVE").returncode == 0
    assert [c for c in cloud.calls() if "<queued-resources>" in c] == []
    assert len(cloud.on_workers()) == 4
    assert cloud("resume", *_JOB, states="NOT_FOUND ACTIVE").returncode == 0
    (create,) = [c for c in cloud.calls() if "<queued-resources>" in c]
    assert "<create>" in create


def test_status_logs_stop_down(cloud):
    assert "pod-qr: ACTIVE" in cloud("status").stdout
    assert cloud.on_workers() == ["bash vireid/launch/on_worker.sh status"]
    assert "nothing is paid for" in cloud("status", states="NOT_FOUND").stdout
    assert cloud.calls() == []
    cloud("logs", "7")
    assert cloud.on_workers() == ["bash vireid/launch/on_worker.sh logs 7"]
    cloud("stop")
    assert cloud.on_workers() == ["bash vireid/launch/on_worker.sh stop"]
    cloud("down")
    (delete,) = cloud.calls()
    assert delete.endswith(f"<delete> <pod-qr> {_PLACE} <--force> <--quiet>")


@pytest.mark.parametrize("action", ["up", "run", "resume", "status"])
def test_no_access_is_not_taken_for_no_machines(cloud, action):
    result = cloud(action, *(_JOB if action in ("run", "resume") else []), states="DENIED")
    assert result.returncode == 1
    assert "PERMISSION_DENIED" in result.stderr
    assert "nothing is paid for" not in result.stdout
    assert cloud.calls() == []


@pytest.mark.parametrize("action", ["up", "run", "status", "logs", "stop", "resume", "down"])
def test_dry_run_prints_and_does_nothing(cloud, action):
    result = cloud(action, "--dry_run", *(_JOB if action in ("run", "resume") else []))
    assert result.returncode == 0, result.stderr
    assert cloud.calls("gcloud") == [] and cloud.calls("<archive>") == []
    printed = [
        shlex.split(line) for line in result.stdout.splitlines() if line[:3] in ("gcl", "git")
    ]
    assert printed
    cloud(action, *(_JOB if action in ("run", "resume") else []), states="ACTIVE")
    if action not in ("up", "resume"):  # those look first, and would find machines
        done = [c for c in cloud.calls() if "<scp>" not in c]
        said = [w for w in printed if w[0] == "gcloud" and "scp" not in w]
        assert done == ["gcloud " + " ".join(f"<{w}>" for w in words[1:]) for words in said]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ([], {}, "the action is ''"),
        (["upp"], {}, "the action is 'upp'"),
        (["up", "now"], {}, "unknown argument 'now'"),
        *((["up"], {name: ""}, f"{name} is not set") for name in _VARIABLES),
        (["up"], {"ACCELERATOR": "h100-8"}, "no runtime version is known"),
        (["up"], {"SPOT": "yes"}, "SPOT is 'yes'"),
        (["run"], {}, "no arguments after --"),
        (["run", "--", "--config=x"], {}, "--workdir is missing"),
        (["run", "--", "--workdir=gs://bkt/runs"], {}, "--workdir is 'gs://bkt/runs'"),
        (["run", "--", "--workdir", "gs://bkt/runs"], {}, "mounted with gcsfuse"),
        (["run", "--", "--workdir=runs/a"], {}, "own disk"),
        (["run", *_JOB], {"BUCKET": ""}, "set BUCKET"),
        (["run", *_JOB], {"PASS": "NOPE"}, "PASS names NOPE"),
        *(
            (["run", *_JOB], {"PASS": f"HOME {name}"}, f"PASS has '{name.split()[0]}', expected")
            for name in ("x[$(touch${IFS}evaluated)]", "1a", "*", "A=b", "a-b")
        ),
        (["resume", "--", "--config=x"], {}, "--workdir is missing"),
    ],
)
def test_refusals(cloud, arguments, variables, message):
    result = cloud(*arguments, **variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert cloud.calls() == [] and not (ROOT / "evaluated").exists()


def test_own_image_and_own_mount(cloud):
    cloud("up", states="NOT_FOUND ACTIVE", ACCELERATOR="v9-8", RUNTIME="my-image", QR="mine")
    assert "<create> <mine>" in cloud.calls()[0]
    assert "<--runtime-version=my-image>" in cloud.calls()[0]
    job = ["--", "--config=x", "--workdir=/nfs/runs"]
    assert cloud("run", *job, BUCKET="").returncode == 0
    setup, started = cloud.on_workers()[2:]
    assert setup == "bash vireid/launch/setup_host.sh tpu"
    assert shlex.split(started)[3:] == job
