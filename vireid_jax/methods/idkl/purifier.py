"""The information purifier of IDKL (Ren and Zhang, CVPR 2024), section 3.2."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import init
from vireid_jax.nets.pooling import gem_above

MASKS = ("channel", "map")


class Purified(NamedTuple):
    """The maps [N, h, w, F] of eqs. 7, 9 and 12."""

    normalized: jax.Array  # F^, eq. 7
    enhanced: jax.Array  # F^d+ = m_e F
    reduced: jax.Array  # F^m- = m_r F^
    purified: jax.Array  # F~ = m_e F^m- + m_r F^d+


class InstanceNorm(nn.Module):
    """Eq. 7: every channel of every sample by its mean and biased variance over the map.

    Attributes:
      affine: learn a scale and a shift, as the released code does; the paper has none.
      epsilon: added to the variance.
    """

    affine: bool = True
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, F] -> the same shape and dtype."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        moved = wide - wide.mean((1, 2), keepdims=True)
        y = moved * jax.lax.rsqrt((moved * moved).mean((1, 2), keepdims=True) + self.epsilon)
        if self.affine:
            shape = (1, 1, 1, x.shape[-1])
            scale = self.param("scale", init.constant(1.0), shape[-1:])
            bias = self.param("bias", init.constant(0.0), shape[-1:])
            y = y * scale.reshape(shape) + bias.reshape(shape)
        return y.astype(x.dtype)


class Mask(nn.Module):
    """Eq. 8: sigmoid(W relu(W' g(F))), W' to an r-th of the channels, without biases.

    Attributes:
      form: "channel": g is GeM pooling, the mask [N, 1, 1, F], as eq. 8 reads. (Its average would
        be the same number for every normalized map, and the mask the same for all images.)
        "map": no g, a mask at every place [N, h, w, F], as the released code has it. The
        parameters are the same.
      ratio: r.
      dtype: compute type; None follows the input.
    """

    form: str = "channel"
    ratio: int = 16
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, F] -> values in (0, 1), [N, 1, 1, F] or [N, h, w, F]."""
        width = x.shape[-1]
        if self.form == "channel":
            x = gem_above(x)[:, None, None, :]
        hidden = max(width // self.ratio, 1)
        options = dict(use_bias=False, dtype=self.dtype, kernel_init=init.torch_uniform())
        x = nn.relu(nn.Dense(hidden, **options, name="down")(x))
        return nn.sigmoid(nn.Dense(width, **options, name="up")(x))


class Purifier(nn.Module):
    """Eqs. 7 to 12: two masks, one guided by the map, one by the map without its style.

    Attributes:
      mask: see `Mask.form`.
      affine: see `InstanceNorm`.
      ratio: r.
      dtype: compute type of the masks; None follows the input.
    """

    mask: str = "channel"
    affine: bool = True
    ratio: int = 16
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> Purified:
        """Purifies maps [N, h, w, F].

        Raises:
          ValueError: for an unknown mask.
        """
        if self.mask not in MASKS:
            raise ValueError(f"mask is {self.mask!r}, expected one of {MASKS}")
        options = dict(form=self.mask, ratio=self.ratio, dtype=self.dtype)
        normalized = InstanceNorm(self.affine, name="norm")(x)
        enhance = Mask(**options, name="mask_e")(x).astype(x.dtype)  # m_e
        reduce = Mask(**options, name="mask_r")(normalized).astype(x.dtype)  # m_r
        enhanced, reduced = enhance * x, reduce * normalized
        return Purified(normalized, enhanced, reduced, enhance * reduced + reduce * enhanced)
