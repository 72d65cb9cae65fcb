"""The manifests: against the schemas of Kubernetes and of JobSet, and with one another."""

import runpy

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.shell import LAUNCH, StandIns, run

pytestmark = pytest.mark.slow

VERSION = "1.30"  # the first with stable podFailurePolicy is 1.31; its schema is the same
JOBSETS = ("jobset.yaml", "jobset-gpu.yaml")


# The fields of a JobSet that we use, from https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/
# (the Job in it is checked by the schema of batch/v1).
def _fields(*required, **properties):
    """An object of these fields and no others."""
    closed = {"additionalProperties": False, "required": list(required)}
    return {"type": "object", "properties": properties, **closed}


def _list(items, least=0):
    return {"type": "array", "minItems": least, "items": items}


_ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
_REASONS = (
    *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"),
    "PodFailurePolicy",
)
_RULE = _fields(
    *("action", "name"),
    name={"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": list(_ACTIONS)},
    onJobFailureReasons=_list({"enum": list(_REASONS)}),
    targetReplicatedJobs={"type": "array"},
)
_SPEC = _fields(
    "replicatedJobs",
    network=_fields(
        enableDNSHostnames={"type": "boolean"},
        publishNotReadyAddresses={"type": "boolean"},
        subdomain={"type": "string"},
    ),
    failurePolicy=_fields(
        maxRestarts={"type": "integer", "minimum": 0},
        restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
        rules=_list(_RULE),
    ),
    replicatedJobs=_list(
        _fields(
            *("name", "template"),
            name={"type": "string"},
            replicas={"type": "integer", "minimum": 1},
            template={"type": "object"},
        ),
        least=1,
    ),
)
_JOBSET = _fields(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata={"type": "object", "required": ["name"]},
    spec=_SPEC,
)


def load(name: str) -> dict:
    return yaml.safe_load((LAUNCH / "gke" / name).read_text())


def check(jobset: dict) -> None:
    jsonschema.validate(jobset, _JOBSET)
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
        kubernetes_validate.validate(job | replicated["template"], VERSION, strict=True)


@pytest.fixture(params=JOBSETS)
def jobset(request):
    return load(request.param)


def parts(jobset: dict) -> tuple[dict, dict, dict]:
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return job, pod, container


def test_schema(jobset):
    check(jobset)


def test_the_schemas_notice_mistakes(jobset):
    for section in (jobset["spec"]["failurePolicy"], *parts(jobset)):
        section["mispelt"] = 1
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check(jobset)
        del section["mispelt"]
    check(jobset)


def test_storage():
    claim = load("storage.yaml")
    kubernetes_validate.validate(claim, VERSION, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # every pod writes
    for name in JOBSETS:
        (shared,) = [v for v in parts(load(name))[1]["volumes"] if v["name"] == "shared"]
        assert shared["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_restarts(jobset):
    job, pod, container = parts(jobset)
    policy = jobset["spec"]["failurePolicy"]
    first, second = job["podFailurePolicy"]["rules"]
    assert first["action"] == second["action"] == "FailJob"
    assert first["onExitCodes"]["values"] == sorted({42, 43, 143})
    assert first["onExitCodes"]["containerName"] == container["name"]
    assert second["onPodConditions"][0]["type"] == "DisruptionTarget"
    (rule,) = policy["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert policy["maxRestarts"] > 0
    # What those policies ask for, and a run whose processes stand or fall together.
    assert pod["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    assert pod["terminationGracePeriodSeconds"] == 120


def test_folders_are_on_the_shared_volume(jobset):
    _, pod, container = parts(jobset)
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "shared"]
    assert "shared" in {v["name"] for v in pod["volumes"]}
    paths = [a.partition("=")[2] for a in container["args"] if a.startswith("--workdir=")]
    paths += [e["value"] for e in container["env"] if e["name"] == "JAX_COMPILATION_CACHE_DIR"]
    assert len(paths) == 2
    assert all(path.startswith(f"{mount['mountPath']}/") for path in paths)


def test_tpu_hosts_and_chips():
    job, pod, container = parts(load("jobset.yaml"))
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert chips == job["completions"] * resources["limits"]["google.com/tpu"]
    assert container["command"][2].endswith('exec python -m vireid_jax.main "$@"')
    assert "SYS_RESOURCE" in container["securityContext"]["capabilities"]["add"]


def test_the_batch_divides_over_the_devices(jobset):
    job, _, container = parts(jobset)
    (each,) = [n for key, n in container["resources"]["limits"].items() if "/" in key]
    options = dict(a.lstrip("-").split("=") for a in container["args"])
    name, _, dataset = options["config"].partition(":")
    config = runpy.run_path(str(LAUNCH.parent / name))["get_config"](dataset)
    rows = int(options["config.sampler.num_ids"]) * config.sampler.num_instances
    assert rows % (job["completions"] * int(each)) == 0


def test_gpu_pods_are_told_who_they_are():
    jobset = load("jobset-gpu.yaml")
    job, pod, container = parts(jobset)
    name = jobset["metadata"]["name"]
    env = {entry["name"]: entry for entry in container["env"]}
    replicated = jobset["spec"]["replicatedJobs"][0]
    host, port = env["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{name}"
    assert int(port) in {p["containerPort"] for p in container["ports"]}
    assert env["JAX_NUM_PROCESSES"]["value"] == str(job["completions"])
    path = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert replicated["replicas"] == 1  # indices count within one Job
    assert jobset["spec"]["network"]["enableDNSHostnames"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert "command" not in container  # the image's own, in exec form


_XPK = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "IMAGE": "i:1"}


def test_xpk(tmp_path):
    stand_ins = StandIns(tmp_path / "bin", xpk="")
    arguments = ["gke/xpk.sh", "my-run", "--", "--config=c.py:x", "--workdir=/shared/a b"]
    result = run(*arguments, **_XPK, **stand_ins.environment())
    assert result.returncode == 0, result.stderr
    (call,) = stand_ins.calls()
    assert call.startswith("xpk <workload> <create> <--workload=my-run>")
    for option in (
        *("--cluster=c", "--project=p", "--zone=z", "--docker-image=i:1", "--tpu-type=v6e-16"),
        *("--restart-on-exit-codes=42,43,143", "--termination-grace-period-seconds=120"),
    ):
        assert f"<{option}>" in call
    assert r"exec python -m vireid_jax.main --config=c.py:x --workdir=/shared/a\ b>" in call
    dry = run(
        "gke/xpk.sh", "my-run", "--dry_run", *arguments[2:], **_XPK, **stand_ins.environment()
    )
    assert dry.stdout.startswith("xpk workload create")
    assert len(stand_ins.calls()) == 1


def test_xpk_refuses():
    for arguments, variables, message in (
        (["Run", "--"], _XPK, "NAME is 'Run'"),
        (["run", "--", "--workdir=gs://b/x"], _XPK, "--workdir is 'gs://b/x'"),
        (["run", "--", "--config=x"], _XPK, "--workdir is ''"),
        (["run", "--", "--workdir=/s"], {**_XPK, "IMAGE": ""}, "IMAGE is not set"),
        (["run"], _XPK, "-- is missing"),
    ):
        result = run("gke/xpk.sh", *arguments, **variables)
        assert result.returncode == 2, arguments
        assert message in result.stderr, arguments
