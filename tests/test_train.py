"""The training loop and its step: a linear method against NumPy, stops, resumes, records."""

import json
import math
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.linear import (
    EPOCH,
    METHOD,
    SGD,
    Run,
    host_batch,
    linear,
    naive_gradients,
    scale_only,
)
from tests.support.rows import each
from vireid_jax import train
from vireid_jax.runtime import devices
from vireid_jax.train import NonFiniteError, Preempted, init_state
from vireid_jax.types import Stopped


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


def after(n):
    """A should_stop that says yes after n steps; it is polled before the first one, too."""
    polls = iter(range(1000))
    return lambda: next(polls) >= n


# --- The step -----------------------------------------------------------------------------


def naive_loop(steps, *, optimizer):
    """(w, b, last loss) after `steps` in float64."""
    params = METHOD.init(jax.random.key(3))["params"]
    x = np.append(np.asarray(params["w"], float), 0.0)
    m, u, count, loss = np.zeros_like(x), np.zeros_like(x), 0, math.nan
    for step in range(steps):
        rate = optimizer["lr"] * (0.1 if step >= EPOCH else 1.0)
        batch = host_batch(step)
        gw, gb, loss = naive_gradients(x[:-1], x[-1], batch)
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


def test_randomness_depends_on_seed_and_step_alone():
    def keep(key, batch):
        return {**scale_only(key, batch), "draw": jax.random.uniform(key)}

    def loss(variables, batch, key, step):
        total, aux = METHOD.loss(variables, batch, key, step)
        return total, aux._replace(metrics={**aux.metrics, "augment_draw": batch["draw"]})

    def draws(seed, step, *, weights=0, images=0):
        """What the keys of the loss and of the augmentation draw."""
        run = runs.setdefault(seed, Run(seed=seed, augment=keep, method=METHOD._replace(loss=loss)))
        state = init_state(run.method, run.transform, weights)._replace(step=jnp.int32(step))
        batch = devices.to_global(host_batch(images), run.mesh)
        _, scalars = run.step_fn(devices.place(state, run.mesh), batch)
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
    # The first step of a start has no rate: compiling says nothing of the speed.
    for _, _, scalars in (*halves.writer.rows, *whole.writer.rows):
        scalars.pop("images_per_second", None)
    assert json.dumps(halves.writer.rows) == json.dumps(whole.writer.rows)
    # What is on disk is what was returned.
    assert bits(halves.start()[0]) == bits(expected) and halves.start()[1] == 12


def test_what_is_gone_or_false_is_said_on_resume(make):
    run = make()
    options = dict(eval_every=1.0, evaluate=lambda v: {"mAP": 0.5})
    with pytest.raises(Preempted):
        run.go(should_stop=after(6), **options)
    said = "no scores of earlier validations are left: the best step is not known"
    with pytest.raises(Preempted):
        run.go(should_stop=after(1), **options)
    assert said not in run.writer.said
    (run.checkpoints.directory / "scores.json").unlink()
    again = make()
    with pytest.raises(Preempted):
        again.go(should_stop=after(1), **options)
    assert said in again.writer.said
    state, step = again.start()
    again.checkpoints.save(step + 1, state, wait=True)  # the state of another step
    with pytest.raises(ValueError, match=f"checkpoint {step + 1} in .* the state of step {step};"):
        again.start()


def test_a_finished_run_is_left_as_it_is(make):
    run = make()
    expected = bits(run.go())
    rows = len(run.writer.rows)
    run.writer.said.clear()
    assert bits(run.go()) == expected and len(run.writer.rows) == rows
    assert run.writer.said == ["already finished: step 12 of 12"]


def test_a_try_ends_early_and_the_whole_run_goes_on_from_there(make):
    """The schedule is the whole run's: the bits are those of a run without a try."""
    whole, tried = make("whole"), make("tried")
    options = dict(log_every=1, eval_every=1.0, evaluate=lambda v: {"mAP": 0.5})
    expected = bits(whole.go(**options))
    state = tried.go(max_steps=5, **options)
    assert int(state.step) == 5 and tried.checkpoints.latest() == 5
    assert list(tried.writer.of("val")) == [4] and list(tried.writer.of("train"))[-1] == 5
    assert tried.writer.said[-1].endswith("; 7 steps are left for another start")
    assert int(tried.go(max_steps=3, **options).step) == 5
    assert tried.writer.said[-1] == "already there: step 5 of 12"
    assert bits(tried.go(max_steps=100, **options)) == expected
    assert "resumed at step 5 of 12" in tried.writer.said
    assert tried.writer.said[-1].startswith("trained 7 steps in ")
    assert tried.writer.said[-1].endswith(" since the resume")


@each("seed", [0, 1])
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


def test_a_stop_before_the_first_step_compiles_nothing(make):
    """Asked while the data was loaded: there is nothing to save yet, and no step is started."""
    run = make()
    with pytest.raises(Preempted, match="stopped on request; before the first step") as stop:
        run.go(should_stop=after(0), batches=lambda start, stop: pytest.fail("a batch is loaded"))
    assert stop.value.step == 0 and run.checkpoints.latest() is None


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


def test_a_run_says_what_it_does(make):
    run = make()
    scores = iter([0.3, 0.5, 0.4])
    run.go(
        eval_every=1.0,
        evaluate=lambda v: {"mAP": next(scores)},
        clock=lambda: 0.0,
        checkpoint_every=0.5,
    )
    assert run.writer.said == [
        "compiling the training step",
        "compiled, first step done in 0 s",
        "checkpoint of step 2 is being saved",
        "checkpoint of step 4 is being saved",
        "validation at step 4: mAP 0.3000; best mAP 0.3000 at step 4 (0 s)",
        "checkpoint of step 6 is being saved",
        "checkpoint of step 8 is being saved",
        "validation at step 8: mAP 0.5000; best mAP 0.5000 at step 8 (0 s)",
        "checkpoint of step 10 is being saved",
        "checkpoint of step 12 is being saved",
        "validation at step 12: mAP 0.4000; best mAP 0.5000 at step 8 (0 s)",
        "trained 12 steps in 0 s",
    ]


def test_progress_is_shown_by_time_as_well_and_recorded_when_due():
    """A step of ten seconds: the third of three is more than 15 s after the first."""
    now = [0.0]

    def slow(start, stop):
        for step in range(start, stop):
            now[0] += 10.0 if step else 1000.0  # the first step is compiled
            yield host_batch(step)

    run = Run()
    run.go(log_every=12, batches=slow, clock=lambda: now[0])
    assert run.writer.shown == [(3, 12), (5, 12), (7, 12), (9, 12), (11, 12), (12, 12)]
    assert list(run.writer.of("train")) == [12]
    assert run.writer.of("train")[12]["images_per_second"] == pytest.approx(1.6)


def test_terms_are_shown_in_the_order_of_the_method():
    def loss(variables, batch, key, step):
        total, aux = METHOD.loss(variables, batch, key, step)
        terms = {"z": total, "b": total, "a": total}
        return total, aux._replace(terms=terms, metrics={"second": total, "first": total})

    run = Run(method=METHOD._replace(loss=loss))
    run.go(log_every=12)
    shown = list(run.writer.of("train")[12])
    assert shown[:6] == ["loss", "z", "b", "a", "second", "first"]


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


# --- The step compiled ahead ----------------------------------------------------------------


class _Slow:
    """A step that takes its time to be compiled, and may fail to be."""

    def __init__(self, fails):
        self.fails, self.compiled, self.may_go_on = fails, False, threading.Event()

    def lower(self, *_):
        return self

    def compile(self):
        self.may_go_on.wait(10)
        if self.fails:
            raise ValueError("no program")
        self.compiled = True


@pytest.mark.parametrize("fails", [False, True])
def test_the_first_step_waits_for_what_is_compiled_ahead(fails, monkeypatch):
    step, mesh = _Slow(fails), devices.make_mesh()
    monkeypatch.setattr(train, "_step_of", lambda *_: (None, step))
    monkeypatch.setattr(train, "abstract_state", lambda *_: {})
    ahead = train._CompileAhead(None)
    ahead.begin(None, mesh, SimpleNamespace(batch={}))
    threading.Timer(0.1, step.may_go_on.set).start()
    assert ahead.waited_for(lambda state, batch: step.compiled)(None, None) is not fails


def test_without_a_cache_of_programs_nothing_is_compiled_ahead(monkeypatch):
    monkeypatch.setattr(train, "_step_of", lambda *_: pytest.fail("compiled"))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        ahead = train._CompileAhead(None)
        ahead.begin(None, devices.make_mesh(), None)
        assert ahead.waited_for(lambda state, batch: 1)(None, None) == 1
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
