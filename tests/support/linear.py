"""A linear method that compiles at once, and a run of it, for tests of the training loop."""

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax import optim
from vireid_jax.runtime import devices
from vireid_jax.runtime.checkpoint import Checkpoints
from vireid_jax.train import make_train_step, restore_or_init, train
from vireid_jax.types import Aux, Method

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


def linear(*, spoil=None):
    """Regression of the label on pixels, both modalities weighted 1 and 1/2.

    `spoil` maps (step, params) to what is added to the total.
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

    return Method(init, loss, embed)


def naive_gradients(w, b, batch):
    v, i = (batch[m].reshape(ROWS, WIDTH) / 255 for m in ("visible", "infrared"))
    ev, ei = v @ w + b - batch["label"], i @ w + b - batch["label"]
    gw = 2 / ROWS * (v.T @ ev + 0.5 * i.T @ ei)
    return gw, 2 / ROWS * (ev.sum() + 0.5 * ei.sum()), (ev**2).mean() + 0.5 * (ei**2).mean()


SGD = dict(name="sgd", lr=0.02, momentum=0.9, weight_decay=0.01, schedule="multistep")
SGD |= dict(milestones=(1.0,), gamma=0.1)


class Recorder:
    """A writer that remembers."""

    def __init__(self):
        self.rows, self.shown, self.said = [], [], []

    def write(self, step, scalars, *, split="train"):
        assert all(isinstance(v, float) for v in scalars.values())
        self.rows.append((step, split, dict(scalars)))

    def progress(self, step, total, scalars):
        self.shown.append((step, total))

    def say(self, text):
        self.said.append(text)

    def of(self, split):
        return {step: scalars for step, s, scalars in self.rows if s == split}


METHOD = linear()
_STEPS = {}  # compiled once for all runs


class Run:
    """The linear method with everything that `train` needs; each `go` resumes what is saved."""

    def __init__(self, folder=None, *, method=METHOD, augment=noisy, seed=3, optimizer=SGD):
        self.method, self.seed, self.mesh = method, seed, devices.make_mesh()
        self.transform, rate = optim.make(steps_per_epoch=EPOCH, epochs=3, **optimizer)
        self.checkpoints = Checkpoints(folder, keep=2) if folder else None
        self.writer = Recorder()
        key = (method.loss, augment, seed, *optimizer.items())
        if key not in _STEPS:
            _STEPS[key] = make_train_step(
                method, augment, self.transform, rate, mesh=self.mesh, seed=seed
            )
        self.step_fn = _STEPS[key]

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
