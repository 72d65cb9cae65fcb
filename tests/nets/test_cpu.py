"""The forms of `kernels="cpu"` against the plain operations: values and gradients."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.nets import cpu

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 3e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)
LAYOUT = ("NHWC", "HWIO", "NHWC")

# Name: map [N, H, W, C], kernel [k, k, C, F], stride, and dilation unless it is 1.
CONVOLUTIONS = {
    "1x1": ((2, 5, 4, 6), (1, 1, 6, 7), 1),
    "1x1, stride 2, odd": ((2, 5, 3, 6), (1, 1, 6, 7), 2),
    "colors to few": ((2, 4, 3, 3), (1, 1, 3, 16), 1),
    "few to colors": ((2, 4, 3, 16), (1, 1, 16, 3), 1),
    "3x3, chunks": ((6, 5, 4, 6), (3, 3, 6, 7), 1),
    "3x3, stride 2, chunks, odd": ((6, 5, 4, 6), (3, 3, 6, 7), 2),
    "3x3, dilated, chunks": ((6, 5, 4, 6), (3, 3, 6, 7), 1, 2),
    "3x3, places": ((6, 5, 4, 6), (3, 3, 6, 7), 1),
    "3x3, dilated, places": ((6, 5, 4, 6), (3, 3, 6, 7), 1, 3),
    "3x3, stride 2, places": ((6, 5, 4, 6), (3, 3, 6, 7), 2),
    "images in cells": ((4, 12, 6, 3), (7, 7, 3, 8), 2),
    "images of odd height": ((4, 11, 6, 3), (7, 7, 3, 8), 2),
    "images, a wide stem": ((2, 8, 6, 3), (7, 7, 3, 64), 2),
}


def compare(run, plain, dtype, *arrays):
    """Values and gradients of two functions, in a dtype that both have to keep."""
    with jax.enable_x64(dtype == "float64"):
        inputs = [jnp.asarray(x, dtype) for x in arrays]

        def outputs(f):
            found, back = jax.vjp(f, *inputs)
            assert found.dtype == dtype
            along = np.random.default_rng(1).normal(size=found.shape)
            return found, *back(jnp.asarray(along, dtype))

        for got, want in zip(jax.jit(partial(outputs, run))(), outputs(plain), strict=True):
            got, want = (np.asarray(x, np.float64) for x in (got, want))
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * abs(want).max())


@dtypes
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, dtype, monkeypatch):
    monkeypatch.setattr(cpu, "CACHED", 1000)
    if "places" in name:
        monkeypatch.setattr(cpu, "MANY", 6)
    shape, kernel, stride, dilation = (*CONVOLUTIONS[name], 1)[:4]
    pad = kernel[0] // 2 * dilation
    options = dict(
        window_strides=(stride, stride),
        padding=((pad, pad),) * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
    )
    r = np.random.default_rng(0)
    compare(
        partial(cpu.convolution, **options),
        partial(jax.lax.conv_general_dilated, **options),
        dtype,
        r.normal(size=shape),
        r.normal(size=kernel),
    )


@dtypes
@pytest.mark.parametrize("levels", [3, None])
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (8, 5), (2, 1), (1, 1)])
def test_max_pool(size, levels, dtype):
    """With few levels there are ties in every window."""
    r = np.random.default_rng(0)
    shape = (2, *size, 3)
    maps = r.normal(size=shape) if levels is None else r.integers(levels, size=shape)
    window = dict(window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    compare(cpu.max_pool, partial(nn.max_pool, **window), dtype, maps)


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(96, 2**20, 1), (96, 2**20 + 1, 2), (96, 5 * 2**20, 6), (7, 2**21, 7), (96, 2**30, 16)],
)
def test_chunks_divide_the_images(images, size, expected):
    assert cpu._chunks(images, size) == expected


def test_a_convolution_of_few_channels_has_the_chunks_it_is_given(monkeypatch):
    monkeypatch.setattr(cpu, "CACHED", 6 * 5 * 4 * 7 * 4 // 3)  # a third of the larger map
    options = dict(window_strides=(1, 1), padding=((1, 1),) * 2, dimension_numbers=LAYOUT)

    def kernel_gradient(kernel):
        return cpu.convolution(jnp.ones((6, 5, 4, 6)), kernel, **options).sum()

    program = str(jax.make_jaxpr(jax.grad(kernel_gradient))(jnp.ones((3, 3, 6, 7))))
    # One forward, one for the gradient of the map, and three for the kernel's.
    assert program.count("conv_general_dilated[") == 5


def test_the_gradient_of_a_kernel_of_many_channels_is_made_of_products():
    options = dict(window_strides=(1, 1), padding=((1, 1),) * 2, dimension_numbers=LAYOUT)
    x, kernel = jnp.ones((1, 2, 1, cpu.MANY)), jnp.ones((3, 3, cpu.MANY, cpu.MANY))
    program = str(
        jax.make_jaxpr(jax.grad(lambda k: cpu.convolution(x, k, **options).sum()))(kernel)
    )
    assert program.count("dot_general[") == 9


def test_a_dense_layer_is_a_product_of_two_axes():
    x, layer = jnp.ones((2, 3, 4, 6)), nn.Dense(5, dot_general=cpu.dense)
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_allclose(layer.apply(variables, x), nn.Dense(5).apply(variables, x), 1e-6)
    assert "f32[24,6]" in str(jax.make_jaxpr(layer.apply)(variables, x))
