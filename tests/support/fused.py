"""A linear embedding whose rows are sums of similarities, and the same by loops."""

import numpy as np

from vireid_jax import embedding
from vireid_jax.data.augment import MEAN, STD
from vireid_jax.runtime import devices
from vireid_jax.types import INFRARED, Method, Records, Retrieval

SIZE = (16, 16)  # the least that can be corrupted
PIXELS = SIZE[0] * SIZE[1] * 3
FUSIONS = {"sum": {"a": 1.0, "b": 1.0}, "weighted": {"a": 0.1, "b": 0.9}}
VARIABLES = {
    name: np.random.default_rng(n).normal(size=(PIXELS, width)).astype(np.float32)
    for n, (name, width) in enumerate({"plain": 3, "a": 4, "b": 7}.items())
}


def embed_images(variables, images, modality):
    """Three features; a and b are of length 1, as in the methods."""
    flat = images.reshape(len(images), -1)
    found = {name: flat @ w + modality for name, w in variables.items()}
    for name in ("a", "b"):
        found[name] = found[name] / ((found[name] ** 2).sum(1, keepdims=True)) ** 0.5
    return found


def naive(records, mirror=False):
    """The same of each image by itself, in float64."""
    images = records.images[:, :, ::-1] if mirror else records.images
    flat = ((images / 255.0 - MEAN) / STD).reshape(len(images), -1)
    found = {n: flat @ w + records.modality[:, None] for n, w in VARIABLES.items()}
    for name in ("a", "b"):
        found[name] /= np.linalg.norm(found[name], axis=1, keepdims=True)
    return found


def records(count, modality, seed):
    rng = np.random.default_rng(seed)
    return Records(
        rng.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8),
        (np.arange(count) % 5).astype(np.int32),
        np.full(count, 3 if modality == INFRARED else 1, np.int32),
        np.full(count, modality, np.int8),
        [f"cam{modality}/{n % 5:04d}/{n:04d}" for n in range(count)],
    )


def sides(queries=11, images=17):
    return Retrieval(records(queries, 1, 0), records(images, 0, 1))


def options(mesh):
    return dict(mesh=mesh, image_size=SIZE, batch_size=8)


def make_parts():
    """How to embed, the weights on their devices, and the mesh."""
    mesh = devices.make_mesh()
    method = Method(lambda key: VARIABLES, None, embed_images, fusions=FUSIONS)
    return embedding.make_embed(method, mesh), devices.place(VARIABLES, mesh), mesh
