"""The forked ResNet of IDKL: its shared branch is a plain ResNet, its specific one a copy."""

from functools import partial

import jax
import numpy as np
import pytest

from tests.support.plain import plainly
from tests.support.reference.convert import flatten
from tests.support.rows import each
from tests.weights import trunk
from vireid_jax import weights
from vireid_jax.methods.common import Backbone
from vireid_jax.methods.idkl.method import build
from vireid_jax.nets import init
from vireid_jax.nets.resnet import ResNet
from vireid_jax.types import SPECIFIC
from vireid_jax.weights.resnet import fill

NET = ResNet(depth=10, width=4)
VISIBLE, INFRARED = np.random.default_rng(8).normal(size=(2, 3, 32, 16, 3)).astype(np.float32)
BOTH = ("", SPECIFIC)
KEY = jax.random.key(0)
IMAGE = jax.ShapeDtypeStruct(VISIBLE.shape, VISIBLE.dtype)
STARTED = init.start(partial(NET.init, train=False, branches=BOTH), KEY, [IMAGE])


def drawn(variables, seed=1):
    """The same tree with other values in every leaf, statistics too: what differs shows."""
    r = np.random.default_rng(seed)

    def draw(path, x):
        x = np.asarray(x)
        if path[-1].key in ("scale", "var"):
            return r.uniform(0.5, 1.5, x.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(x.shape[:-1])) if x.ndim == 4 else 0.2
        return (spread * r.normal(size=x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


VARIABLES = drawn(STARTED)


def part(variables, *, specific):
    """What one branch passes, by the names of a plain ResNet."""

    def chosen(tree):
        tail = {"layer3_0", "layer4_0"}
        common = {k: v for k, v in tree.items() if k.removesuffix(f"_{SPECIFIC}") not in tail}
        suffix = f"_{SPECIFIC}" if specific else ""
        return common | {name: tree[name + suffix] for name in tail}

    return {name: chosen(tree) for name, tree in variables.items()}


@jax.jit
def forked(variables):
    return NET.apply(variables, [VISIBLE, INFRARED], train=False, branches=BOTH)


@jax.jit
def plain(variables):
    return NET.apply(variables, [VISIBLE, INFRARED], train=False)


@pytest.fixture(autouse=True)
def compiled_plainly():
    with plainly():
        yield


def test_each_branch_is_a_plain_resnet_with_its_own_last_stages():
    shared, specific = forked(VARIABLES)
    for maps, is_specific in ((shared, False), (specific, True)):
        assert [x.shape for x in maps] == [(6, 2, 1, 16), (6, 2, 1, 32)]
        expected = plain(part(VARIABLES, specific=is_specific))
        np.testing.assert_allclose(maps[-1], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(shared[-1] - specific[-1]).max() > 0.1
    assert np.abs(shared[0] - specific[0]).max() > 0.1


@pytest.mark.slow
def test_training_uses_and_moves_the_statistics_of_a_plain_resnet():
    def train(variables, **options):
        return NET.apply(
            variables, [VISIBLE, INFRARED], train=True, mutable=["batch_stats"], **options
        )

    (_, specific), updates = jax.jit(partial(train, branches=BOTH))(VARIABLES)
    maps, moved = jax.jit(train)(part(VARIABLES, specific=True))
    np.testing.assert_allclose(specific[-1], maps, rtol=1e-4, atol=1e-4)
    of_branch = flatten(part(updates, specific=True))
    for name, x in flatten(moved).items():
        np.testing.assert_allclose(of_branch[name], x, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_specific_branch_has_parameters_of_its_own():
    names = set(STARTED["params"])
    twice = {f"layer{n}_0" for n in (3, 4)}
    assert names == {"stem", "layer1_0", "layer2_0", *twice, *(f"{n}_{SPECIFIC}" for n in twice)}
    for name in twice:
        ours, theirs = (flatten(STARTED["params"][n]) for n in (name, f"{name}_{SPECIFIC}"))
        assert {k: x.shape for k, x in ours.items()} == {k: x.shape for k, x in theirs.items()}
        assert np.abs(ours["conv1/kernel"] - theirs["conv1/kernel"]).max() > 0.1
    plain = init.start(partial(NET.init, train=False), KEY, [IMAGE])
    for name, x in flatten(plain).items():  # and the shared branch starts as a plain ResNet does
        np.testing.assert_array_equal(x, flatten(STARTED)[name])


@pytest.mark.slow
def test_a_loss_of_one_branch_trains_no_other():
    """The common stages learn from both."""

    @jax.jit
    def gradients(params):
        def loss(params, branch):
            maps = NET.apply({**VARIABLES, "params": params}, [VISIBLE], train=False, branches=BOTH)
            return (maps[branch][-1] ** 2).sum()

        return [jax.grad(loss)(params, branch) for branch in (0, 1)]

    for branch, gradient in enumerate(gradients(VARIABLES["params"])):
        for name, tree in gradient.items():
            own = name.startswith(("layer3", "layer4"))
            sees = not own or name.endswith(SPECIFIC) == bool(branch)
            sizes = {k: np.abs(x).max() for k, x in flatten(tree).items()}
            assert all((size > 0) == sees for size in sizes.values()), (branch, name, sizes)


def test_the_shared_branch_alone_needs_no_other_parameters():
    def embed(variables, branches):
        return NET.apply(variables, [VISIBLE, INFRARED], train=False, branches=branches)

    alone = part(VARIABLES, specific=False)
    ((_, last),) = jax.eval_shape(partial(embed, branches=("",)), alone)
    assert last.shape == (6, 2, 1, 32)
    with pytest.raises(Exception, match=SPECIFIC):
        jax.eval_shape(partial(embed, branches=BOTH), alone)


def test_branches_go_with_no_other_hook_and_no_specific_layer3():
    for specific, options, match in (
        (0, {"generate": lambda maps: maps}, "one of generate, branches and then"),
        (0, {"then": lambda name, x: x}, "one of generate, branches and then"),
        (4, {}, "branches with specific 4, expected at most 3"),
    ):
        net = NET.clone(specific=specific)
        start = partial(net.init, stems=(0,), train=False, branches=BOTH, **options)
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(start, KEY, [IMAGE])


# --- ImageNet weights -------------------------------------------------------------------


def model(depth=10, width=2):
    return build(
        num_classes=5,
        image_size=(32, 16),
        num_ids=2,
        num_instances=2,
        backbone=Backbone(depth=depth, width=width),
    )


@each("depth", [10, 50])
def test_a_file_fills_both_copies_with_the_same_arrays(depth):
    """Every array of the file is in the shared branch once, and of layer3 and 4 in both."""
    variables = jax.eval_shape(model(depth).init, KEY)
    arrays = trunk.draw(depth, 2)
    filled, report = fill(arrays, variables)
    unused = [k for k in report.unused if not k.endswith("num_batches_tracked")]
    assert unused == ["fc.weight", "fc.bias"]
    leaves = flatten(filled)
    copies = [name for name in leaves if f"_{SPECIFIC}/" in name]
    last = [k for k in arrays if k.startswith(("layer3", "layer4")) and "num_batches" not in k]
    assert len(copies) == len(last)
    for name in copies:
        shared = name.replace(f"_{SPECIFIC}", "")
        np.testing.assert_array_equal(leaves[name], leaves[shared], err_msg=name)
        assert leaves[name] is not leaves[shared]
        assert report.matched[name] == report.matched[shared]
    assert {report.matched[name] for name in copies} == set(last)
    kernel = leaves[f"params/backbone/layer4_0_{SPECIFIC}/conv2/kernel"]
    np.testing.assert_array_equal(kernel, arrays["layer4.0.conv2.weight"].transpose(2, 3, 1, 0))
    backbone = {name for name in leaves if name.split("/")[1] == "backbone"}
    assert set(report.matched) == backbone
    assert {name.split("/")[1] for name in report.untouched} >= {"purifier", "neck_sh"}


def test_from_a_file_both_branches_start_as_one_and_embed_as_a_plain_resnet():
    method = model()
    filled, _ = fill(trunk.draw(10, 2), method.init(KEY))
    inner = {name: filled[name]["backbone"] for name in ("params", "batch_stats")}
    net = ResNet(depth=10, width=2)
    shared, specific = jax.jit(lambda v: net.apply(v, [VISIBLE], train=False, branches=BOTH))(inner)
    np.testing.assert_allclose(shared[-1], specific[-1], rtol=1e-5, atol=1e-6)
    maps = jax.jit(lambda v: net.apply(v, [VISIBLE], train=False))(part(inner, specific=False))
    pool = (np.maximum(np.asarray(maps), 1e-6) ** 3).mean((1, 2)) ** (1 / 3)
    embedded = jax.jit(method.embed, static_argnums=2)(filled, VISIBLE, 0)
    np.testing.assert_allclose(embedded["pool"], pool, rtol=1e-4, atol=1e-5)


def test_a_file_of_another_depth_is_refused():
    with pytest.raises(ValueError, match=r"ResNet-18 .* backbone is a ResNet-10"):
        weights.resnet.fill(trunk.draw(18, 2), jax.eval_shape(model().init, KEY))
