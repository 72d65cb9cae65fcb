"""The methods, by the name that configs use."""

from collections.abc import Callable

from vireid_jax.methods.agw import method as agw
from vireid_jax.methods.deen import method as deen
from vireid_jax.methods.idkl import method as idkl
from vireid_jax.methods.mun import method as mun
from vireid_jax.methods.pdm import method as pdm
from vireid_jax.methods.smcl import method as smcl
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
