"""Learning rates over the steps of a run, against plain loops and the papers' numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax import optim

PER_EPOCH = 5
EPOCHS = 8.0
STEPS = 50  # beyond the end of training, which is step 40


def schedule_loop(
    schedule,
    *,
    lr,
    milestones=(),
    gamma=0.1,
    warmup_epochs=0.0,
    warmup_factor=0.1,
    restart_epoch=None,
):
    """The learning rate of every step, in Python numbers."""

    def decay(step, length):
        factor = 1.0
        if schedule == "multistep":
            for milestone in milestones:
                if step >= milestone * PER_EPOCH:
                    factor *= gamma
        if schedule == "cosine":
            factor = (1 + math.cos(math.pi * min(step / length, 1.0))) / 2
        return factor

    rates, total = [], EPOCHS * PER_EPOCH
    for step in range(STEPS):
        factor = decay(step, total)
        if warmup_epochs and step < warmup_epochs * PER_EPOCH:
            part = step / (warmup_epochs * PER_EPOCH)
            factor *= warmup_factor * (1 - part) + part
        if restart_epoch is not None and step >= restart_epoch * PER_EPOCH:
            factor = decay(step - restart_epoch * PER_EPOCH, total - restart_epoch * PER_EPOCH)
        rates.append(lr * factor)
    return rates


SCHEDULES = {
    "constant": dict(schedule="constant"),
    "multistep": dict(schedule="multistep", milestones=(2.0, 3.0, 6.2)),
    "multistep without milestones": dict(schedule="multistep"),
    "multistep at one epoch twice": dict(schedule="multistep", milestones=(2.0, 2.0)),
    "another gamma": dict(schedule="multistep", milestones=(1.0, 4.0), gamma=0.5),
    "cosine": dict(schedule="cosine"),
    "warm-up": dict(schedule="constant", warmup_epochs=2.0),
    "warm-up from nothing": dict(schedule="cosine", warmup_epochs=1.4, warmup_factor=0.0),
    "warm-up across a milestone": dict(schedule="multistep", milestones=(1.0,), warmup_epochs=3.0),
    "restart": dict(schedule="multistep", milestones=(1.0, 2.0), restart_epoch=4.0),
    "restart of a cosine": dict(schedule="cosine", restart_epoch=5.0),
    "restart at the start": dict(schedule="constant", warmup_epochs=2.0, restart_epoch=0.0),
    "restart after warm-up": dict(
        schedule="multistep", milestones=(1.6,), warmup_epochs=1.0, restart_epoch=5.0
    ),
}


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_are_the_plain_loop(options):
    _, learning_rate = optim.make(steps_per_epoch=PER_EPOCH, epochs=EPOCHS, lr=0.3, **options)
    expected = schedule_loop(lr=0.3, **options)
    traced = jax.jit(jax.vmap(learning_rate))(jnp.arange(STEPS))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(learning_rate(7), expected[7], rtol=2e-6)  # a Python number


def test_the_learning_rate_has_its_landmarks():
    """Numbers that need no loop: 3.5e-4, a tenth of it at 40 and 70 epochs."""
    _, rate = optim.make(steps_per_epoch=10, epochs=300, lr=3.5e-4, milestones=(40.0, 70.0))
    steps = jnp.array([0, 399, 400, 699, 700, 2999])
    values = jax.vmap(rate)(steps)
    np.testing.assert_allclose(values / 3.5e-4, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    _, rate = optim.make(steps_per_epoch=10, epochs=4, lr=1.0, schedule="cosine", warmup_epochs=1)
    np.testing.assert_allclose([rate(0), rate(20), rate(40)], [0.1, 0.5, 0.0], atol=1e-7)


def test_the_warm_up_of_mun_has_its_landmarks():
    """MUN, section 4.1: 1e-8 to 2e-3 over the first 15 epochs, a tenth at 30 and at 60 of 90."""
    per_epoch = 696  # SYSU-MM01 with 8 identities and 4 images of each
    _, rate = optim.make(
        steps_per_epoch=per_epoch,
        epochs=90,
        lr=2e-3,
        warmup_epochs=15,
        warmup_factor=5e-6,
        schedule="multistep",
        milestones=(30, 60),
    )
    epochs = np.array([0, 7.5, 15, 22, 30, 45, 60, 90])
    expected = [1e-8, (2e-3 + 1e-8) / 2, 2e-3, 2e-3, 2e-4, 2e-4, 2e-5, 2e-5]
    steps = jnp.array(epochs * per_epoch, jnp.int32)
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(steps), expected, rtol=1e-6)
    # The step before a milestone still has the rate from before, the last of warm-up not yet all.
    before = [2e-3 * (1 - (1 - 5e-6) / (15 * per_epoch)), 2e-3, 2e-4]
    steps = jnp.array([15, 30, 60]) * per_epoch - 1
    np.testing.assert_allclose(jax.vmap(rate)(steps), before, rtol=1e-6)
    ramp = np.diff(jax.vmap(rate)(jnp.arange(15 * per_epoch)))
    np.testing.assert_allclose(ramp, (2e-3 - 1e-8) / (15 * per_epoch), rtol=2e-3)  # float32


def test_a_staircase_of_epochs():
    """AGW's: lr (e + 1) / 10 in epoch e of ten, then lr; constant within an epoch."""
    _, rate = optim.make(
        **dict(steps_per_epoch=7, epochs=20, lr=0.1, schedule="multistep", milestones=(12.0, 12.0)),
        warmup_epochs=10.0,
        warmup_factor=0.1,
        warmup_by="epoch",
    )
    for step in range(7 * 15):
        epoch = step // 7
        expected = 0.1 * min((epoch + 1) / 10, 1) * (0.01 if epoch >= 12 else 1)  # given twice
        assert float(rate(step)) == pytest.approx(expected, rel=1e-6), step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(warmup_by="epochs"), r"optim.warmup_by is 'epochs', expected one of \['step', 'epo"),
        (dict(warmup_by="epoch", warmup_epochs=1.5), "optim.warmup_epochs is 1.5 with warmup_by"),
        (dict(warmup_by="epoch", warmup_epochs=1.0), "optim.warmup_epochs is 1.0 with warmup_by"),
        (dict(nesterov=True), "optim.nesterov with adam and momentum 0.9, expected sgd"),
        (dict(nesterov=True, name="sgd", momentum=0.0), "optim.nesterov with sgd and momentum 0.0"),
    ],
)
def test_warm_up_and_momentum_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        optim.make(steps_per_epoch=10, epochs=4, **options)
    optim.make(steps_per_epoch=10, epochs=4, warmup_by="epoch", warmup_epochs=0.0)


def test_nesterov_is_torchs():
    """Two steps by hand: v = mu v + g, then the update g + mu v (torch.optim.SGD)."""
    transform, _ = optim.make(steps_per_epoch=1, epochs=1, name="sgd", nesterov=True)
    params = {"w": jnp.zeros(3)}
    state, velocity = transform.init(params), np.zeros(3)
    for gradient in (np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -4.0])):
        updates, state = transform.update({"w": jnp.asarray(gradient)}, state, params)
        velocity = 0.9 * velocity + gradient
        np.testing.assert_allclose(updates["w"], gradient + 0.9 * velocity, rtol=1e-6)
