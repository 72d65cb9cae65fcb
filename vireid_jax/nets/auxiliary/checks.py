"""Refuses impossible options of auxiliary modalities before anything is traced."""

from collections.abc import Mapping, Sequence
from typing import Any

from vireid_jax.nets.auxiliary import pyramid, unifying

IMAGE_KINDS = ("x", "gray", "mixed", "syncretic")
KINDS = ("none", *IMAGE_KINDS, "mun")

_CHOICES: dict[str, Sequence[str]] = {
    "smgm_init": ("kaiming", "identity"),
    "smgm_input": ("standardized", "unit"),
    "x_input": ("unit", "standardized"),
    "mix": ("half", "beta"),
}
_GENERATOR_CHOICES: dict[str, Sequence[str]] = {
    "ratio_form": pyramid.RATIO_FORMS,
    "transposed": unifying.TRANSPOSED,
    "scale_shape": unifying.SCALE_SHAPES,
    "scale_form": unifying.SCALE_FORMS,
    "form": unifying.FORMS,
}
_GENERATOR_FLAGS = ("residual", "relu", "remat")


def check(
    kind: str,
    *,
    image_size: tuple[int, int],
    channels: int | None = None,
    smgm_width: int = 16,
    smgm_shared: bool = True,
    smgm_init: str = "kaiming",
    smgm_input: str = "standardized",
    x_width: int = 1,
    x_input: str = "unit",
    mix: str = "half",
    generator: Mapping[str, Any] | None = None,
) -> None:
    """Checks the options of every kind, and whether those of the chosen kind go together.

    Args:
      kind: one of `KINDS`.
      image_size: (height, width) in pixels.
      channels: of the maps after the first stage; None if not known.
      smgm_width, smgm_shared, smgm_init, smgm_input, x_width, x_input, mix, generator: see `make`.

    Raises:
      ValueError: naming the option, what it is and what it may be.
    """
    _choice("auxiliary", kind, KINDS)
    given = {"smgm_init": smgm_init, "smgm_input": smgm_input, "x_input": x_input, "mix": mix}
    for name, value in given.items():
        _choice(name, value, _CHOICES[name])
    _flag("smgm_shared", smgm_shared)
    for name, width in (("smgm_width", smgm_width), ("x_width", x_width)):
        if width < 1:
            raise ValueError(f"method.{name} is {width}, expected 1 or more")
    if kind == "syncretic" and smgm_init == "identity" and smgm_width != 3:
        raise ValueError(
            f"method.smgm_init is 'identity', which needs method.smgm_width=3, got {smgm_width}"
        )
    section = dict(generator or {})
    _check_generator(section)
    if kind == "mun":
        _check_map(section, image_size, channels)


def _choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"method.{name} is {value!r}, expected one of {list(allowed)}")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"method.{name} is {value!r}, expected True or False")


def _check_generator(section: Mapping[str, Any]) -> None:
    known = ["ratios", *_GENERATOR_CHOICES, *_GENERATOR_FLAGS]
    for name, value in section.items():
        if name not in known:
            raise ValueError(
                f"method.generator has no option {name!r}, expected one of {sorted(known)}"
            )
        if name in _GENERATOR_CHOICES:
            _choice(f"generator.{name}", value, _GENERATOR_CHOICES[name])
        elif name in _GENERATOR_FLAGS:
            _flag(f"generator.{name}", value)
    if "ratios" in section:
        pyramid.check_ratios(section["ratios"])


def _check_map(
    section: Mapping[str, Any], image_size: tuple[int, int], channels: int | None
) -> None:
    # The stem halves twice and rounds up each time, which is a quarter rounded up.
    height, width = (-(-side // 4) for side in image_size)
    default = unifying.ModalityUnifying()
    ratios = section.get("ratios", default.ratios)
    try:
        pyramid.windows(height, width, ratios, section.get("ratio_form", default.ratio_form))
    except ValueError as error:
        raise ValueError(f"data.image_size is {tuple(image_size)}, but {error}") from error
    if channels is None:
        return
    if channels % 2:
        raise ValueError(
            f"method.auxiliary='mun' splits the {channels} channels of the first stage into "
            "halves, expected an even number; change method.width"
        )
    try:
        unifying.transposed_channels(channels, section.get("transposed", default.transposed))
    except ValueError as error:
        raise ValueError(f"method.generator.{error}; change it or method.width") from error
