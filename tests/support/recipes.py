"""The recipes, and a small run of each on a small tree of a data set."""

import importlib
import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from vireid_jax.methods.common import Backbone
from vireid_jax.types import Records

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("common", "tables")
)
SIZE = (48, 24)


def recipe_of(name, arg=None):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def small(recipe, dataset, tmp_path, root=None, preset=""):
    """A recipe with a tiny network, two steps, and nothing outside `tmp_path`.

    "linear" is SMCL's recipe with the method of tests/support/linear_command.py.
    """
    arg = ",".join(filter(None, (dataset, preset)))
    c = recipe_of("smcl" if recipe == "linear" else recipe, arg)
    c.data.image_size = SIZE
    if root is None:
        c.data.train_ids, c.data.val_ids, c.data.test_ids = 6, 4, 4
        c.data.test_visible = c.data.test_infrared = 2
    else:
        c.data.root, c.data.strict = str(root), False
    c.data.cache = str(tmp_path / "cache")
    if dataset == "folders":
        c.data.test_share = 0.4
    c.sampler.num_ids, c.sampler.num_instances, c.sampler.steps_per_epoch = 4, 2, 2
    c.method.depth, c.method.width = 10, 8
    if "metric_from_epoch" in c.method:
        c.method.metric_from_epoch = 0.0
    if "generator_ratios" in c.method:
        c.method.generator_ratios = (2, 3, 6)  # of maps of 12 x 6
    if recipe == "linear":
        shared = {key: c.method[key] for key in Backbone._fields if key in c.method}
        c.method = ConfigDict({"name": "linear", "from_step": 0, **shared})
    c.optim.schedule, c.optim.milestones, c.optim.warmup_epochs = "constant", (), 0.0
    c.augment.pad = 2
    c.train.epochs, c.train.tensorboard = 1.0, False
    c.eval.batch_size = 32
    c.eval.trials = 2 if dataset in ("synthetic", "sysu", "llcm") else None
    return c


def saved(workdir):
    """The results of the one step that was scored in a folder."""
    (step,) = (workdir / "eval").iterdir()
    return [json.loads(p.read_text()) for p in sorted(step.iterdir())]


def people(rows, per=2, size=SIZE):
    """Black records of SYSU-MM01's (person, camera) rows, `per` images each."""
    rows = [row for row in rows for _ in range(per)]
    person, camera = np.array(rows, np.int32).T
    return Records(
        np.zeros((len(rows), *size, 3), np.uint8),
        person,
        camera,
        np.isin(camera, (3, 6)).astype(np.int8),
        [f"cam{c}/{p:04d}/{n:04d}" for n, (p, c) in enumerate(rows)],
    )
