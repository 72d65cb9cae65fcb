"""The main command with one more method, linear, which compiles at once.

Tests of what surrounds a method (stops, resumes, checkpoints) drive it in processes of its own. A
step also rests a little after its line is written, so that a test can tell one from the next.
"""

import time

import jax
import jax.numpy as jnp

from vireid_jax import main, methods
from vireid_jax.runtime.writer import Writer
from vireid_jax.types import Aux, Method

FEATURES = 8
REST_S = 0.02


def build(*, num_classes, image_size, backbone, from_step):
    """Features are products of the pixels; their mean is to be the label. Drawn pixels are dropped.

    `from_step` is where a second term comes in: the features of both modalities are to be equal.
    """
    del backbone  # every method is given one
    pixels = image_size[0] * image_size[1] * 3

    def product(params, images):
        return images.reshape(len(images), pixels) @ params["w"] / pixels + params["b"][None]

    def init(key):
        # More numbers than `devices.SHARDED_FROM`, so that devices can share them.
        params = {"w": jax.random.normal(key, (pixels, FEATURES)), "b": jnp.zeros(FEATURES)}
        return {"params": params, "batch_stats": {"seen": jnp.zeros((), jnp.int32)}}

    def loss(variables, batch, key, step):
        maps = jnp.stack([batch["visible"], batch["infrared"]])
        maps = maps * jax.random.bernoulli(key, 0.8, maps.shape)
        features = jnp.stack([product(variables["params"], x) for x in maps])
        target = batch["label"].astype(jnp.float32) / num_classes
        terms = {
            "label": ((features.mean(-1) - target[None]) ** 2).mean(),
            "gap": ((features[0] - features[1]) ** 2).mean(),
        }
        total = terms["label"] + jnp.where(step >= from_step, 0.5, 0.0) * terms["gap"]
        return total, Aux(terms, {"batch_stats": {"seen": variables["batch_stats"]["seen"] + 1}})

    def embed(variables, images, modality):
        features = product(variables["params"], images)
        return {"bn": features, "pool": features**2}

    return Method(init, loss, embed)


def rest_after(write):
    def slow(self, *arguments, **options):
        write(self, *arguments, **options)
        time.sleep(REST_S)

    return slow


if __name__ == "__main__":
    methods.METHODS["linear"] = build
    Writer.write = rest_after(Writer.write)
    main.cli()
