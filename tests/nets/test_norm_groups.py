"""Batch statistics by groups: against PyTorch's replicas, NumPy, and what devices exchange."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tests.support.rows import each
from vireid_jax.nets import init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.resnet import ResNet

R = np.random.default_rng(5)
KEY = jax.random.key(0)


def started(norm, x):
    """Variables with statistics, factors and shifts that are no zeros and ones."""
    shapes = jax.eval_shape(lambda: norm.init(KEY, x, train=True))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype(x.dtype), shapes)


def normalized(norm, variables, x):
    y, new = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, new["batch_stats"]


# --- One normalization ------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.slow
@each("shape, groups", [((6, 5, 3, 4), 1), ((6, 5, 3, 4), 3), ((12, 4), 2)])
def test_groups_are_the_replicas_of_torch(shape, groups):
    """Each replica has a module of its own and sees its run of rows; replica 0's is kept."""
    torch = pytest.importorskip("torch")
    x, along = R.normal(1, 2, shape), R.normal(size=shape)
    norm = BatchNorm(groups=groups)
    with jax.enable_x64(True):
        variables = started(norm, jnp.asarray(x))

        def total(params, x):
            y, stats = normalized(norm, {**variables, "params": params}, x)
            return (y * along).sum(), (y, stats)

        graded = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
        (_, (y, stats)), (of_params, of_x) = graded(variables["params"], jnp.asarray(x))
    make = torch.nn.BatchNorm2d if x.ndim == 4 else torch.nn.BatchNorm1d
    replicas = [make(shape[-1]).double() for _ in range(groups)]
    rows = torch.tensor(x).movedim(-1, 1).requires_grad_()
    outputs = []
    for replica, run in zip(replicas, rows.chunk(groups), strict=True):
        params, start = variables["params"], variables["batch_stats"]
        replica.weight.data = torch.tensor(params["scale"])
        replica.bias.data = torch.tensor(params["bias"])
        replica.running_mean = torch.tensor(start["mean"])
        replica.running_var = torch.tensor(start["var"])
        outputs.append(replica(run))
    expected = torch.cat(outputs)
    (expected * torch.tensor(along).movedim(-1, 1)).sum().backward()
    close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    close(y, expected.detach().movedim(1, -1))
    close(of_x, rows.grad.movedim(1, -1))
    close(of_params["scale"], sum(r.weight.grad for r in replicas))
    close(of_params["bias"], sum(r.bias.grad for r in replicas))
    close(stats["mean"], replicas[0].running_mean)
    close(stats["var"], replicas[0].running_var)


def test_the_first_group_moves_the_statistics():
    x = R.normal(2, 3, (4, 6, 5)).astype(np.float32)  # group, row, channel
    norm = BatchNorm(groups=4)
    variables = started(norm, jnp.asarray(x.reshape(24, 5)))
    y, stats = normalized(norm, variables, x.reshape(24, 5))
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    for group, run in enumerate(x):
        expected = (run - run.mean(0)) / np.sqrt(run.var(0) + 1e-5) * scale + bias
        found = np.asarray(y).reshape(4, 6, 5)[group]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    before = variables["batch_stats"]
    mean = 0.9 * before["mean"] + 0.1 * x[0].mean(0)
    var = 0.9 * before["var"] + 0.1 * x[0].var(0, ddof=1)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_evaluation_knows_no_groups():
    x = R.normal(size=(6, 4)).astype(np.float32)
    variables = started(BatchNorm(), jnp.asarray(x))
    whole, runs = (BatchNorm(groups=g).apply(variables, x, train=False) for g in (1, 3))
    np.testing.assert_array_equal(whole, runs)


def test_rows_that_do_not_divide_are_refused():
    x = jnp.ones((6, 2))
    for groups in (4, 0, -2):
        norm = BatchNorm(groups=groups)
        with pytest.raises(ValueError, match=rf"^{groups} groups .* 6 rows") as error:
            normalized(norm, started(norm, x), x)
        assert "devices.bn_groups" in str(error.value) and "sampler.num_ids" in str(error.value)


def test_a_start_knows_no_groups():
    two = jnp.ones((2, 4))
    fresh, grouped = (
        jax.eval_shape(partial(BatchNorm(groups=g).init, train=True), KEY, two) for g in (1, 3)
    )
    assert fresh == grouped


# --- Devices ----------------------------------------------------------------------------

COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute)[-\w]*\(")


def collectives(text):
    """The shapes that collectives give, [[8], [2, 8], ...]."""
    results = [match[1] for line in text.splitlines() if (match := COLLECTIVE.search(line))]
    shapes = [dims for result in results for dims in re.findall(r"\w\d+\[([\d,]*)\]", result)]
    return [[int(n) for n in dims.split(",") if n] for dims in shapes]


@pytest.mark.slow
def test_what_four_devices_tell_each_other_of_a_training_pass():
    mesh = Mesh(jax.devices()[:4], ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    images = [jnp.ones((8, 32, 16, 3))] * 2
    net = ResNet(depth=10, width=4)
    variables = init.start(partial(net.init, train=True), KEY, images)

    def exchanged(groups, *, statistics):
        def f(variables, images):
            maps, new = net.clone(groups=groups).apply(
                variables, images, train=True, mutable=["batch_stats"]
            )
            return (maps, new) if statistics else maps

        out = (rows, everywhere) if statistics else rows
        jitted = jax.jit(f, in_shardings=(everywhere, rows), out_shardings=out)
        return collectives(jitted.lower(variables, images).compile().as_text())

    assert exchanged(1, statistics=False)  # global statistics are all-reduced
    assert not exchanged(4, statistics=False)
    # A mean and a variance of each normalization, as wide as its channels, and no map.
    found = exchanged(4, statistics=True)
    assert found and all(np.prod(shape) <= 4 * 32 for shape in found)
