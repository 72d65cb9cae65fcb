"""The one small world of whole-model tests, so that their compiled programs are shared.

P identities of K images in each modality, 8 classes, pictures of 32 x 16 pixels, and a ResNet of
one block a stage with 4 channels in its stem.
"""

import numpy as np

from vireid_jax.methods.common import Backbone

P, K, SIZE, CLASSES = 4, 2, (32, 16), 8
ROWS = P * K
BACKBONE = Backbone(depth=10, width=4)
FEATURES = BACKBONE.features
FACTS = dict(num_classes=CLASSES, image_size=SIZE, backbone=BACKBONE)
PK = dict(num_ids=P, num_instances=K)


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
