"""Methods in the training loop: they overfit a handful of people, with every parameter."""

import importlib
from functools import partial

import jax
import numpy as np
import optax
import pytest

from tests.support.linear import Recorder
from tests.support.tiny import build
from vireid_jax import optim
from vireid_jax.data import augment
from vireid_jax.methods.common import Backbone
from vireid_jax.train import make_train_step, restore_or_init, train

P, K, STEPS = 8, 2, 50
PIXELS = (32, 16)


def _people():
    """Eight looks, as colors in visible and as other gray values in infrared images."""
    rng = np.random.default_rng(5)
    looks = rng.integers(0, 256, (2, P, 4, 2, 3))
    looks[1] = looks[1, ..., :1]
    looks = looks.repeat(8, axis=2).repeat(8, axis=3)
    return np.repeat(looks, K, axis=1)  # [2, P * K, 32, 16, 3]


def people_batches(start, stop):
    people = _people()
    for step in range(start, stop):
        noise = np.random.default_rng([6, step]).integers(-20, 21, people.shape)
        images = np.clip(people + noise, 0, 255).astype(np.uint8)
        yield {
            "visible": images[0],
            "infrared": images[1],
            "label": np.repeat(np.arange(P), K).astype(np.int32),
            "camera": np.zeros((P * K, 2), np.int32),
        }


@pytest.fixture(autouse=True, scope="module")
def compiled_plainly():
    """With optimizations, unlike the other whole models of this folder: these run for long."""


# The last maps are 2 x 1 pixels: these columns of a kernel see padding and nothing else.
PADDED = {"layer3_0/conv1": [0], "layer3_0/conv2": [0, 2]}
PADDED |= dict.fromkeys(("layer4_0/conv1", "layer4_0/conv2"), PADDED["layer3_0/conv2"])


def without_gradient(gradients):
    """Names of the parameters that have an entry without a gradient."""
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name, leaf = optim.path_name(path), np.asarray(leaf)
        for kernel, columns in PADDED.items():
            if kernel in name.replace("_specific", ""):  # the second copy of IDKL
                assert not leaf[:, columns].any()
                leaf = np.delete(leaf, columns, axis=1)
        if (leaf == 0).any():
            found.add(name)
    return found


def train_on_people(method):
    """Trains on `people_batches`: the logged rows by step, and parameters without a gradient."""
    transform, rate = optim.make(steps_per_epoch=STEPS, epochs=1, lr=0.01, schedule="constant")
    writer = Recorder()
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    state, start = restore_or_init(method, transform, None, mesh=mesh, seed=0)
    light = partial(augment.augment, pad=1, flip=0.5)
    step_fn = make_train_step(method, light, transform, rate, mesh=mesh, seed=0)
    state = train(
        **dict(state=state, start=start, step_fn=step_fn, batches=people_batches, mesh=mesh),
        **dict(steps_per_epoch=STEPS, epochs=1, writer=writer, log_every=1),
    )
    # Adam's second moment is 0 where no batch gave a gradient.
    return writer.of("train"), without_gradient(optax.tree.get(state.optimizer, "nu"))


# The maps that the expansion sees are 2 x 1 pixels: most of its kernels see padding alone.
EXPANSION = {f"expansion/dilated_{n}/kernel" for n in (1, 2, 3)}
SPATIAL = "expansion/spatial_kernel"
# Case -> (changes of the recipe for the embedded data, terms that fall, parameters without a
# gradient). IDKL's modality heads see nothing dropped: 16 images are few.
CASES = {
    "agw": ({}, ("tri",), set()),
    "idkl:official": (
        dict(modality_dropout=0.0),
        ("tgsa", "csa", "tri_purified", "id_purified"),
        set(),
    ),
    "pdm": (dict(num_prototypes=4), ("tri", "cpm", "dcs", "ch"), {*EXPANSION, SPATIAL}),
}
FACTS = dict(num_classes=P, image_size=PIXELS, num_ids=P, num_instances=K)
FACTS |= dict(num_steps=STEPS, steps_per_epoch=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_method_overfits_eight_people_and_every_parameter_takes_part(case):
    (name, _, preset), (changes, falling, padded) = case.partition(":"), CASES[case]
    recipe = importlib.import_module(f"configs.{name}").get_config(preset or None)
    own = {k: v for k, v in recipe.method.items() if k not in ("name", *Backbone._fields)}
    rows, without = train_on_people(build(name, own | changes, facts=FACTS))
    last = [rows[n] for n in range(STEPS - 4, STEPS + 1)]
    assert rows[1]["accuracy"] < 0.5 and np.mean([row["accuracy"] for row in last]) > 0.9
    assert last[-1]["loss"] < 0.5 * rows[1]["loss"]
    for term in falling:
        assert last[-1][term] < rows[1][term], term
    if name == "idkl":
        # The discriminator sees the modality, and so do features that were not purified of it.
        assert np.mean([row["accuracy_discriminator"] for row in last]) > 0.9
    assert without == padded


@pytest.mark.slow
def test_smcl_overfits_eight_people_and_every_parameter_takes_part():
    options = dict(id_margin=1.0, smgm_width=4, metric_from_epoch=0.5, normalize_centers=True)
    rows, without = train_on_people(build("smcl", options, facts=FACTS))
    last = [rows[n] for n in range(STEPS - 4, STEPS + 1)]
    for name in ("visible", "infrared", "syncretic"):
        assert rows[1][f"accuracy_{name}"] < 0.5
        assert np.mean([row[f"accuracy_{name}"] for row in last]) > 0.9, name
    shown = list(rows[1])  # the line of progress ends where the terminal does
    assert shown.index("loss") < shown.index("tri_center") < shown.index("accuracy_visible")
    assert last[-1]["loss"] < 0.5 * rows[1]["loss"]
    assert last[-1]["tri_center"] < rows[STEPS // 2]["tri_center"]
    assert not without
