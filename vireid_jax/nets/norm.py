"""Batch normalization with PyTorch's arithmetic."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import init


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, as `torch.nn.BatchNorm{1,2}d`.

    Differs from `flax.linen.BatchNorm` in what torch does otherwise: the running variance
    is the unbiased one, n / (n - 1) times the batch variance. Under jit with a sharded
    batch the statistics are those of the global batch.

    Attributes:
      use_bias: learn a shift; a BN neck has none (Luo et al. 2019, "Bag of Tricks").
      momentum: weight of the new statistics (torch's sense; flax writes 1 - momentum).
      epsilon: added to the variance.
      scale_init: where the factors start.
      running: (M, kept): rows are M interleaved modalities, row b * M + m; all of them
        normalize the batch, the first `kept` alone update the running statistics.
    """

    use_bias: bool = True
    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: init.Initializer = init.constant(1.0)
    running: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalizes x [N, ..., F]; returns the same shape and dtype."""
        width = x.shape[-1]
        wide = jnp.promote_types(x.dtype, jnp.float32)  # statistics never in half precision
        running_mean = self.variable("batch_stats", "mean", init.constant(0.0), None, (width,))
        running_var = self.variable("batch_stats", "var", init.constant(1.0), None, (width,))
        scale = self.param("scale", self.scale_init, (width,))

        rows = x.astype(wide)
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var = _moments(rows, running_mean.value)
            if not self.is_initializing():
                self._update(rows, mean, var, running_mean, running_var)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        y = (rows - _row(mean, x.ndim)) * _row(factor, x.ndim)
        if self.use_bias:
            y = y + _row(self.param("bias", init.constant(0.0), (width,)), x.ndim)
        return y.astype(x.dtype)

    def _update(self, rows: Any, mean: Any, var: Any, running_mean: Any, running_var: Any) -> None:
        """Moves the running statistics toward those of the batch (or of the kept rows)."""
        if self.running is not None:
            modalities, kept = self.running
            rows = rows.reshape(-1, modalities, *rows.shape[1:])[:, :kept]
            mean, var = _moments(rows, running_mean.value)
        count = rows.size // rows.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        for stat, new in ((running_mean, mean), (running_var, unbiased)):
            value = (1 - self.momentum) * stat.value + self.momentum * new
            stat.value = jax.lax.stop_gradient(value).astype(stat.value.dtype)


def _row(vector: jax.Array, ndim: int) -> jax.Array:
    """[F] -> [1, ..., 1, F], because rank promotion is an error in this project's tests."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def _moments(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of x over all axes but the last.

    One pass over x, so one all-reduce on a mesh; shifting by the running mean keeps
    E[x^2] - E[x]^2 from cancelling when the mean is far from zero.
    """
    axes = tuple(range(x.ndim - 1))
    shift = jax.lax.stop_gradient(shift.astype(x.dtype))
    moved = x - _row(shift, x.ndim)
    mean = moved.mean(axes)
    var = jnp.maximum((moved * moved).mean(axes) - mean * mean, 0)
    return mean + shift, var
