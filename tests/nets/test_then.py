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
from vireid_jax.nets.resnet import ResNet, block_names, feature_width, map_size
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


def pictures(size):
    return [jnp.zeros((2, *size, 3))] * 2


class Seen:
    """A hook that notes names and shapes, and passes maps on."""

    def __init__(self):
        self.names, self.shapes = [], {}

    def __call__(self, name, x):
        self.names.append(name)
        self.shapes[name] = x.shape
        return x


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


# --- Three stages -------------------------------------------------------------------------


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


@each(
    "depth, stages, specific, last_stride, size",
    [
        (10, 4, 1, 1, (64, 32)),
        (14, 4, 0, 2, (72, 40)),  # sides that do not divide
        (18, 4, 1, 1, (33, 18)),
        (10, 3, 0, 1, (48, 32)),
        (18, 3, 1, 1, (48, 32)),
        (34, 3, 0, 1, (48, 32)),
        (50, 3, 0, 1, (48, 32)),
    ],
)
def test_the_hook_sees_every_part_once_in_order(depth, stages, specific, last_stride, size):
    """`feature_width` and `map_size` tell what comes; three stages are without layer4 alone."""
    seen = Seen()
    options = dict(depth=depth, width=4, specific=specific, last_stride=last_stride)
    net = ResNet(stages=stages, **options)
    out, variables = abstract(net, pictures(size), then=seen)
    names = ["stem", *(n for s in range(1, stages + 1) for n in block_names(depth, s))]
    assert seen.names == names and seen.shapes[names[-1]] == out.shape
    for name, shape in seen.shapes.items():
        stage = 0 if name == "stem" else int(name[5])
        places = map_size(size, stage, last_stride)
        assert shape == (4, *places, feature_width(depth, 4, stage)), name  # modalities joined
    _, four = abstract(ResNet(**options), pictures(size))
    three, four = ({k: v.shape for k, v in flatten(x).items()} for x in (variables, four))
    assert three == {k: v for k, v in four.items() if stages == 4 or "/layer4" not in k}


@each("stages", [0, 2, 5])
def test_other_numbers_of_stages_are_refused(stages):
    with pytest.raises(ValueError, match=f"stages is {stages}, expected 4, or 3"):
        abstract(ResNet(depth=10, width=4, stages=stages))
