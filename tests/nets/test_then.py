"""A ResNet's hook between blocks, and a ResNet that ends with layer3."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.plain import plainly
from tests.support.reference.convert import flatten
from tests.support.rows import each
from vireid_jax.nets import init
from vireid_jax.nets.resnet import DEPTHS, ResNet, block_names, feature_width, map_size
from vireid_jax.types import INFRARED, VISIBLE

R = np.random.default_rng(53)
IMAGES = [jnp.asarray(R.normal(size=(2, 32, 16, 3)), jnp.float32) for _ in range(2)]
BOTH = (VISIBLE, INFRARED)
NET = ResNet(depth=10, width=4, specific=1)
VARIABLES = init.start(
    partial(NET.init, stems=BOTH, train=True), jax.random.key(0), [jax.typeof(x) for x in IMAGES]
)


def abstract(net, images=IMAGES, **options):
    """Shapes of variables and of the result: nothing is computed."""
    stems = BOTH if net.specific else None

    def run():
        return net.init_with_output(jax.random.key(0), images, stems=stems, train=True, **options)

    return jax.eval_shape(run)


def pictures(size, modalities=2, count=2):
    return [jnp.zeros((count, *size, 3))] * modalities


class Seen:
    """A hook that notes names and shapes, and passes maps on."""

    def __init__(self):
        self.names, self.shapes = [], {}

    def __call__(self, name, x):
        self.names.append(name)
        self.shapes[name] = x.shape
        return x


def all_names(depth, stages=4):
    return ["stem", *(n for s in range(1, stages + 1) for n in block_names(depth, s))]


@each("depth, stages, specific", [(10, 3, 0), (10, 4, 1), (18, 4, 0), (18, 3, 1)])
def test_the_hook_sees_every_part_once_in_order(depth, stages, specific):
    seen = Seen()
    net = ResNet(depth=depth, width=4, stages=stages, specific=specific)
    out, _ = abstract(net, then=seen)
    assert seen.names == all_names(depth, stages)
    assert seen.shapes[seen.names[-1]] == out.shape
    assert {s[0] for s in seen.shapes.values()} == {4}  # both modalities joined


def test_block_names():
    assert block_names(10, 2) == ["layer2_0"]
    assert block_names(50, 3) == [f"layer3_{k}" for k in range(6)]
    with pytest.raises(ValueError, match="no ResNet of depth 11"):
        block_names(11, 1)


def test_a_hook_that_returns_its_map_changes_nothing():
    def program(train, then):
        return str(
            jax.make_jaxpr(
                lambda v: NET.apply(
                    v, IMAGES, stems=BOTH, train=train, mutable=["batch_stats"], then=then
                )
            )(VARIABLES)
        )

    for train in (True, False):
        assert program(train, None) == program(train, Seen())
    shapes = [flatten(abstract(NET, then=then)[1]) for then in (None, Seen())]
    assert {k: v.shape for k, v in shapes[0].items()} == {k: v.shape for k, v in shapes[1].items()}


def _on(at, change):
    return lambda name, x: change(x) if name == at else x


def _in_runs(x):
    """Each row and two copies of it, of which one is dimmed."""
    return jnp.stack([x, x, x / 2], 1).reshape(-1, *x.shape[1:])


def test_the_next_part_takes_what_the_hook_returns():
    parts = ("stem", "layer3_0", "layer4_0")
    hooks = {
        "plain": Seen(),
        "cut": _on("layer2_0", lambda x: 0 * x),
        "doubled": _on("layer4_0", lambda x: 2 * x),
        **{f"runs {at}": _on(at, _in_runs) for at in parts},
    }

    @jax.jit
    def run(v):
        return {
            name: NET.apply(v, IMAGES, stems=BOTH, train=False, then=then)
            for name, then in hooks.items()
        }

    with plainly():
        found = jax.tree.map(np.asarray, run(VARIABLES))
    plain, cut = found["plain"], found["cut"]
    assert np.abs(plain - plain[:1]).max() > 0.01
    np.testing.assert_allclose(cut, np.broadcast_to(cut[:1], cut.shape), atol=1e-6)
    np.testing.assert_allclose(found["doubled"], 2 * plain, rtol=1e-5)
    for at in parts:  # copies stay together
        assert found[f"runs {at}"].shape == (12, *plain.shape[1:]), at
        runs = found[f"runs {at}"].reshape(4, 3, *plain.shape[1:])
        for copy in (0, 1):
            np.testing.assert_allclose(runs[:, copy], plain, atol=1e-5, err_msg=at)
        assert np.abs(runs[:, 2] - plain).max() > 0.01, at


@each(
    "net, options, message",
    [
        (ResNet(depth=10, width=4, specific=2), {}, "then with specific 2, expected at most 1"),
        (NET, {"generate": lambda maps: maps}, "neither generate"),
        (NET, {"branches": ("", "x")}, "neither generate"),
    ],
)
def test_a_hook_goes_with_nothing_else(net, options, message):
    with pytest.raises(ValueError, match=message):
        abstract(net, then=Seen(), **options)


# --- Three stages -------------------------------------------------------------------------


def test_three_stages_have_no_layer4_and_no_other_parameters_than_four():
    _, three = abstract(ResNet(depth=18, width=4, stages=3, specific=1))
    _, four = abstract(ResNet(depth=18, width=4, specific=1))
    three, four = ({k: v.shape for k, v in flatten(x).items()} for x in (three, four))
    assert three == {k: v for k, v in four.items() if "/layer4" not in k}
    assert len(three) < len(four)


def test_three_stages_are_the_first_three_of_four():
    def run(v):
        maps = {}
        NET.apply(v, IMAGES, stems=BOTH, train=False, then=lambda n, x: maps.setdefault(n, x))
        kept = {
            kind: {k: v for k, v in tree.items() if not k.startswith("layer4")}
            for kind, tree in v.items()
        }
        return maps["layer3_0"], NET.clone(stages=3).apply(kept, IMAGES, stems=BOTH, train=False)

    with plainly():
        expected, three = jax.jit(run)(VARIABLES)
    np.testing.assert_array_equal(three, expected)


@each("depth, last_stride, size", [(10, 1, (64, 32)), (14, 2, (72, 40)), (18, 1, (33, 18))])
def test_sizes_of_maps(depth, last_stride, size):
    """`feature_width` and `map_size` tell what comes, also where a side does not divide."""
    seen = Seen()
    net = ResNet(depth=depth, width=4, last_stride=last_stride)
    abstract(net, pictures(size, 1), then=seen)
    assert seen.shapes["stem"][1:] == (*map_size(size, 0), feature_width(depth, 4, 0))
    for stage in range(1, 5):
        expected = (*map_size(size, stage, last_stride), feature_width(depth, 4, stage))
        for name in block_names(depth, stage):
            assert seen.shapes[name][1:] == expected, (name, expected)


@each("depth", DEPTHS)
def test_three_stages_of_every_depth(depth):
    seen = Seen()
    out, variables = abstract(
        ResNet(depth=depth, width=4, stages=3), pictures((48, 32), 1), then=seen
    )
    assert seen.names == all_names(depth, 3)
    assert out.shape == (2, *map_size((48, 32), 3), feature_width(depth, 4, 3))
    blocks = {k for k in variables["params"] if k != "stem"}
    assert blocks == set(all_names(depth, 3)[1:])


@each("stages", [0, 2, 5])
def test_other_numbers_of_stages_are_refused(stages):
    with pytest.raises(ValueError, match=f"stages is {stages}, expected 4, or 3"):
        abstract(ResNet(depth=10, width=4, stages=stages))
