"""The training loop and its step: a linear method against NumPy, stops, records, SMCL once.

The linear method compiles at once and its gradients are three lines of NumPy, so what is
tested here is the loop: which step gets which learning rate, key and batch, and what is
recorded and saved when.
"""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vireid_jax import optim, sharding
from vireid_jax.checkpoint import Checkpoints
from vireid_jax.data import augment
from vireid_jax.methods import smcl
from vireid_jax.train import (
    NonFiniteError,
    Preempted,
    init_state,
    make_train_step,
    restore_or_init,
    train,
)
from vireid_jax.types import Aux, LaterLoss, Method, Stopped

ROWS, SIZE = 8, (4, 2)
WIDTH = SIZE[0] * SIZE[1] * 3
EPOCH = 4  # steps


def host_batch(step):
    """The batch of a step; labels are the targets of a regression."""
    rng = np.random.default_rng([11, step])
    images = rng.integers(0, 256, (2, ROWS, *SIZE, 3), dtype=np.uint8)
    return {
        "visible": images[0],
        "infrared": images[1],
        "label": np.repeat(rng.permutation(5)[: ROWS // 2], 2).astype(np.int32),
        "camera": np.zeros((ROWS, 2), np.int32),
    }


def batches(start, stop):
    return map(host_batch, range(start, stop))


def scale_only(key, batch):
    """Augmentation without a draw: pixels to [0, 1]."""
    pixels = {m: batch[m].astype(jnp.float32) / 255 for m in ("visible", "infrared")}
    return {**batch, **pixels}


def noisy(key, batch):
    """Augmentation with a draw, so that a wrong key changes the weights."""
    scaled = scale_only(key, batch)
    return {**scaled, "visible": scaled["visible"] + jax.random.uniform(key, (ROWS, *SIZE, 3))}


def _errors(params, batch):
    v, i = (batch[m].reshape(ROWS, WIDTH) for m in ("visible", "infrared"))
    target = batch["label"].astype(jnp.float32)
    return v @ params["w"] + params["b"] - target, i @ params["w"] + params["b"] - target


def linear(*, later=(), spoil=None):
    """Regression of the label on pixels, both modalities weighted 1 and 1/2.

    `spoil` maps (terms, step, params) to what is added to the total.
    """

    def init(key):
        w = jax.random.normal(key, (WIDTH,)) * 0.1
        return {"params": {"w": w, "b": jnp.float32(0)}, "batch_stats": {"seen": jnp.zeros(())}}

    def loss(variables, batch, key, step):
        ev, ei = _errors(variables["params"], batch)
        terms = {"visible_error": (ev**2).mean(), "infrared_error": (ei**2).mean()}
        total = terms["visible_error"] + 0.5 * terms["infrared_error"]
        if spoil is not None:
            extra = spoil(step, variables["params"])
            terms["spoiled"] = extra
            total = total + extra
        updates = {"batch_stats": {"seen": variables["batch_stats"]["seen"] + 1}}
        return total, Aux(terms, updates, {"draw": jax.random.uniform(key)})

    def embed(variables, images, modality):
        return {"x": images.reshape(len(images), -1)}

    return Method(init, loss, embed, later)


def difference(variables, batch, key, step):
    """A second loss: the squared gap of the modalities' predictions."""
    ev, ei = _errors(variables["params"], batch)
    return ((ev - ei) ** 2).mean(), Aux({}, {})


def naive_gradients(w, b, batch, second=False):
    v, i = (batch[m].reshape(ROWS, WIDTH) / 255 for m in ("visible", "infrared"))
    if second:
        gap = (v - i) @ w
        return 2 / ROWS * (v - i).T @ gap, 0.0, (gap**2).mean()
    ev, ei = v @ w + b - batch["label"], i @ w + b - batch["label"]
    gw = 2 / ROWS * (v.T @ ev + 0.5 * i.T @ ei)
    return gw, 2 / ROWS * (ev.sum() + 0.5 * ei.sum()), (ev**2).mean() + 0.5 * (ei**2).mean()


SGD = dict(name="sgd", lr=0.02, momentum=0.9, weight_decay=0.01, schedule="multistep")
SGD |= dict(milestones=(1.0,), gamma=0.1)


class Recorder:
    """A writer that remembers."""

    def __init__(self):
        self.rows, self.shown = [], []

    def write(self, step, scalars, *, split="train"):
        assert all(isinstance(v, float) for v in scalars.values())
        self.rows.append((step, split, dict(scalars)))

    def progress(self, step, total, scalars):
        self.shown.append((step, total))

    def of(self, split):
        return {step: scalars for step, s, scalars in self.rows if s == split}


class Run:
    """The linear method with everything that `train` needs; each `go` resumes what is saved."""

    def __init__(self, folder=None, *, method=None, augment=noisy, seed=3, optimizer=SGD):
        self.method = method or linear()
        self.transform, self.rate = optim.make(steps_per_epoch=EPOCH, epochs=3, **optimizer)
        self.mesh = sharding.make_mesh()
        self.seed = seed
        self.checkpoints = Checkpoints(folder, keep=2) if folder else None
        self.writer = Recorder()
        self.step_fn = make_train_step(
            self.method, augment, self.transform, self.rate, mesh=self.mesh, seed=seed
        )

    def start(self):
        return restore_or_init(
            self.method, self.transform, self.checkpoints, mesh=self.mesh, seed=self.seed
        )

    def go(self, **options):
        state, start = self.start()
        options = dict(batches=batches, epochs=3) | options
        return train(
            state=state,
            start=start,
            step_fn=self.step_fn,
            steps_per_epoch=EPOCH,
            mesh=self.mesh,
            writer=self.writer,
            checkpoints=self.checkpoints,
            **options,
        )


@pytest.fixture
def make(tmp_path):
    """Runs in folders of their own; their checkpoints are closed at the end."""
    runs = []

    def get(name="run", **options):
        runs.append(Run(tmp_path / name, **options))
        return runs[-1]

    yield get
    for run in runs:
        run.checkpoints.close()


def bits(state):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def after(polls):
    """A should_stop that says yes at its n-th poll, once a step."""
    count = iter(range(1, 1000))
    return lambda: next(count) >= polls


# --- The step -----------------------------------------------------------------------------


def naive_loop(steps, *, optimizer, later_from=None):
    """(w, b, last loss) after `steps` in float64."""
    params = linear().init(jax.random.key(3))["params"]
    x = np.append(np.asarray(params["w"], float), 0.0)
    m, u, count, loss = np.zeros_like(x), np.zeros_like(x), 0, math.nan
    for step in range(steps):
        rate = optimizer["lr"] * (0.1 if step >= EPOCH else 1.0)
        batch = host_batch(step)
        for second in (False, True):
            if second and (later_from is None or step < later_from):
                continue
            gw, gb, value = naive_gradients(x[:-1], x[-1], batch, second)
            loss = value if not second else loss
            g = np.append(gw, gb) + optimizer["weight_decay"] * x
            count += 1
            if optimizer["name"] == "sgd":
                m = 0.9 * m + g
                x = x - rate * m
            else:
                m, u = 0.9 * m + 0.1 * g, 0.999 * u + 0.001 * g * g
                unbiased = np.sqrt(u / (1 - 0.999**count)) + 1e-8
                x = x - rate * m / (1 - 0.9**count) / unbiased
    return x[:-1], x[-1], loss


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_state_after_some_steps_is_that_of_a_naive_loop(name):
    optimizer = SGD | {"name": name}
    run = Run(augment=scale_only, optimizer=optimizer)
    state = run.go(log_every=1, epochs=1.5)
    w, b, loss = naive_loop(6, optimizer=optimizer)
    np.testing.assert_allclose(state.variables["params"]["w"], w, rtol=1e-4, atol=1e-5)
    assert float(state.variables["params"]["b"]) == pytest.approx(b, rel=1e-4)
    assert int(state.step) == 6 and float(state.variables["batch_stats"]["seen"]) == 6
    assert run.writer.of("train")[6]["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_later_loss_takes_steps_of_its_own_from_its_start_on():
    # The start is before the milestone: were the schedule counted in optimizer updates, the
    # learning rate would fall too early.
    run = Run(augment=scale_only, method=linear(later=(LaterLoss(2, difference),)))
    state = run.go(log_every=1, epochs=1.5)
    w, b, _ = naive_loop(6, optimizer=SGD, later_from=2)
    np.testing.assert_allclose(state.variables["params"]["w"], w, rtol=1e-4, atol=1e-5)
    assert float(state.variables["params"]["b"]) == pytest.approx(b, rel=1e-4)
    assert np.abs(w - naive_loop(6, optimizer=SGD)[0]).max() > 1e-3, "the second loss matters"
    rows = run.writer.of("train")
    assert [rows[n]["lr"] for n in range(1, 7)] == pytest.approx([0.02] * 4 + [0.002] * 2)
    # The statistics are those of the first pass, once a step.
    assert float(state.variables["batch_stats"]["seen"]) == 6


def test_before_its_start_a_later_loss_changes_no_bit():
    late = Run(method=linear(later=(LaterLoss(100, difference),))).go(epochs=1)
    assert bits(late) == bits(Run().go(epochs=1))


def test_randomness_depends_on_seed_and_step_alone():
    plain = linear()

    def keep(key, batch):
        return {**scale_only(key, batch), "draw": jax.random.uniform(key)}

    def loss(variables, batch, key, step):
        total, aux = plain.loss(variables, batch, key, step)
        return total, aux._replace(metrics={**aux.metrics, "augment_draw": batch["draw"]})

    def draws(seed, step, *, weights=0, images=0):
        """What the keys of the loss and of the augmentation draw."""
        run = runs.setdefault(seed, Run(seed=seed, augment=keep, method=plain._replace(loss=loss)))
        state = init_state(run.method, run.transform, weights)._replace(step=jnp.int32(step))
        batch = sharding.to_global(host_batch(images), run.mesh)
        _, scalars = run.step_fn(sharding.replicate(state, run.mesh), batch)
        return float(scalars["draw"]), float(scalars["augment_draw"])

    runs = {}
    first = draws(3, 5)
    assert first == draws(3, 5, weights=1, images=7)
    others = [*draws(3, 6), *draws(4, 5), *draws(4, 4)]
    assert len({*first, *others}) == 8, "a key served twice"


# --- Stopping and resuming ----------------------------------------------------------------


def test_two_halves_equal_one_go_bit_for_bit(make):
    whole, halves = make("whole"), make("halves")
    options = dict(log_every=1, eval_every=1.0, checkpoint_every=0.5, clock=lambda: 0.0)
    options["evaluate"] = lambda v: {"mAP": float(jnp.abs(v["params"]["w"]).sum())}
    expected = whole.go(**options)
    with pytest.raises(Preempted, match="step 5 is saved") as stop:
        halves.go(should_stop=after(5), **options)
    assert stop.value.step == 5
    assert halves.start()[1] == 5
    state = halves.go(**options)
    assert bits(state) == bits(expected)
    assert json.dumps(halves.writer.rows) == json.dumps(whole.writer.rows)
    # What is on disk is what was returned.
    assert bits(halves.start()[0]) == bits(expected) and halves.start()[1] == 12


def test_a_finished_run_is_left_as_it_is(make):
    run = make()
    expected = bits(run.go())
    rows = len(run.writer.rows)
    assert bits(run.go()) == expected and len(run.writer.rows) == rows


@pytest.mark.parametrize("seed", [0, 1])
def test_without_checkpoints_a_run_starts_from_its_seed(seed):
    run = Run(seed=seed)
    state, start = run.start()
    assert start == 0 and int(state.step) == 0
    expected = jax.device_get(init_state(run.method, run.transform, seed))
    assert bits(state) == bits(expected)


def _stopped(variables):
    raise Stopped


def test_a_stop_during_evaluation_saves_and_is_made_up_for(make):
    run = make()
    with pytest.raises(Preempted) as stop:
        run.go(evaluate=_stopped, eval_every=1.0)
    assert stop.value.step == 4
    assert run.checkpoints.latest() == 4 and run.checkpoints.metrics(4) is None
    assert run.writer.of("val") == {}
    order = []

    def watched(start, stop):
        for step in range(start, stop):
            order.append(step)
            yield host_batch(step)

    def noted(variables):
        order.append("val")
        return {"mAP": 0.25}

    run.go(evaluate=noted, eval_every=1.0, batches=watched)
    assert order == ["val", 4, 5, 6, 7, "val", 8, 9, 10, 11, "val"]
    assert list(run.writer.of("val")) == [4, 8, 12]
    # Scored ones are not scored again; steps 4, 8, 12 less the one that `keep` dropped.
    assert run.checkpoints.metrics(4) == {"mAP": 0.25} and run.checkpoints.best() == 12
    order.clear()
    run.go(evaluate=noted, eval_every=1.0)
    assert order == []


@pytest.mark.parametrize("options", [dict(should_stop=after(4)), dict(evaluate=_stopped)])
def test_a_stop_waits_until_the_state_is_on_disk(make, monkeypatch, options):
    """The process may be killed as soon as it says that the step is saved."""
    run, waited = make(), []
    monkeypatch.setattr(run.checkpoints, "wait", lambda: waited.append(run.checkpoints.latest()))
    with pytest.raises(Preempted):
        run.go(eval_every=1.0, **options)
    assert waited == [4]


def test_a_stop_right_before_a_validation_leaves_it_to_the_next_start(make):
    run, calls = make(), []

    def scored(variables):
        calls.append(int(variables["batch_stats"]["seen"]))
        return {"mAP": 0.5}

    with pytest.raises(Preempted):
        run.go(evaluate=scored, eval_every=1.0, should_stop=after(4))
    assert calls == []
    with pytest.raises(Preempted):  # stopped at 6, where no validation is due
        run.go(evaluate=scored, eval_every=1.0, should_stop=after(2))
    run.go(evaluate=scored, eval_every=1.0)
    assert calls == [4, 8, 12]


# --- What is recorded ---------------------------------------------------------------------


def test_scalars_are_recorded_when_due():
    now = [0.0]

    def slow(start, stop):
        for step in range(start, stop):
            now[0] += 0.5
            yield host_batch(step)

    def scored(variables):
        now[0] += 100.0  # no part of the training speed
        return {"mAP": 0.5, "R1": 0.25}

    run = Run(augment=scale_only)
    state = run.go(
        log_every=5,
        eval_every=1.5,
        epochs=2.75,
        evaluate=scored,
        batches=slow,
        clock=lambda: now[0],
    )
    assert [(s, split) for s, split, _ in run.writer.rows] == [
        *[(5, "train"), (6, "val"), (10, "train"), (11, "train"), (11, "val")]
    ]
    assert run.writer.shown == [(5, 11), (10, 11), (11, 11)]
    assert run.writer.of("val") == {n: {"mAP": 0.5, "R1": 0.25} for n in (6, 11)}
    rows = run.writer.of("train")
    names = {"loss", "visible_error", "infrared_error", "draw", "lr", "grad_norm", "param_norm"}
    assert all(set(row) == names | {"images_per_second"} for row in rows.values())
    # Both modalities of 8 rows in half a second, the validation left out.
    assert [row["images_per_second"] for row in rows.values()] == [32.0] * 3
    assert [row["lr"] for row in rows.values()] == pytest.approx([0.002] * 3)
    for row in rows.values():
        total = row["visible_error"] + 0.5 * row["infrared_error"]
        assert row["loss"] == pytest.approx(total, rel=1e-6)
    # The parameters' norm is the one after the update, the gradient's that of the loss alone.
    params = state.variables["params"]
    assert rows[11]["param_norm"] == pytest.approx(
        math.hypot(np.linalg.norm(params["w"]), float(params["b"])), rel=1e-6
    )
    w, b, _ = naive_loop(10, optimizer=SGD)
    gw, gb, loss = naive_gradients(w, b, host_batch(10))
    assert rows[11]["grad_norm"] == pytest.approx(math.hypot(np.linalg.norm(gw), gb), rel=1e-3)
    assert rows[11]["loss"] == pytest.approx(loss, rel=1e-3)


def test_steps_are_saved_when_due(make):
    run = make()
    seen = []

    def watched(start, stop):
        for step in range(start, stop):
            seen.append(run.checkpoints.latest())
            yield host_batch(step)

    run.go(checkpoint_every=1.0, batches=watched, epochs=2.25)
    assert seen == [None] * 4 + [4] * 4 + [8]
    assert run.checkpoints.steps() == [8, 9]
    # An interval below one step is one step; 0 keeps the last state alone.
    each, last = make("each"), make("last")
    each.go(checkpoint_every=0.01, epochs=0.5)
    last.go(epochs=0.5)
    assert each.checkpoints.steps() == [1, 2] and last.checkpoints.steps() == [2]


# --- Losses that are not finite -----------------------------------------------------------


def _nan_at(bad):
    return lambda step, params: jnp.where(step == bad, jnp.nan, 0.0) * params["b"]


def _nan_gradient(step, params):
    # The usual accident: the value of sqrt(0 * b) is 0, its gradient 0 * inf.
    return jnp.sqrt(0 * params["b"] + jnp.where(step == 5, 0.0, 1.0))


@pytest.mark.parametrize(
    "spoil, terms",
    [(_nan_at(5), {"loss", "spoiled"}), (_nan_gradient, set())],
    ids=["term", "gradient"],
)
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(make, spoil, terms):
    run = make(method=linear(spoil=spoil))
    with pytest.raises(NonFiniteError) as error:
        run.go(checkpoint_every=1.0, eval_every=1.0, evaluate=lambda v: {"mAP": 0.0})
    message = str(error.value)
    assert " not finite at step 6 (" in message, message
    named = set(message.split(" not finite at step 6 ")[0].split(", "))
    # The norms follow: nothing that is still finite is blamed.
    assert named - {"grad_norm", "param_norm"} == terms and "grad_norm" in named
    assert "visible_error = " in message
    assert "the last good checkpoint is step 4" in message
    assert "--config.optim.lr" in message
    assert run.checkpoints.steps() == [4]
    state, step = run.start()
    assert step == 4 and all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state)))
    # The step was noticed late, at the next save; nothing was recorded from it on.
    assert all(at <= 4 for at, _, _ in run.writer.rows)


def test_a_loss_that_is_never_finite_leaves_no_checkpoint(make):
    run = make(method=linear(spoil=_nan_at(0)))
    with pytest.raises(NonFiniteError, match=r"at step 1 .* no checkpoint was saved yet"):
        run.go(should_stop=after(3))
    assert run.checkpoints.steps() == []
    assert isinstance(NonFiniteError("x"), FloatingPointError)


# --- SMCL ---------------------------------------------------------------------------------

P, K, STEPS = 8, 2, 50
PIXELS = (32, 16)


def _people():
    """Eight looks, as colors in visible and as other gray values in infrared images."""
    rng = np.random.default_rng(5)
    looks = rng.integers(0, 256, (2, P, 4, 2, 3))
    looks[1] = looks[1, ..., :1]
    looks = looks.repeat(8, axis=2).repeat(8, axis=3)
    return np.repeat(looks, K, axis=1)  # [2, P * K, 32, 16, 3]


def _smcl_batches(start, stop):
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


def _smcl(**options):
    return smcl.build(
        num_classes=P,
        image_size=PIXELS,
        steps_per_epoch=STEPS,
        depth=10,
        width=4,
        id_margin=1.0,
        smgm_width=4,
        **options,
    )


# The last maps are 2 x 1 pixels: these columns of a kernel see padding and nothing else.
PADDED = {"layer3_0/conv1": [0], "layer3_0/conv2": [0, 2]}
PADDED |= dict.fromkeys(("layer4_0/conv1", "layer4_0/conv2"), PADDED["layer3_0/conv2"])


def _without_gradient(gradients):
    """Names of the parameters that have an entry without a gradient."""
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name, leaf = optim.path_name(path), np.asarray(leaf)
        for kernel, columns in PADDED.items():
            if kernel in name:
                assert not leaf[:, columns].any()
                leaf = np.delete(leaf, columns, axis=1)
        if (leaf == 0).any():
            found.add(name)
    return found


def test_smcl_overfits_eight_people_and_every_parameter_takes_part():
    transform, rate = optim.make(steps_per_epoch=STEPS, epochs=1, lr=0.01, schedule="constant")
    method, writer = _smcl(metric_from_epoch=0.5, normalize_centers=True), Recorder()
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    state, start = restore_or_init(method, transform, None, mesh=mesh, seed=0)
    light = partial(augment.augment, pad=1, flip=0.5)
    state = train(
        state=state,
        start=start,
        step_fn=make_train_step(method, light, transform, rate, mesh=mesh, seed=0),
        batches=_smcl_batches,
        steps_per_epoch=STEPS,
        epochs=1,
        mesh=mesh,
        writer=writer,
        log_every=1,
    )
    rows = writer.of("train")
    last = [rows[n] for n in range(STEPS - 4, STEPS + 1)]
    for name in ("visible", "infrared", "syncretic"):
        assert rows[1][f"accuracy_{name}"] < 0.5
        assert np.mean([row[f"accuracy_{name}"] for row in last]) > 0.9, name
    assert last[-1]["loss"] < 0.5 * rows[1]["loss"]
    assert last[-1]["tri_center"] < rows[STEPS // 2]["tri_center"]
    # Adam's second moment is 0 where no batch gave a gradient.
    assert not _without_gradient(optax.tree.get(state.optimizer, "nu"))


def test_every_parameter_of_smcl_without_auxiliary_gets_a_gradient():
    method = _smcl(auxiliary="none", none_metric="vi_symmetric", metric_from_epoch=0.0)
    variables = method.init(jax.random.key(0))

    @jax.jit
    def gradient(params, batch):
        def loss(p):
            return method.loss({**variables, "params": p}, batch, None, 0)[0]

        return jax.grad(loss)(params)

    total = jax.tree.map(np.zeros_like, variables["params"])
    for n in range(4):
        rng = np.random.default_rng([7, n])
        pixels = rng.normal(size=(2, P * K, *PIXELS, 3)).astype(np.float32)
        label = np.repeat(np.arange(P), K).astype(np.int32)
        batch = {"visible": pixels[0], "infrared": pixels[1], "label": label}
        found = gradient(variables["params"], batch)
        total = jax.tree.map(lambda t, g: t + np.abs(g), total, found)
    assert not _without_gradient(total)
