"""What of a step is as large for one batch as for another."""

import jax
import jax.numpy as jnp

from configs import smcl
from launch.ahead import fixed, recipe


@jax.jit
def _inner(kernel, x):
    joined = jnp.concatenate([kernel, kernel], 1)  # [5, 14], of the weights alone
    return x @ joined  # [rows, 14]


def _step(kernel, x):
    def one_row(carry, row):
        return carry, jnp.outer(row, row)  # [5, 5], but of a row

    maps = jax.lax.cond(
        x[0, 0] > 0, lambda: _inner(kernel, x), lambda: jnp.tanh(_inner(kernel, x) * 2)
    )
    scatter = maps.T @ maps  # [14, 14], a statistic
    return scatter.sum() + jax.lax.scan(one_row, 0, x)[1].sum()


def _sizes(*rows):
    kernel = jnp.ones((5, 7))
    return fixed.sizes(*(jax.jit(_step).trace(kernel, jnp.ones((n, 5))) for n in rows))


def test_weights_and_statistics_stay_and_maps_grow():
    found = _sizes(8, 9)
    assert {5 * 14, 14 * 14} <= found
    assert not {8 * 14, 9 * 14, 8 * 5, 9 * 5, 8 * 25, 9 * 25} & found
    assert 25 not in found  # what a loop has of each row is no statistic


def test_one_batch_alone_tells_nothing():
    assert 8 * 14 in _sizes(8, 8)


def test_a_larger_batch_divides_as_the_recipes_does():
    config = smcl.get_config("sysu")
    config.sampler.num_ids, config.sampler.num_instances = 6, 4
    config.devices.accumulate = 3
    more = recipe.enlarged(config, 4, 395).sampler
    assert more.num_ids * more.num_instances == 24 + 12
    config.sampler.num_ids = 395  # no more people than there are
    more = recipe.enlarged(config, 4, 395).sampler
    assert more.num_ids <= 395
    assert more.num_ids * more.num_instances == 395 * 4 + 12
