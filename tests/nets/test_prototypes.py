"""Parts of a map by learned prototypes: loops, positions, edges, precision, starts."""

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.reference.case import fill
from tests.support.reference.convert import flatten, nest
from vireid_jax.losses.pairmining import heterogeneity
from vireid_jax.nets.prototypes import POOLED, Prototypes

R = np.random.default_rng(43)
COUNT, F = 4, 6
MAPS = R.normal(size=(3, 4, 2, F)).astype(np.float32)
NETS = {pooled: Prototypes(COUNT, pooled) for pooled in POOLED}
APPLY = {pooled: jax.jit(net.apply) for pooled, net in NETS.items()}
every = pytest.mark.parametrize("pooled", POOLED)

SHAPES = jax.eval_shape(lambda: Prototypes(COUNT).init(jax.random.key(0), MAPS))
PARAMS = nest(fill({k: v.shape for k, v in flatten(SHAPES).items()}, "prototypes"))["params"]


def of(pooled, maps=MAPS, **params):
    return APPLY[pooled]({"params": {**PARAMS, **params}}, maps)


@every
def test_by_loops(pooled):
    """Eqs. (6) to (8), place by place; the map by rows, from above."""
    found = of(pooled)
    assert found.features.shape == (3, COUNT, F) and found.similarity.shape == (3, COUNT, 8)
    for n in range(3):
        for i, p in enumerate(PARAMS["prototypes"]):
            part = np.zeros(F)
            for j in range(8):
                at, e = MAPS[n, j // 2, j % 2], PARAMS["positions"][j]
                logit = p @ (at + e)
                s = 1 / (1 + np.exp(-logit))
                part += s * (at + e if pooled == "positioned" else at) / 8
                np.testing.assert_allclose(found.logits[n, i, j], logit, atol=1e-5)
                np.testing.assert_allclose(found.similarity[n, i, j], s, atol=1e-6)
            np.testing.assert_allclose(found.features[n, i], part, atol=1e-5)


def test_positions_choose_places_and_are_pooled_only_if_told():
    plain, positioned = of("plain"), of("positioned")
    np.testing.assert_array_equal(plain.similarity, positioned.similarity)
    extra = np.einsum("nij,jf->nif", plain.similarity, PARAMS["positions"]) / 8
    np.testing.assert_allclose(positioned.features - plain.features, extra, atol=1e-6)
    assert np.abs(extra).max() > 0.1
    black = of("plain", np.zeros_like(MAPS))
    assert not black.features.any() and np.ptp(np.asarray(black.similarity)) > 0.1


@every
def test_prototypes_in_another_order_give_parts_in_that_order(pooled):
    order = np.array([2, 0, 3, 1])
    moved = of(pooled, prototypes=PARAMS["prototypes"][order])
    for a, b in zip(moved, of(pooled), strict=True):
        np.testing.assert_allclose(a, b[:, order], atol=1e-6)


@every
def test_images_do_not_meet(pooled):
    for a, b in zip(of(pooled, MAPS[::-1]), of(pooled), strict=True):
        np.testing.assert_allclose(a[::-1], b, atol=1e-6)


def test_without_prototypes_or_positions_a_part_is_half_the_average():
    """Every place is half alike; the code's parts start near that."""
    found = of("plain", prototypes=np.zeros_like(PARAMS["prototypes"]))
    expected = np.broadcast_to(MAPS.mean((1, 2))[:, None] / 2, (3, COUNT, F))
    np.testing.assert_allclose(found.features, expected, atol=1e-6)


def test_a_starting_part_is_about_half_the_average():
    maps = np.maximum(R.normal(size=(2, 24, 12, 64)), 0).astype(np.float32)
    net = Prototypes()
    variables = net.lazy_init(jax.random.key(1), jax.ShapeDtypeStruct(maps.shape, jnp.float32))
    for name, count in (("prototypes", 10), ("positions", 288)):
        x = variables["params"][name]
        assert x.shape == (count, 64)
        np.testing.assert_allclose(x.std(), np.sqrt(2 / 64), rtol=0.05)
    parts = jax.jit(net.apply)(variables, maps).features
    ratio = np.asarray(parts) / maps.mean((1, 2))[:, None]
    np.testing.assert_allclose(ratio.mean(), 0.5, atol=0.1)


def slopes(form, prototypes, maps=MAPS):
    """Gradients of the heterogeneity, by the parameters and the maps."""

    @jax.jit
    def gradients(params, maps):
        def loss(params, maps):
            found = NETS["plain"].apply({"params": params}, maps)
            return heterogeneity(found.similarity, found.logits, form=form)

        return jax.grad(loss, (0, 1))(params, maps)

    return jax.tree.leaves(gradients({**PARAMS, "prototypes": prototypes}, maps))


@pytest.mark.parametrize("form", ["code_rms", "cos_min"])
def test_two_equal_prototypes_have_finite_gradients(form):
    """Their maps are the same: a root without care has none but NaN."""
    prototypes = PARAMS["prototypes"].copy()
    prototypes[1] = prototypes[0]
    found = slopes(form, prototypes)
    assert all(np.isfinite(g).all() for g in found) and any(g.any() for g in found)

    def careless(p):
        s = jax.nn.sigmoid(jnp.einsum("mc,nhwc->nmhw", p, MAPS))
        return jnp.sqrt(((s[:, 0] - s[:, 1]) ** 2).mean((1, 2))).mean()

    assert np.isnan(jax.jit(jax.grad(careless))(prototypes)).any()


@pytest.mark.parametrize("form", ["code_rms", "cos_min"])
def test_saturated_similarities_have_finite_gradients(form):
    """All maps are 1 everywhere."""
    ahead = np.ones_like(MAPS)
    prototypes = 1e4 + np.arange(COUNT * F, dtype=np.float32).reshape(COUNT, F)
    assert (of("plain", ahead, prototypes=prototypes).similarity == 1).all()
    assert all(np.isfinite(g).all() for g in slopes(form, prototypes, ahead))


@every
def test_half_precision_is_widened(pooled):
    half = jnp.asarray(MAPS, jnp.bfloat16)
    found = of(pooled, half)
    for a, b in zip(found, of(pooled, half.astype(jnp.float32)), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(found.features, of(pooled).features, atol=0.02)


@every
def test_compiled_is_eager(pooled):
    eager = NETS[pooled].apply({"params": PARAMS}, MAPS)
    for a, b in zip(eager, of(pooled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 3, F), (3, 4, 2, F + 1)])
def test_a_map_of_another_size_is_refused(shape):
    """The table of positions is that of one image size."""
    with pytest.raises(flax.errors.ScopeParamShapeError):
        NETS["plain"].apply({"params": PARAMS}, jnp.zeros(shape))
