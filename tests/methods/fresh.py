"""A method that was not trained: sizes of its parameters, and a step on random images."""

import functools
import math
import re

import jax
import numpy as np

from vireid_jax.optim import path_name

CLASSES, P, K = 395, 4, 2
# A program runs once or twice here: the compiler's time counts, not the program's.
FAST = {"xla_backend_optimization_level": 0}


def by_path(tree):
    """{path: leaf}."""
    return {path_name(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def shapes(method):
    """{path: shape} of the parameters."""
    params = jax.eval_shape(method.init, jax.random.key(0))["params"]
    return {k: v.shape for k, v in by_path(params).items()}


def sizes(method):
    """{part: number of parameters}."""
    found = {}
    for path, shape in shapes(method).items():
        part = re.sub(r"_layer.*", "", path.split("/")[0])
        found[part] = found.get(part, 0) + math.prod(shape)
    return found


def batch(size, views=("visible", "infrared")):
    r = np.random.default_rng(5)
    label = np.repeat(r.permutation(CLASSES)[:P], K).astype(np.int32)
    images = {k: r.normal(size=(P * K, *size, 3)).astype(np.float32) for k in views}
    return {**images, "label": label}


def stepper(method, images):
    """A compiled (params, key) -> (total, Aux, {path: largest entry of the gradient}); params."""
    variables = dict(method.init(jax.random.key(0)))
    params = variables.pop("params")

    @functools.partial(jax.jit, compiler_options=FAST)
    def step(params, key):
        def loss(params):
            return method.loss({**variables, "params": params}, images, key, 0)

        return jax.value_and_grad(loss, has_aux=True)(params)

    def measured(params, key=1):
        (total, aux), gradient = step(params, jax.random.key(key))
        return total, aux, {k: float(np.abs(v).max()) for k, v in by_path(gradient).items()}

    return measured, params


def with_scales(params, pattern):
    """Parameters with more of what a pattern names: attention starts with a scale of 0."""
    return jax.tree_util.tree_map_with_path(
        lambda k, x: x + 0.5 if re.search(pattern, path_name(k)) else x, params
    )
