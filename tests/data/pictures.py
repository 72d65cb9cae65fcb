"""Small records and encoded images for tests."""

import io

import numpy as np
from PIL import Image

from vireid_jax.types import Records


def make_records(images, people=6):
    n = len(images)
    return Records(
        images,
        (np.arange(n) // 2 % people * 5 + 2).astype(np.int32),
        (np.arange(n) % 3 + 1).astype(np.int32),
        (np.arange(n) % 2).astype(np.int8),
        [f"cam/{i:04d}" for i in range(n)],
    )


def smooth(size, n, seed=0):
    """Images with structure, as JPEG and resizing expect them: uint8 [n, H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    wave = rng.uniform(0.1, 0.9, (n, 1, 1, 3, 2))
    image = 128 + 100 * np.sin(wave[..., 0] * y[..., None] + wave[..., 1] * x[..., None])
    return np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)


def encode(image, kind):
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return out.getvalue()
