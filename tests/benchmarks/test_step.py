"""The step benchmark compares one model, and the profile of MUN's generator its true parts."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.usefixtures("one_device"),
]

from benchmarks import (  # noqa: E402
    candidates,
    generator,
    step_agw,
    step_deen,
    step_idkl,
    step_mun,
    step_pdm,
    step_smcl,
)
from tests.support.reference.case import fill  # noqa: E402
from tests.support.reference.convert import flatten, nest  # noqa: E402
from vireid_jax.methods.mun import generator as learners  # noqa: E402


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(method="mun"):
    """The settings of `main`, of a network that compiles in seconds."""
    s = candidates.settings(method, "main", 2)
    # Every map of DEEN and PDM has an even number of places.
    size = (64, 32) if method in ("deen", "pdm") else (48, 48)
    small = {"num_instances": 2, "image_size": size, "num_classes": 6}
    facts = {k: small.get(k, v) for k, v in s["facts"].items()}
    options = {**s["method"], "width": 8}
    if method == "pdm":
        options |= {"num_prototypes": 3}
    if "generator_ratios" in options:
        options["generator_ratios"] = (2, 6)
    return {**s, **small, "facts": facts, "method": options}


def test_settings_are_those_of_the_recipes():
    from configs import idkl, mun, pdm, smcl

    paper, recipe = candidates.settings("mun", "paper"), mun.get_config("sysu")
    assert paper["image_size"] == (288, 144) and paper["method"]["depth"] == 50
    assert candidates.settings("mun", "paper", recipe.sampler.num_ids)["facts"]["num_ids"] == 8
    assert paper["optim"]["decay"] == "decoupled" and dict(paper["optim"]["multipliers"])
    main = candidates.settings("mun", "main")
    assert main["num_ids"] == main["facts"]["num_ids"] == mun.get_config().sampler.num_ids
    s = candidates.settings("smcl", "paper")
    assert s["image_size"] == tuple(smcl.get_config("sysu").data.image_size)
    assert s["method"]["metric_from_epoch"] == 0
    s = candidates.settings("idkl", "paper")
    assert s["image_size"] == (384, 128) and s["modalities"] == 2
    assert s["optim"]["weight_decay"] == idkl.get_config("sysu").optim.weight_decay
    assert s["method"]["modality_dropout"] == 0 and s["method"]["confuser"] == "reversal"
    s, recipe = candidates.settings("pdm", "paper"), pdm.get_config("sysu")
    assert s["image_size"] == (384, 192) and s["num_ids"] == s["num_instances"] == 4
    assert s["method"]["dropout"] == 0 < recipe.method.dropout
    assert s["method"]["num_prototypes"] == 10
    assert s["optim"]["nesterov"] and s["optim"]["name"] == "sgd" and s["optim"]["multipliers"]
    agw, deen = (candidates.settings(m, "paper") for m in ("agw", "deen"))
    assert agw["num_ids"] == 8 and agw["image_size"] == (288, 144)
    assert deen["num_ids"] == 6 and deen["image_size"] == (384, 144)
    assert deen["method"]["dropout"] == 0 and agw["optim"] == deen["optim"] == s["optim"]
    recipe.method.mfgm = "paper"  # of the preset "paper", which has no PyTorch step
    with pytest.raises(ValueError, match=r"the config has \{'mfgm': 'paper'\}"):
        candidates.written_options(recipe, step_pdm.WRITTEN)
    config = mun.get_config()
    config.method.bridge = False
    with pytest.raises(ValueError, match=r"the config has \{'bridge': False\}"):
        candidates.written_options(config, step_mun.WRITTEN)


# Changes to the settings: MUN with a memory of prototypes in which new and old ones weigh much and
# rates by parameter, PDM with Nesterov's momentum and rates by parameter, as in its recipes.
SIDES = {
    "mun": {
        "optim": {"multipliers": (("backbone/", 0.1),)},
        "facts": {"num_steps": 5},
        "method": {"ma_weight": 1.0},
    },
    "idkl": {},
    "agw": {},
    "deen": {"optim": candidates.settings("deen", "paper")["optim"]},
    "pdm": {"optim": candidates.settings("pdm", "paper")["optim"]},
}


@pytest.mark.parametrize("method", SIDES)
def test_both_sides_take_the_same_steps(method, monkeypatch):
    monkeypatch.setattr(candidates, "LR", 1e-3 if method in ("deen", "pdm") else 1e-4)
    s = tiny(method)
    for section, values in SIDES[method].items():
        s[section] = s[section] | values
    theirs, _ = candidates.torch_step(s, "channels_last")
    want = [theirs() for _ in range(4)]
    ours, figures = candidates.jax_step(s, "")
    rtol = 1e-3 if method in ("deen", "pdm") else 2e-3
    np.testing.assert_allclose([ours() for _ in range(4)], want, rtol=rtol)
    assert figures["xla_temp_mb"] > 0 and figures["xla_argument_mb"] > 0
    assert want[3] < want[0] * (1 if method == "idkl" else 0.99)


def double_loss(module, s):
    """The loss of a PyTorch step in float64, its model, and the batch."""
    from tests.support.reference import running
    from vireid_jax.data.augment import standardize

    kept = []

    def prepare(model):
        kept.append(model.double().train())
        return kept[0]

    _, loss = module.torch_training(s, prepare, 0.0)
    batch = candidates.batch_of(s)
    images = [running.images(np.asarray(standardize(batch[k]))) for k in ("visible", "infrared")]
    return loss, kept[0], images, torch.tensor(batch["label"], dtype=torch.int64)


def batch_of(images, labels):
    return {"visible": images[0], "infrared": images[1], "label": labels}


def test_the_torch_step_of_smcl_has_the_loss_of_the_reference():
    s = tiny("smcl")
    s["method"]["metric_weight"] = 2.0
    loss, model, images, labels = double_loss(step_smcl, s)
    want = model.total(model.terms(batch_of(images, labels), 0), 0)
    assert float(loss(*images, labels).detach()) == pytest.approx(float(want.detach()), rel=1e-9)


@pytest.mark.parametrize("scale", ["none", "mean"])
def test_the_torch_step_of_idkl_has_the_loss_of_the_reference(scale):
    s = tiny("idkl")
    s["method"]["tgsa_scale"] = scale
    loss, model, images, labels = double_loss(step_idkl, s)
    want = model.total(model.terms(batch_of(images, labels), 0), 0)
    assert float(loss(*images, labels).detach()) == pytest.approx(float(want.detach()), rel=1e-9)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_torch_step_of_pdm_has_the_loss_of_the_reference(normalize):
    """Whole-array forms against loops over images, prototypes and identities."""
    s = tiny("pdm")
    s["method"]["normalize"] = normalize
    s["method"]["ort_weight"] = 1.0
    loss, model, images, labels = double_loss(step_pdm, s)
    terms = model.terms(batch_of(images, labels), 0)
    assert set(terms) == {"id_global", "id_full", "tri", "cpm", "ch", "dcs", "ort"}
    assert all(abs(float(v.detach())) > 0.01 for v in terms.values())
    got, want = loss(*images, labels), model.total(terms, 0)
    assert float(got.detach()) == pytest.approx(float(want.detach()), rel=1e-9)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("method", ["agw", "deen"])
def test_the_torch_steps_of_agw_and_deen_have_the_loss_of_the_reference(method, normalize):
    s = tiny(method)
    s["method"]["normalize"] = normalize
    if method == "deen":
        s["method"]["ort_weight"] = 1.0
    module = {"agw": step_agw, "deen": step_deen}[method]
    loss, model, images, labels = double_loss(module, s)
    terms = model.terms(batch_of(images, labels), 0)
    assert set(terms) == {"agw": {"id", "tri"}, "deen": {"id", "tri", "cpm", "ort"}}[method]
    assert all(abs(float(v.detach())) > 0.01 for v in terms.values())
    got, want = loss(*images, labels), model.total(terms, 0)
    # AGW's images are positives of themselves, at a distance that the reference keeps above 0.
    rel = 1e-6 if method == "agw" else 1e-9
    assert float(got.detach()) == pytest.approx(float(want.detach()), rel=rel)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_torch_step_of_mun_has_the_loss_of_the_reference(normalize):
    """Whole-array losses against loops over identities, at the first step and at later ones."""
    s = tiny()
    s["method"] |= {"ma_weight": 1.0, "ia_weight": 2.0, "specific": 2}
    s["method"] |= {"normalize": normalize}
    s["facts"]["num_steps"] = 5
    loss, model, images, labels = double_loss(step_mun, s)
    for at in range(3):
        terms = model.terms(batch_of(images, labels), at)
        assert set(terms) == {"id_visible", "id_infrared", "tri", "idc", "ia", "ma"}
        assert all(float(v.detach()) > 0 for v in terms.values())
        got, want = loss(*images, labels), model.total(terms, at)
        assert float(got.detach()) == pytest.approx(float(want.detach()), rel=1e-9)
        with torch.no_grad():  # other weights, so that the past of the prototypes counts
            for p in model.parameters():
                p.mul_(0.9)


# --- The generator's profile ------------------------------------------------------------


def test_a_transposed_convolution_is_the_matrix_product():
    r = np.random.default_rng(0)
    x = r.standard_normal((2, 3, 2, 4), np.float32)
    kernel = r.standard_normal((2, 3, 4, 5), np.float32)
    got = generator.by_convolution(x, kernel)
    assert got.shape == (2, 6, 6, 5)
    np.testing.assert_allclose(got, learners.expand(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def found():
    return generator.parts(tiny(), 4)


def test_the_parts_make_up_the_network(found):
    """First and shared stages, with a simple generator between them, are the trunk."""
    first, shared = found["first"], found["shared"]
    shapes, images = generator.abstract(first)
    variables = nest(fill({k: v.shape for k, v in flatten(shapes).items()}, "parts"))
    r = np.random.default_rng(0)
    images = [r.standard_normal(x.shape, np.float32) for x in images]

    @jax.jit
    def both(variables, images):
        maps = first.run(variables, images)
        third = maps[0] - maps[1]
        apart = shared.run(variables, [*maps, third])[0]
        whole, _ = generator.trunk(tiny()).apply(
            variables,
            images,
            stems=[0, 1],
            train=True,
            generate=lambda maps: [*maps, maps[0] - maps[1]],
            mutable=["batch_stats"],
        )
        return maps, apart, whole

    maps, apart, whole = both(variables, images)
    assert [x.shape for x in maps] == found["generator"].maps == shared.maps[:2]
    np.testing.assert_allclose(apart, whole, rtol=1e-4, atol=1e-5)
    assert not np.allclose(apart[0::3], apart[2::3], rtol=0.1)


def test_the_forms_of_the_cross_modality_learner_agree_and_fold_into_less_memory(found):
    rows = {k: generator.measure(found[k], 1) for k in ("convolution", "product", "folded")}
    value = rows["product"]["value"]
    assert rows["convolution"]["value"] == pytest.approx(value, rel=1e-4)
    assert rows["folded"]["value"] == pytest.approx(value, rel=1e-4)
    assert len(rows["folded"]["wall_s"]) == 1
    kept = {k: r["kept_mb"] for k, r in rows.items()}
    _, height, width, channels = found["folded"].maps[0]
    of_all = 4 * height * width * 4 * channels * 4 / 2**20  # the 2nF channels that are normalized
    assert kept["product"] > of_all
    assert kept["convolution"] > of_all
    # Kernels are small beside maps at the real size, not here: only how it grows tells.
    grown = {k: generator.kept_bytes(generator.parts(tiny(), 8)[k]) / 2**20 - kept[k] for k in kept}
    assert min(grown["product"], grown["convolution"]) >= of_all
    assert grown["product"] > 4 * grown["folded"] > 0


def test_rematerialization_keeps_less(found):
    plain, remat = (generator.kept_bytes(found[k]) for k in ("generator", "remat"))
    assert remat < plain / 3


def test_kept_bytes_are_those_of_intermediate_arrays():
    def run(variables, maps):
        return [jax.numpy.exp(maps[0] @ variables["params"]["w"])]

    part = generator.Part(
        "exp", lambda: {"params": {"w": np.zeros((5, 7), np.float32)}}, run, [(3, 5)]
    )
    assert generator.kept_bytes(part) == 4 * 3 * 7  # the exponential, not maps and weights
    assert generator.kept_bytes(part._replace(of_maps=False)) == 4 * 3 * 7


def test_the_tables_say_what_was_measured():
    seconds = {"first": 2.0, "generator": 1.0, "shared": 5.0, "folded": 0.4}
    times = {
        k: {"part": k, "pairs": 4, "median_wall_s": v, "median_cpu_s": 2 * v}
        for k, v in seconds.items()
    }
    text = generator.time_table(times)
    assert "| generator | 1.00 | 2.00 | 250 | 12 % |" in text
    assert "| folded | 0.40 | 0.80 | 100 | 5 % |" in text
    rows = [
        {"part": "generator", "pairs": 4, "kept_mb": 40.0, "temp_mb": 90.0},
        {"part": "step", "pairs": 4, "temp_mb": 70.4},
    ]
    text = generator.memory_table(rows)
    assert "| generator | 40 | 10.0 | 90 |" in text
    assert "| step |  |  | 70 |" in text
    assert json.loads(json.dumps(times)) == times
