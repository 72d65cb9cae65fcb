"""A ResNet's hook between blocks, and a ResNet that ends with layer3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.reference.convert import flatten
from tests.support.rows import each
from vireid_jax.nets.resnet import DEPTHS, ResNet, block_names, feature_width, map_size
from vireid_jax.types import INFRARED, VISIBLE

R = np.random.default_rng(53)
IMAGES = [jnp.asarray(R.normal(size=(2, 32, 16, 3)), jnp.float32) for _ in range(2)]
BOTH = (VISIBLE, INFRARED)
NET = ResNet(depth=10, width=4, specific=1)
VARIABLES = NET.lazy_init(jax.random.key(0), IMAGES, stems=BOTH, train=True)


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


@each("specific", [0, 1])
@each("stages", [3, 4])
@each("depth", [10, 18])
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


@each("train", [True, False])
def test_a_hook_that_returns_its_map_changes_nothing(train):
    def run(then):
        return jax.jit(
            lambda v: NET.apply(
                v, IMAGES, stems=BOTH, train=train, mutable=["batch_stats"], then=then
            )
        )(VARIABLES)

    plain, hooked = run(None), run(lambda name, x: x)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(hooked), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_hook_adds_no_parameters():
    shapes = [flatten(abstract(NET, then=then)[1]) for then in (None, Seen())]
    assert {k: v.shape for k, v in shapes[0].items()} == {k: v.shape for k, v in shapes[1].items()}


def test_the_next_part_takes_what_the_hook_returns():
    """With layer2's map cut all images look alike; what follows layer4 is the result."""

    def run(then):
        apply = jax.jit(lambda v: NET.apply(v, IMAGES, stems=BOTH, train=False, then=then))
        return np.asarray(apply(VARIABLES))

    plain = run(None)
    cut = run(lambda name, x: 0 * x if name == "layer2_0" else x)
    assert np.abs(plain - plain[:1]).max() > 0.01
    np.testing.assert_allclose(cut, np.broadcast_to(cut[:1], cut.shape), atol=1e-6)
    doubled = run(lambda name, x: 2 * x if name == "layer4_0" else x)
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-5)


@each("at", ["stem", "layer3_0", "layer4_0"])
def test_rows_may_multiply_into_runs(at):
    """Each row and two copies of it, of which one is dimmed: copies stay together."""

    def then(name, x):
        if name != at:
            return x
        return jnp.stack([x, x, x / 2], 1).reshape(-1, *x.shape[1:])

    plain, hooked = (
        jax.jit(lambda v, t=t: NET.apply(v, IMAGES, stems=BOTH, train=False, then=t))(VARIABLES)
        for t in (None, then)
    )
    assert hooked.shape == (12, *plain.shape[1:])
    runs = hooked.reshape(4, 3, *plain.shape[1:])
    np.testing.assert_allclose(runs[:, 0], plain, atol=1e-5)
    np.testing.assert_allclose(runs[:, 1], plain, atol=1e-5)
    assert np.abs(runs[:, 2] - plain).max() > 0.01


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
    seen = {}

    def then(name, x):
        seen[name] = x
        return x

    four = NET.apply(VARIABLES, IMAGES, stems=BOTH, train=False, then=then)
    short = ResNet(depth=10, width=4, stages=3, specific=1)
    kept = {
        kind: {k: v for k, v in tree.items() if not k.startswith("layer4")}
        for kind, tree in VARIABLES.items()
    }
    three = short.apply(kept, IMAGES, stems=BOTH, train=False)
    np.testing.assert_array_equal(three, seen["layer3_0"])
    assert three.shape != four.shape


@each("size", [(64, 32), (72, 40), (33, 18)])
@each("depth, last_stride", [(10, 1), (14, 2), (18, 1)])
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
