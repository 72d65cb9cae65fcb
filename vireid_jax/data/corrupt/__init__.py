"""Corrupted images: the 20 corruptions at 5 severities of SYSU-MM01-C and RegDB-C.

The benchmark (Chen et al., NeurIPS 2021 D&B, arXiv 2111.00880) trains on clean images. At test
every image of one modality gets one of 20 corruptions at one of 5 severities, both drawn
uniformly, after the resize to the network's size; this is repeated 10 times. Here the draw is a
function of (seed, repeat, name of the image), so that every model sees the same images.

Constants are the benchmark's, the code is our own, and some textures differ (see `weather`):
results are named with `LABEL`. `python -m vireid_jax.data.corrupt --sheet sheet.png` shows all.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.data.corrupt import camera, ops, weather
from vireid_jax.data.corrupt.ops import SEVERITIES
from vireid_jax.data.decoding import cores
from vireid_jax.types import INFRARED, VISIBLE

LABEL = "-C (vireid)"  # after the name of a protocol whose images were corrupted
MIN_SIDE = 16  # pixels

# A draw picks by number: the order never changes.
KINDS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "rain",
    "spatter", "brightness", "contrast", "saturate", "jpeg_compression", "pixelate",
    "elastic_transform",
)  # fmt: skip
CORRUPTIONS: dict[str, ops.Corruption] = {
    kind: getattr(weather, kind, None) or getattr(camera, kind) for kind in KINDS
}
_WHICH = {"visible": (VISIBLE,), "infrared": (INFRARED,), "both": (VISIBLE, INFRARED)}


class Spec(NamedTuple):
    """Which images are corrupted and what may be drawn for them, see `parse`."""

    modalities: tuple[int, ...]  # of types.VISIBLE, types.INFRARED
    kinds: tuple[str, ...] = KINDS
    severities: tuple[int, ...] = SEVERITIES


def corrupt(image: np.ndarray, kind: str, severity: int, *, rng: np.random.Generator) -> np.ndarray:
    """Corrupts one image.

    Args:
      image: uint8 [H, W, 3], both sides of 16 pixels or more; gray images have R = G = B.
      kind: a key of `CORRUPTIONS`.
      severity: 1 (weak) to 5 (strong).
      rng: where the corruption's own random numbers come from; it moves on.

    Returns:
      uint8 [H, W, 3], truncated and not rounded, as in the benchmark.

    Raises:
      TypeError: the image is not uint8.
      ValueError: unknown kind or severity, or another shape.
    """
    _check_kind(kind)
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise TypeError(f"the image is {image.dtype}, expected uint8 with values 0 to 255")
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(
            f"the image has shape {image.shape}, expected (height, width, 3) with sides of "
            f"{MIN_SIDE} pixels or more"
        )
    return ops.to_bytes(CORRUPTIONS[kind](image, severity, rng))


def draw(
    name: str,
    *,
    seed: int,
    repeat: int,
    kinds: Sequence[str] = KINDS,
    severities: Sequence[int] = SEVERITIES,
) -> tuple[str, int, np.random.Generator]:
    """Draws what happens to an image: uniform over kinds and severities, independently.

    SHA-256 of (seed, repeat, name) is the key of a Philox counter; its first raw word makes the
    choice, and the generator goes on from there. So the choice is the same on every platform and
    NumPy version, and has nothing to do with other images or their order. A restriction to other
    kinds or severities is another draw.

    Args:
      name: of the image, such as `Records.name` gives; two equal names get the same draw.
      seed: of the corrupted set.
      repeat: which of the repetitions, usually 0 to 9.
      kinds: keys of `CORRUPTIONS` to draw from.
      severities: of 1 to 5, to draw from.

    Returns:
      (kind, severity, generator for the corruption).

    Raises:
      ValueError: nothing to draw from, or an unknown kind or severity.
    """
    if isinstance(kinds, str):
        raise ValueError(f"kinds is the string {kinds!r}, expected a list such as [{kinds!r}]")
    if not len(kinds) or not len(severities):
        raise ValueError("no kinds or no severities to draw from; leave them out to draw from all")
    for kind in kinds:
        _check_kind(kind)
    for severity in severities:
        ops.at(SEVERITIES, severity)
    text = f"corruption\0{int(seed)}\0{int(repeat)}\0{name}".encode("utf-8", "surrogatepass")
    key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
    bits = np.random.Philox(key=key)
    choice = int(bits.random_raw()) % (len(kinds) * len(severities))
    row, column = divmod(choice, len(severities))
    return kinds[row], severities[column], np.random.Generator(bits)


def corrupt_images(
    images: Any, names: Sequence[str], *, workers: int | None = None, **options: Any
) -> np.ndarray:
    """Corrupts images, each as `draw` says for its name.

    The result is the same to the bit for any number of workers, any order of the images and any
    division of them into calls.

    Args:
      images: N images of one size: uint8 [N, H, W, 3], or anything that gives uint8 [H, W, 3]
        for an index from 0 to N-1.
      names: N names.
      workers: threads; None for one for each core that this process may use.
      **options: of `draw`: seed, repeat, kinds, severities.

    Returns:
      uint8 [N, H, W, 3].

    Raises:
      TypeError: images are not uint8.
      ValueError: N differs, sizes differ, workers is below 1, or see `draw` and `corrupt`.
    """
    count = len(names)
    if len(images) != count:
        raise ValueError(f"{len(images)} images and {count} names, expected as many of each")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}, expected 1 or more, or None for all cores")
    if not count:
        return np.zeros((0, *getattr(images, "shape", (0, 0, 0, 3))[1:]), np.uint8)
    shape = np.shape(images[0])
    out = np.empty((count, *shape), np.uint8)

    def one(n: int) -> None:
        image = np.asarray(images[n])
        if image.shape != shape:
            raise ValueError(f"image {n} has shape {image.shape}, the first has {shape}")
        kind, severity, rng = draw(names[n], **options)
        out[n] = corrupt(image, kind, severity, rng=rng)

    # Threads: NumPy, SciPy and Pillow let go of the interpreter in all that takes long, and a
    # process that runs JAX must not be forked.
    with ThreadPoolExecutor(min(workers or cores(), count)) as pool:
        for _ in pool.map(one, range(count)):
            pass
    return out


def parse(text: str) -> Spec:
    """Reads the value of `eval.corrupt`: MODALITY, MODALITY:KIND or MODALITY:KIND:SEVERITY.

    "visible" is the benchmark; "visible:fog" draws only severities, "visible:fog:3" nothing;
    "infrared" and "both" corrupt the other modality, or both.

    Raises:
      ValueError: an unknown part; the message lists the choices.
    """
    modality, *rest = text.split(":")
    if modality not in _WHICH or len(rest) > 2:
        raise ValueError(
            f"corrupt={text!r} is not understood, expected MODALITY, MODALITY:KIND or "
            f"MODALITY:KIND:SEVERITY with a modality of {', '.join(_WHICH)}, such as "
            "visible, visible:fog or visible:fog:3"
        )
    spec = Spec(_WHICH[modality])
    if rest:
        _check_kind(rest[0])
        spec = spec._replace(kinds=(rest[0],))
    if len(rest) == 2:
        if rest[1] not in {str(s) for s in SEVERITIES}:
            raise ValueError(
                f"corrupt={text!r} asks for severity {rest[1]!r}, expected 1, 2, 3, 4 or 5"
            )
        spec = spec._replace(severities=(int(rest[1]),))
    return spec


def _check_kind(kind: str) -> None:
    if kind not in CORRUPTIONS:
        raise ValueError(f"corruption {kind!r} is unknown, expected one of {', '.join(KINDS)}")
