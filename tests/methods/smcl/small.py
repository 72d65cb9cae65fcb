"""SMCL small enough for a test, with a batch of random images."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.reference.convert import flatten
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.smcl import method as smcl

KEY = jax.random.key(0)
SIZE, P, K = (32, 16), 4, 2
SMALL = dict(num_classes=395, image_size=SIZE, steps_per_epoch=4, depth=10, width=8)
SMALL |= dict(smgm_width=4, metric_from_epoch=1.5)
SWITCH = 6  # 1.5 epochs of 4 steps


def _images(name, rows=P * K):
    seed = [ord(c) for c in name]
    return np.random.default_rng(seed).normal(size=(rows, *SIZE, 3)).astype(np.float32)


BATCH = {
    "visible": _images("visible"),
    "infrared": _images("infrared"),
    "label": np.repeat([7, 390, 0, 21], K).astype(np.int32),
    "camera": np.zeros((P * K, 2), np.int32),
}
IMAGES = jax.ShapeDtypeStruct((P * K, *SIZE, 3), jnp.float32)


class Built:
    """A method, fresh variables and its loss, jitted with and without the gradient."""

    def __init__(self, **options):
        self.method = smcl.build(**with_backbone(SMALL | options))
        self.variables = self.method.init(KEY)
        self.gradient = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
        self.value = jax.jit(self._loss)

    def _loss(self, params, variables, batch, step):
        return self.method.loss({**variables, "params": params}, batch, KEY, step)

    def run(self, step=SWITCH, batch=BATCH):
        """(total, aux, gradient as {path: array})."""
        (total, aux), gradient = self.gradient(
            self.variables["params"], self.variables, batch, jnp.asarray(step)
        )
        return float(total), aux, flatten(gradient)

    def forward(self, factor=1.0):
        """(total, aux) once the metric terms count; the generator's weights can be scaled."""
        params = self.variables["params"]
        made = jax.tree.map(lambda x: factor * x, params["auxiliary"])
        return self.value({**params, "auxiliary": made}, self.variables, BATCH, jnp.asarray(SWITCH))


def traced(**options):
    """A method, the shapes of its variables and what its loss returns beside the total."""
    method = smcl.build(**with_backbone(SMALL | options))
    variables = jax.eval_shape(method.init, KEY)
    _, aux = jax.eval_shape(method.loss, variables, BATCH, KEY, jnp.asarray(0))
    return method, variables, aux
