"""The methods, by the name that configs use."""

from collections.abc import Callable

from vireid_jax.methods import idkl, mun, smcl
from vireid_jax.types import Method

METHODS: dict[str, Callable[..., Method]] = {
    "idkl": idkl.build,
    "mun": mun.build,
    "smcl": smcl.build,
}


def get_build(name: str) -> Callable[..., Method]:
    """The `build` function of a method. Raises ValueError listing the names."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; expected one of {sorted(METHODS)}")
    return METHODS[name]
