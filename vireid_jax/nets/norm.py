"""Batch normalization with PyTorch's arithmetic: of the global batch, or of runs of its rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import init


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, as `torch.nn.BatchNorm{1,2}d`.

    Unlike in `flax.linen.BatchNorm` the running variance is the unbiased one, n / (n - 1) times
    the batch variance. A sharded batch has global statistics, unless there are groups.

    Attributes:
      use_bias: learn a shift; a BN neck has none (Luo et al. 2019, "Bag of Tricks").
      momentum: weight of the new statistics (torch's sense; flax writes 1 - momentum).
      epsilon: added to the variance.
      scale_init: where the factors start.
      groups: contiguous runs of N / groups rows that are each normalized by their own mean and
        variance, in training. The first alone moves the running statistics, as in torch on
        several GPUs without SyncBN, which keeps the buffers of replica 0. Runs that lie on devices
        of their own need no communication.
    """

    use_bias: bool = True
    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: init.Initializer = init.constant(1.0)
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalizes x [N, ..., F]; returns the same shape and dtype.

        With `train` by batch statistics, which move the running ones; else by the running ones.

        Raises:
          ValueError: the groups do not divide the rows.
        """
        width = x.shape[-1]
        groups = 1 if self.is_initializing() else self.groups  # two rows start a network
        wide = jnp.promote_types(x.dtype, jnp.float32)  # statistics never in half precision
        running_mean = self.variable("batch_stats", "mean", init.constant(0.0), None, (width,))
        running_var = self.variable("batch_stats", "var", init.constant(1.0), None, (width,))
        scale = self.param("scale", self.scale_init, (width,))

        rows = x.astype(wide)
        mean, var = running_mean.value, running_var.value
        if train:
            if groups != 1:  # a sharded axis of rows stays in place
                if groups < 1 or rows.shape[0] % groups:
                    raise ValueError(
                        f"{groups} groups of batch statistics for {rows.shape[0]} rows, expected a "
                        "divisor; change devices.bn_groups, or sampler.num_ids to a multiple of it"
                    )
                rows = rows.reshape(groups, -1, *rows.shape[1:])
            mean, var = _moments(rows, running_mean.value, groups)
            if not self.is_initializing():
                # Of all groups, computed where their rows are; the first is then taken.
                first, spread = (mean[0], var[0]) if groups > 1 else (mean, var)
                count = rows.size // width // groups
                unbiased = spread * (count / max(count - 1, 1))
                for stat, new in ((running_mean, first), (running_var, unbiased)):
                    value = (1 - self.momentum) * stat.value + self.momentum * new
                    stat.value = jax.lax.stop_gradient(value).astype(stat.value.dtype)
        factor = _row(scale, var.ndim) * jax.lax.rsqrt(var + self.epsilon)
        y = (rows - _row(mean, rows.ndim)) * _row(factor, rows.ndim)
        y = y.reshape(x.shape)
        if self.use_bias:
            y = y + _row(self.param("bias", init.constant(0.0), (width,)), x.ndim)
        return y.astype(x.dtype)


def _row(vector: jax.Array, ndim: int) -> jax.Array:
    """[F] or [groups, F] -> [(groups or) 1, 1, ..., F]: ranks are never promoted silently here."""
    return vector.reshape(*vector.shape[:-1], *(1,) * (ndim - vector.ndim), vector.shape[-1])


def _moments(x: jax.Array, shift: jax.Array, groups: int = 1) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [F] of x [..., F], or [groups, F] of x [groups, n, ..., F].

    One pass over x, so one all-reduce on a mesh; shifting by the running mean keeps
    E[x^2] - E[x]^2 from cancelling when the mean is far from zero.
    """
    axes = tuple(range(groups > 1, x.ndim - 1))
    shift = jax.lax.stop_gradient(shift.astype(x.dtype))
    moved = x - _row(shift, x.ndim)
    mean = moved.mean(axes)
    var = jnp.maximum((moved * moved).mean(axes) - mean * mean, 0)
    return mean + _row(shift, mean.ndim), var
