"""The one small world of whole-model tests, so that their compiled programs are shared.

P identities of K images in each modality, 8 classes, pictures of 32 x 16 pixels, and a ResNet of
one block a stage with 4 channels in its stem. What a method needs besides is in
tests/methods/NAME/tiny.py:

  STEPS   {name of a case: options}: steps that are compared across devices
  PIECES  options that bring in what sees more than a row, and no mask of dropout, which would
          depend on the pieces that a batch is cut into
"""

import importlib
import inspect

import numpy as np

from vireid_jax.methods import METHODS, get_build
from vireid_jax.methods.common import Backbone

P, K, SIZE, CLASSES = 4, 2, (32, 16), 8
ROWS = P * K
BACKBONE = Backbone(depth=10, width=4)
FEATURES = BACKBONE.features
FACTS = dict(num_classes=CLASSES, image_size=SIZE)
RUN = dict(num_ids=P, num_instances=K, num_steps=8, steps_per_epoch=4)


def of_methods(kind):
    """{name of a method: STEPS or PIECES of its tests}."""
    return {
        name: getattr(importlib.import_module(f"tests.methods.{name}.tiny"), kind)
        for name in METHODS
    }


def build(name, options, facts=FACTS | RUN, **backbone):
    """The method in this world, by options of its own and of the backbone."""
    make = get_build(name)
    wanted = inspect.signature(make).parameters
    facts = {k: v for k, v in facts.items() if k in wanted}
    return make(**facts, **options, backbone=BACKBONE._replace(**backbone))


def host_batch():
    """A global batch as a loader gives it: NumPy, uint8 images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, ROWS, *SIZE, 3), dtype=np.uint8)
    return {
        "visible": images[0],
        "infrared": images[1],
        "label": np.repeat([6, 1, 0, 7], K).astype(np.int32),
        "camera": rng.integers(1, 7, (ROWS, 2)).astype(np.int32),
    }
