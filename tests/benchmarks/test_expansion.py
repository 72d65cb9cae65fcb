"""The profile of PDM's network measures parts that make it up, and forms of the same numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import candidates, expansion, generator
from benchmarks.expansion import FORMS, NETWORK
from tests.support.reference.case import fill
from tests.support.reference.convert import flatten, nest

PAIRS = 4

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


def tiny():
    """The settings of `main`, of a network that compiles in seconds."""
    s = candidates.settings("pdm", "main", 2)
    small = {"num_instances": 2, "image_size": (64, 32), "num_classes": 6}
    facts = {k: small.get(k, v) for k, v in s["facts"].items()}
    options = {**s["method"], "width": 8, "num_prototypes": 3}
    return {**s, **small, "facts": facts, "method": options}


@pytest.fixture(scope="module")
def found():
    return expansion.parts(tiny(), PAIRS)


def variables_of(part):
    """Seeded weights; those of a layer are the same in every part that has it."""
    shapes = {k: v.shape for k, v in flatten(generator.abstract(part)[0]).items()}
    return {"params": {}, **nest(fill(shapes, "parts"))}


def test_there_is_a_part_for_everything_that_is_measured(found):
    assert set(NETWORK) <= set(found)
    assert set(FORMS) | set(FORMS.values()) <= set(found)
    names = [part.name for part in found.values()]
    assert len(set(names)) == len(names)
    for key in ("stems", "whole"):  # images need no gradient
        assert not found[key].of_maps
    assert all(part.of_maps for key, part in found.items() if key not in ("stems", "whole"))


def test_the_parts_share_out_the_weights_of_the_network(found):
    whole = set(flatten(generator.abstract(found["whole"])[0]))
    own = [set(flatten(generator.abstract(found[k])[0])) for k in NETWORK]
    assert set().union(*own) == whole
    assert sum(map(len, own)) == len(whole)  # none in two parts


def test_one_after_the_other_the_parts_are_the_training_pass(found):
    r = np.random.default_rng(0)
    images = [r.standard_normal(shape, np.float32) for shape in found["stems"].maps]

    @jax.jit
    def both(variables, images):
        def run(key, *maps):
            assert [x.shape for x in maps] == found[key].maps
            return found[key].run(variables[key], list(maps))

        (x,) = run("stems", *images)
        for n in (1, 2, 3):
            low = x
            (x,) = run(f"layer{n}", x)
            (x,) = run(f"mfa{n}", x, low)
        (rows,) = run("mfgm", x)
        (maps,) = run("layer4", rows.reshape(-1, *rows.shape[2:]))
        features, similarity = run("plm", maps)
        pool = maps.mean((1, 2))
        full = jnp.concatenate([features.reshape(len(pool), -1), pool], 1)
        # Logits are of no account for L_ch in the code's form.
        given = [x.reshape(PAIRS, -1, *x.shape[1:]) for x in (pool, full, similarity, similarity)]
        return run("heads", *given)[0], found["whole"].run(variables["whole"], images)[0]

    variables = {key: variables_of(found[key]) for key in (*NETWORK, "whole")}
    apart, whole = both(variables, images)
    assert float(apart) == pytest.approx(float(whole), rel=1e-5)
    assert float(whole) > 1


def test_the_pieces_of_the_generation_make_it_up(found):
    variables = variables_of(found["mfgm"])
    params = variables["params"]["expansion"]
    r = np.random.default_rng(0)
    x = r.standard_normal(found["mfgm"].maps[0], np.float32)

    pieces = {k: set(generator.abstract(found[k])[0]["params"]) for k in ("dilated", "cbam")}
    assert pieces["dilated"] | pieces["cbam"] | {"expand_kernel", "expand_bias"} == set(params)

    own = {k: {"params": {name: params[name] for name in names}} for k, names in pieces.items()}

    @jax.jit
    def both(x):
        (convolved,) = found["dilated"].run(own["dilated"], [x])
        y = (convolved / 3).reshape(found["cbam"].maps[0])
        (y,) = found["cbam"].run(own["cbam"], [y])
        made = jnp.einsum("nhwgc,gcd->nghwd", jnp.maximum(y, 0), params["expand_kernel"])
        made += params["expand_bias"][None, :, None, None]
        return made, found["mfgm"].run(variables, [x])[0]

    made, want = both(x)
    np.testing.assert_allclose(want[:, 0], x)
    np.testing.assert_allclose(want[:, 1:], made, rtol=1e-4, atol=1e-5)
    assert not np.allclose(made[:, 0], made[:, 1], rtol=0.1)


def test_the_forms_agree_and_the_measurement_notices_when_not(found):
    keys = ("mfa1", "mfa1_energies", "mfgm", "mfgm_listed", "spatial_dense", "spatial_convolution")
    rows = expansion.measure({k: found[k] for k in keys}, 2)
    for one, other in (keys[:2], keys[2:4], keys[4:]):
        assert rows[one]["value"] == pytest.approx(rows[other]["value"], rel=1e-4)
        assert len(rows[one]["wall_s"]) == len(rows[other]["cpu_s"]) == 2
    assert rows["mfa1"]["temp_mb"] > 0
    assert json.loads(json.dumps(rows)) == rows
    with pytest.raises(RuntimeError, match="'mfa1' and 'MFGM' are not one thing"):
        expansion.check_same(rows["mfa1"], rows["mfgm"])


def test_energies_first_keep_a_matrix_of_places_for_every_image(found):
    plain, energies = (generator.kept_bytes(found[k]) for k in ("mfa1", "mfa1_energies"))
    images, height, width, _ = found["mfa1"].maps[0]
    matrix = 4 * images * (height * width // 2) ** 2
    assert energies - plain > 0.9 * matrix


def test_the_dropout_drops(found):
    x = np.ones(found["dropout"].maps[0], np.float32)
    (y,) = found["dropout"].run({"params": {}}, [x])
    share = float((np.asarray(y) == 0).mean())
    assert 0.005 < share < 0.02


def test_identities_of_a_number_of_pairs():
    s = {"num_instances": 4}
    for pairs, want in ((2, 2), (3, 3), (4, 2), (6, 2), (7, 7), (8, 2), (16, 4), (32, 8)):
        assert expansion.identities(s, pairs) == want, pairs
    with pytest.raises(ValueError, match="1 pairs of images, expected 2 or more"):
        expansion.identities(s, 1)


def test_a_value_that_is_not_finite_is_refused(found):
    part = found["spatial_dense"]._replace(run=lambda variables, maps: [maps[0] / 0.0])
    with pytest.raises(RuntimeError, match=r"dense' is (nan|inf)"):
        expansion.measure({"spatial_dense": part}, 1)


def test_the_tables_say_what_was_measured():
    def row(name, wall, temp):
        return {"part": name, "median_wall_s": wall, "median_cpu_s": 2 * wall, "temp_mb": temp}

    rows = {k: row(k, 1.0, 10.0) for k in NETWORK}
    rows["layer4"] = row("layer4", 10.0, 70.4)
    rows["mfgm_listed"] = row("MFGM, a list", 4.0, 5.0)
    rows["dropout"] = row("dropout", 0.2, 1.0)
    text = expansion.time_table(rows, 8)
    assert "| layer4 | 10.000 | 20.000 | 1250.0 | 50 % | 70 |" in text
    assert "| sum | 20.000 | 40.000 | 2500.0 | 100 % |  |" in text
    assert "| dropout | 0.200 | 0.400 | 25.0 | 1 % | 1 |" in text
    assert "a list" not in text
    assert text.index("| heads") < text.index("| sum") < text.index("| dropout")
    text = expansion.form_table(rows)
    assert "| mfgm | MFGM, a list | 1.000 | 4.000 | 0.25 | 0.25 | 10.0 | 5.0 | 2.00 |" in text
    assert text.count("\n") == 2
    del rows["layer4"]
    assert "%" not in expansion.time_table(rows, 8)
