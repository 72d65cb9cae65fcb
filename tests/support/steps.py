"""One training step of every method, on any devices: what the tests of shardings compare.

`python -m tests.support.steps OUT.npz DEVICES METHOD` computes one in a process of its own and
stores what it returns; as one of several processes it takes part in theirs.
"""

import functools
import sys
from functools import partial

import jax
import numpy as np

from tests.support.tiny import ROWS, build, host_batch, of_methods
from vireid_jax import optim, train
from vireid_jax.data import augment
from vireid_jax.runtime import devices, processes

MODALITIES = 3


def mesh_of(count, fsdp=1):
    return devices.make_mesh(jax.devices()[:count], fsdp=fsdp)


# Case -> (method, options).
METHODS = {
    case: (name, options)
    for name, steps in of_methods("STEPS").items()
    for case, options in steps.items()
}


# Without momentum the optimizer's trace is the gradient; Adam's first step is a sign, which
# rounding turns over.
TRANSFORM, RATE = optim.make(
    steps_per_epoch=4, epochs=2, name="sgd", momentum=0.0, lr=0.1, schedule="constant"
)


class Step:
    """A compiled step of a method on some devices, and what it returns for one batch."""

    def __init__(self, count, method, kernels="cpu", fsdp=1):
        self.method = build(*METHODS[method], kernels=kernels)
        self.mesh = mesh_of(count, fsdp)
        light = partial(augment.augment, grayscale=0.3, erase=0.5, visible_channel="adapt_gray")
        if method == "agw":
            light = partial(light, second_view="exchange")
        step_fn = train.make_train_step(self.method, light, TRANSFORM, RATE, mesh=self.mesh, seed=0)
        state = devices.place(_start(method), self.mesh)
        own = devices.process_rows(ROWS)
        host = {k: v[own] for k, v in host_batch().items()}
        self.batch = devices.to_global(host, self.mesh)
        self.text = (compiled := step_fn.lower(state, self.batch).compile()).as_text()
        # Connections are made at the first collective, and not waited for long.
        processes.check_equal("compiled", {})
        self.state, scalars = compiled(state, self.batch)
        self.scalars = {k: float(v) for k, v in scalars.items()}


@functools.cache
def _start(method):
    """The state of a method in the middle of training, with prototypes of a step before."""
    state = train.init_state(build(*METHODS[method], kernels="cpu"), TRANSFORM, 0)
    state.variables["params"] = _with_scales(state.variables["params"])
    if "memory" in state.variables:
        shape = state.variables["memory"]["prototype"].shape
        drawn = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        state.variables["memory"] = {"prototype": drawn}
    return jax.tree.map(np.asarray, state._replace(step=np.int32(2)))


def _with_scales(params):
    """Normalizations whose factors start at 0 get others, or nothing passes what is before them."""
    rng = np.random.default_rng(2)

    def drawn(path, x):
        if path[-1].key != "scale" or np.any(x):
            return x
        return rng.uniform(0.5, 1, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, params)


def named(state):
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield jax.tree_util.keystr(path), np.asarray(leaf)


def gathered(step):
    """{name: array} of a step: its scalars and its state."""
    everywhere = devices.replicated(step.mesh)
    state = jax.jit(lambda x: x, out_shardings=everywhere)(step.state)
    return {**{f"scalar {k}": v for k, v in step.scalars.items()}, **dict(named(state))}


def compare(found, expected):
    """The same step, to float32's rounding; both from `gathered`."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if name.startswith("scalar "):
            # float32 sums in another order; measured differences are below 3e-6.
            np.testing.assert_allclose(found[name], array, rtol=1e-4, err_msg=name)
            continue
        # Relative to the largest entry: single entries of a gradient may cancel to nothing.
        # The mean of normalized maps, and the gradient of a bias that a normalization takes out
        # again, are nothing but rounding; so large is the gradient of the kernel beside it.
        beside = expected.get(name.replace("['bias']", "['kernel']"), array)
        scale = max(np.abs(array).max(), np.abs(beside).max(), 1e-2)
        # IDKL on eight devices: 1.1e-4 of the largest.
        np.testing.assert_allclose(found[name], array, rtol=3e-4, atol=3e-4 * scale, err_msg=name)


def main(out, count, method):
    processes.start(out + ".run")
    assert jax.device_count() == int(count)
    found = gathered(Step(int(count), method))
    if jax.process_index() == 0:
        np.savez(out, **found)
    processes.finish(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
