"""Modules that keep less for the backward pass (`config.devices.remat`)."""

from collections.abc import Sequence
from typing import TypeVar

import flax.linen as nn

Class = TypeVar("Class", bound=type[nn.Module])


def rematerialized(
    module: Class, parent: nn.Module, remat: bool, static: Sequence[int] = ()
) -> Class:
    """The module class, or one whose inner arrays are computed again in the backward pass.

    Only the arguments of its call are kept. Names of parameters do not change.

    Args:
      module: a class.
      parent: what makes an instance of it, in `setup` or a compact method; it starts without.
      remat: whether.
      static: positions of arguments of its call that are not arrays, such as `train`; the module
        itself is 0, and arguments by keyword are always taken for arrays.
    """
    if not remat or parent.is_initializing():
        return module
    return nn.remat(module, static_argnums=tuple(static))
