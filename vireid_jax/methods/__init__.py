"""The methods, by the name that configs use."""

from collections.abc import Callable

from vireid_jax.methods import agw, deen, idkl, mun, pdm, smcl
from vireid_jax.types import Method

METHODS: dict[str, Callable[..., Method]] = {
    "agw": agw.build,
    "deen": deen.build,
    "idkl": idkl.build,
    "mun": mun.build,
    "pdm": pdm.build,
    "smcl": smcl.build,
}


def get_build(name: str) -> Callable[..., Method]:
    """The `build` function of a method. Raises ValueError listing the names."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; expected one of {sorted(METHODS)}")
    return METHODS[name]
