"""IDKL in the training loop: both presets overfit a handful of people, with every parameter."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from configs import idkl as recipe
from tests.linear import Recorder
from tests.test_train_smcl import PIXELS, STEPS, K, P, people_batches, without_gradient
from vireid_jax import optim
from vireid_jax.data import augment
from vireid_jax.methods import idkl
from vireid_jax.train import make_train_step, restore_or_init, train

# Of the recipes, and with a head that sees nothing dropped: 16 images are few.
SMALL = dict(depth=10, width=4, modality_dropout=0.0)


def _method(preset):
    options = recipe.get_config(preset).method.to_dict() | SMALL
    del options["name"]
    facts = dict(num_classes=P, image_size=PIXELS, num_steps=STEPS, num_ids=P, num_instances=K)
    return idkl.build(**facts, **options)


@pytest.mark.parametrize("preset", recipe.PRESETS)
def test_idkl_overfits_eight_people_and_every_parameter_takes_part(preset):
    transform, rate = optim.make(steps_per_epoch=STEPS, epochs=1, lr=0.01, schedule="constant")
    method, writer = _method(preset), Recorder()
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    state, start = restore_or_init(method, transform, None, mesh=mesh, seed=0)
    light = partial(augment.augment, pad=1, flip=0.5)
    state = train(
        state=state,
        start=start,
        step_fn=make_train_step(method, light, transform, rate, mesh=mesh, seed=0),
        batches=people_batches,
        steps_per_epoch=STEPS,
        epochs=1,
        mesh=mesh,
        writer=writer,
        log_every=1,
    )
    rows = writer.of("train")
    last = [rows[n] for n in range(STEPS - 4, STEPS + 1)]
    assert rows[1]["accuracy"] < 0.5 and np.mean([row["accuracy"] for row in last]) > 0.9
    assert last[-1]["loss"] < 0.5 * rows[1]["loss"]
    for name in ("tgsa", "csa", "tri_purified", "id_purified"):
        assert last[-1][name] < rows[1][name], name
    # The discriminator sees the modality, and so do features that were not purified of it.
    assert np.mean([row["accuracy_discriminator"] for row in last]) > 0.9
    # Adam's second moment is 0 where no batch gave a gradient.
    assert not without_gradient(optax.tree.get(state.optimizer, "nu"))
