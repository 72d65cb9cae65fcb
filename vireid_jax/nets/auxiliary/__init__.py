"""Auxiliary modalities: a third modality made from paired visible and infrared images.

`make` gives the module of a kind. Those of `IMAGE_KINDS` take and return standardized images
[B, H, W, 3]; "mun" takes the maps of both modalities after the first stage, see
`ModalityUnifying`. `check` refuses impossible options before anything is traced.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vireid_jax.nets.auxiliary.checks import IMAGE_KINDS, KINDS, check
from vireid_jax.nets.auxiliary.images import SMGM, Gray, Mixed, X
from vireid_jax.nets.auxiliary.unifying import ModalityUnifying, layer_scale, project_scales

__all__ = [
    "IMAGE_KINDS",
    "KINDS",
    "SMGM",
    "Gray",
    "Mixed",
    "ModalityUnifying",
    "X",
    "check",
    "layer_scale",
    "make",
    "project_scales",
]


def make(
    kind: str,
    *,
    kernels: str = "xla",
    dtype: Any = None,
    groups: int = 1,
    smgm_width: int = 16,
    smgm_shared: bool = True,
    smgm_init: str = "kaiming",
    smgm_input: str = "standardized",
    x_width: int = 1,
    x_input: str = "unit",
    mix: str = "half",
    generator: Mapping[str, Any] | None = None,
    remat: bool = False,
) -> nn.Module | None:
    """The module of an auxiliary modality; None for "none".

    Args:
      kind: one of `KINDS`.
      kernels, dtype, groups: see `ResNet`; of groups there are some in "mun" alone.
      smgm_width, smgm_shared, smgm_init, smgm_input: of "syncretic", see `SMGM`.
      x_width, x_input: of "x", see `X`.
      mix: of "mixed", see `Mixed`.
      generator: of "mun", attributes of `ModalityUnifying`.
      remat: compute inner maps of "x", "syncretic" and "mun" anew in the backward pass.

    Raises:
      ValueError: there is no such kind.
    """
    again = nn.remat if remat else (lambda module: module)
    common: dict[str, Any] = {"kernels": kernels, "dtype": dtype}
    match kind:
        case "none":
            return None
        case "x":
            return again(X)(width=x_width, input=x_input, **common)
        case "gray":
            return Gray()
        case "mixed":
            return Mixed(mix=mix)
        case "syncretic":
            return again(SMGM)(
                width=smgm_width,
                shared=smgm_shared,
                initial=smgm_init,
                input=smgm_input,
                **common,
            )
        case "mun":
            options = dict(generator or {})
            options["remat"] = remat or options.get("remat", False)
            return ModalityUnifying(**options, **common, groups=groups)
    raise ValueError(f"method.auxiliary is {kind!r}, expected one of {list(KINDS)}")
