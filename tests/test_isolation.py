"""The package without TensorFlow and PyTorch, and the command line without anything heavy."""

import json
import pathlib
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[1]

BLOCK = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "torch"):
    sys.modules[name] = None  # importing it raises ImportError
"""


def python(code, *arguments, code_expected=0):
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=300,
    )
    assert run.returncode == code_expected, run.stdout + run.stderr
    return run


def test_everything_but_tfdata_imports_without_tensorflow_and_torch():
    code = BLOCK + (
        "import importlib, pkgutil, vireid_jax\n"
        "names = [m.name for m in pkgutil.walk_packages(vireid_jax.__path__, 'vireid_jax.')]\n"
        "for name in names:\n"
        "    if name != 'vireid_jax.data.tfdata':\n"
        "        importlib.import_module(name)\n"
        "try:\n"
        "    importlib.import_module('vireid_jax.data.tfdata')\n"
        "except ImportError:\n"
        "    print(len(names))\n"
    )
    assert int(python(code).stdout) > 20


TRAIN = (
    BLOCK
    + """
import json
import jax
from functools import partial
from vireid_jax import evaluate, optim, train
from vireid_jax.runtime import devices
from vireid_jax.data import arrays, augment, datasets, sampler
from vireid_jax.metrics import format_table
from vireid_jax.methods import get_build
from vireid_jax.methods.common import Backbone
from vireid_jax.types import train_labels
from vireid_jax.runtime.writer import Writer

sizes = {f"{p}_{m}": 1 for p in ("train", "val", "test") for m in ("visible", "infrared")}
split = datasets.load(
    name="synthetic", image_size=(32, 16), train_ids=4, val_ids=0, test_ids=2, cache=False, **sizes
)
label, persons = train_labels(split.train)
pk = dict(num_ids=4, num_instances=2, seed=0, steps_per_epoch=2, replacement=True)
plan = lambda epoch: sampler.plan(label, split.train.modality, epoch=epoch, **pk)
batches = lambda start, stop: arrays.batches(
    split.train, label, plan, start=start, stop=stop, rows=slice(0, 8)
)
method = get_build("smcl")(
    num_classes=len(persons),
    image_size=(32, 16),
    steps_per_epoch=2,
    backbone=Backbone(depth=10, width=4),
)
transform, learning_rate = optim.make(steps_per_epoch=2, epochs=1.0)
mesh = devices.make_mesh()
step_fn = train.make_train_step(
    method, partial(augment.augment, pad=2), transform, learning_rate, mesh=mesh, seed=0
)
state, start = train.restore_or_init(method, transform, None, mesh=mesh, seed=0)
writer = Writer(sys.argv[1])
state = train.train(
    state=state, start=start, step_fn=step_fn, batches=batches, steps_per_epoch=2, epochs=1.0,
    mesh=mesh, writer=writer, log_every=1,
)
writer.close()
assert int(state.step) == 2
blocked = ("tensorflow", "tensorflow_datasets", "torch")
print(json.dumps(sorted(m for m in sys.modules if m.split(".")[0] in blocked and sys.modules[m])))
"""
)


def test_trains_without_tensorflow_and_torch(tmp_path):
    run = python(TRAIN, tmp_path / "run")
    assert json.loads(run.stdout.splitlines()[-1]) == []
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


COMMAND_LINE = """
import runpy, sys
sys.argv[0] = "vireid_jax/main.py"
try:
    runpy.run_module("vireid_jax.main", run_name="__main__", alter_sys=True)
finally:
    heavy = {"jax", "flax", "optax", "orbax", "tensorflow", "torch", "tensorboard", "PIL"}
    print("HEAVY", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "--config: Recipe"),
        (["--help"], 0, "--workdir"),
        (["--version"], 0, "vireid_jax 0."),
        (["--config=smcl:sysu", "--print_config"], 0, "optim.lr = 0.00035"),
        (["--config=configs/smcl.py", "--config.optim.lrr=1"], 2, "optim.lr"),
        (["--config=configs/smlc.py"], 2, "configs/smcl.py"),
        (["--config=configs/smcl.py:sysuu"], 2, "sysu"),
        (["--wrokdir=a"], 2, "workdir"),
        ([], 2, "--config"),
        (["--config=configs/smcl.py", "train"], 2, "train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_line_answers_before_anything_heavy_is_imported(arguments, code, text):
    run = python(COMMAND_LINE, *arguments, code_expected=code)
    assert text in run.stdout + run.stderr
    assert "HEAVY []" in run.stdout
    assert "Traceback" not in run.stderr
