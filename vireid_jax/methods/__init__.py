"""The methods, by the name that configs use.

A method is a folder: `method.py` with the table of its terms, `build` and the loss in the paper's
order, `net.py` and `losses.py` with what this method alone has. `build(*, num_classes,
image_size, <facts of the run>, backbone, <options>)` returns a `types.Method`. It names the facts
that it needs (num_ids, num_instances, num_steps, steps_per_epoch, second_view), and gets no other.
`common` has what all builds share. Methods never import each other.

To add one, copy `agw` and change three places:

  vireid_jax/methods/NAME/, and its line in `METHODS` below
  configs/NAME.py, its recipe, which names every option
  tests/methods/NAME/: the network and the loss against a reference, and `tiny.py`, by which the
  tests of all methods (chunks, devices, resume) find it
"""

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
