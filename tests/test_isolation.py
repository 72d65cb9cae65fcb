"""The package without TensorFlow and PyTorch, and the command line without anything heavy."""

import json
import subprocess
import sys

from tests.support.recipes import ROOT


def python(code, *arguments):
    """Runs a script in a process of its own; returns its lines."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


TRAIN = """
import sys
blocked = ("tensorflow", "tensorflow_datasets", "torch")
sys.modules |= dict.fromkeys(blocked)  # importing one raises ImportError
import importlib, pathlib, pkgutil, vireid_jax
names = [m.name for m in pkgutil.walk_packages(vireid_jax.__path__, "vireid_jax.")]
assert len(names) > 20
for name in names:
    try:
        importlib.import_module(name)
    except ImportError:
        assert name == "vireid_jax.data.tfdata", name
from tests.support import linear_command, recipes
from vireid_jax import main, methods
methods.METHODS["linear"] = linear_command.build
folder = pathlib.Path(sys.argv[1])
config = recipes.small("linear", "synthetic", folder)
config.train.tensorboard, config.train.log_every = True, 1
assert main.run(config, workdir=folder / "run", debug=True) == 0
assert not [m for m in sys.modules if m.split(".")[0] in blocked and sys.modules[m]]
"""


def test_everything_but_tfdata_imports_and_trains_without_tensorflow_and_torch(tmp_path):
    python(TRAIN, tmp_path)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2]
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    assert list((tmp_path / "run/eval/2").iterdir())


COMMAND_LINES = [
    (["--help"], 0, ["--config: Recipe", "--workdir"]),
    (["--version"], 0, ["vireid_jax 0."]),
    (["--config=smcl:sysu", "--print_config"], 0, ["optim.lr = 0.00035"]),
    (["--config=configs/smcl.py", "--config.optim.lrr=1"], 2, ["optim.lr"]),
    (["--config=configs/smlc.py"], 2, ["configs/smcl.py"]),
    (["--config=configs/smcl.py:sysuu"], 2, ["sysu"]),
    (["--wrokdir=a"], 2, ["workdir"]),
    ([], 2, ["--config"]),
    (["--config=configs/smcl.py", "train"], 2, ["train"]),
]
ANSWER = """
import contextlib, io, json, sys
from vireid_jax import main

for arguments, expected, texts in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        code = None
        try:
            main.main(["main.py", *arguments])
        except SystemExit as end:
            code = end.code
    shown = said.getvalue()
    assert code == expected and all(text in shown for text in texts), (arguments, shown)
heavy = {"jax", "flax", "optax", "orbax", "tensorflow", "torch", "tensorboard", "PIL"}
print(sorted(heavy & set(sys.modules)))
"""


def test_the_command_line_answers_before_anything_heavy_is_imported():
    assert python(ANSWER, json.dumps(COMMAND_LINES)) == ["[]"]
