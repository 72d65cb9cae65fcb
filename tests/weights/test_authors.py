"""Checkpoints of the authors' code: every array accounted for, PyTorch's features, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import agw, deen, idkl, pdm
from tests.support.plain import plainly
from tests.weights import author_files, trunk
from vireid_jax import build, weights
from vireid_jax.weights.authors import LAYOUTS
from vireid_jax.weights.resnet import fill

RECIPES = {  # kind of file: the recipe that scores it
    "agw": (agw, "sysu"),
    "agw_half": (agw, "sysu"),
    "deen": (deen, "llcm"),
    "deen_regdb": (deen, "regdb"),
    "pdm": (pdm, "sysu"),
    "idkl": (idkl, "sysu,official"),
}


@pytest.fixture(autouse=True, scope="module")
def compiled_plainly():
    with plainly():
        yield


@functools.cache
def method(kind, classes=author_files.CLASSES):
    """What the recipe describes, in the size of the files."""
    recipe, arg = RECIPES[kind]
    c = recipe.get_config(arg)
    c.method.width = author_files.WIDTH
    c.method.depth = 18 if kind.startswith("agw") else 10
    if kind == "pdm":
        c.method.num_prototypes = author_files.PARTS
    c.data.image_size = author_files.SIZE
    return build.make_method(c, classes, steps_per_epoch=1)[0]


@functools.cache
def variables(kind, classes=author_files.CLASSES):
    return jax.eval_shape(method(kind, classes).init, jax.random.key(0))


@functools.cache
def arrays(kind):
    return author_files.draw(author_files.shapes(kind))


def agw_kind():
    """Of the two forms of non-local blocks the one that the recipe has."""
    theta = variables("agw")["params"]["attention_layer2_0"]["theta"]["kernel"]
    return "agw" if theta.shape[-1] == 1 else "agw_half"


def kinds():
    return [k for k in author_files.KINDS if not k.startswith("agw")] + [agw_kind()]


def embedded(model, variables):
    """{feature: [2, 3, D]} of both modalities."""
    found = [model.embed(variables, x, m) for m, x in enumerate(author_files.images())]
    return {name: jnp.stack([f[name] for f in found]) for name in found[0]}


SLOW = [
    pytest.param(kind, marks=pytest.mark.slow) for kind in ("deen", "deen_regdb", "pdm", "idkl")
]


@pytest.mark.parametrize("kind", ["agw", *SLOW])
def test_features_are_those_of_the_authors_networks(kind):
    kind = agw_kind() if kind == "agw" else kind
    filled, _ = fill(arrays(kind), variables(kind))
    actual = jax.jit(functools.partial(embedded, method(kind)))(filled)
    for name, expected in author_files.features(kind).items():
        assert expected.std() > 0.05 and np.abs(expected[0] - expected[1]).max() > 0.1
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(actual[name], expected, rtol=0, atol=atol, err_msg=name)


def test_every_array_is_accounted_for():
    idle = {
        "agw": "visible_module.visible.layer thermal_module.thermal.layer base_resnet.base.conv1 "
        "base_resnet.base.bn1 bottleneck.bias",
        "pdm": "bottleneck_s.bias",
        "deen_regdb": "base_resnet.base.layer4",
        "idkl": "backbone.shared_module_fr.model_sh_fr.layer3 bn_neck.bias bn_neck_sp.bias "
        "backbone.shared_module_fr.model_sh_fr.layer4 backbone.shared_module_bh.model_sh_bh.conv1 "
        "backbone.shared_module_bh.model_sh_bh.bn1 backbone.shared_module_bh.model_sh_bh.layer1 "
        "backbone.shared_module_bh.model_sh_bh.layer2 backbone.special.special_module.conv1 "
        "backbone.special.special_module.bn1 backbone.special.special_module.layer1 "
        "backbone.special.special_module.layer2 backbone.special_att backbone.IN.running",
    }
    for kind in kinds():
        starts = idle["idkl"] if kind == "idkl" else idle["agw"] + " " + idle.get(kind, "")
        _, report = fill(arrays(kind), variables(kind), source="FILE")
        assert not report.untouched, kind
        taken = [n for names in report.matched.values() for n in names.split(", ")]
        assert len(taken) == len(set(taken)), kind
        left = [n for n in report.unused if not n.endswith("num_batches_tracked")]
        assert set(left) == set(report.idle), kind
        assert all(n.startswith(tuple(starts.split())) for n in left), kind
        assert all(any(n.startswith(s) for n in left) for s in starts.split()), kind
        assert {*taken, *report.unused} == set(arrays(kind)), kind
        count, total = len(report.matched), len(jax.tree.leaves(variables(kind)))
        assert str(report).startswith(f"{count}/{total} arrays of the model from FILE; "), kind
        assert count == total and f"{len(left)} arrays that its own features do" in str(report)


def test_classifiers_are_taken_unless_the_people_are_others():
    for kind, names in (
        (agw_kind(), {"classifier": "classifier"}),
        ("pdm", {"classifier_global": "classifier", "classifier_full": "classifier_s"}),
        ("idkl", {"classifier_sh": "classifier", "classifier_entropy": "C_sp_f"}),
    ):
        filled, _ = fill(arrays(kind), variables(kind))
        for ours, theirs in names.items():
            kernel = filled["params"][ours]["kernel"]
            np.testing.assert_array_equal(kernel.T, arrays(kind)[f"{theirs}.weight"])
        assert weights.people(arrays(kind)) == author_files.CLASSES
        filled, report = fill(arrays(kind), variables(kind, 5))
        others = {path.split("/")[1] for path in report.untouched}
        assert set(names) <= others and all(n.startswith("classifier") for n in others), kind
        assert "unused in the file: classifier.weight" in str(report)


def test_blocks_of_a_resnet_50_are_counted_as_in_agw():
    layout = next(found for found in LAYOUTS if found.recipe == "agw")
    ours = [f"attention_layer{s}_{b}/w/weight" for s, b in ((2, 2), (2, 3), (3, 3), (3, 4), (3, 5))]
    theirs = [layout.names(name, ours) for name in ours]
    assert theirs == [(f"NL_{n}.W.0.weight",) for n in ("2.0", "2.1", "3.0", "3.1", "3.2")]


def test_names_of_data_parallel():
    kind = "deen"
    prefixed = {f"module.{name}": x for name, x in arrays(kind).items()}
    expected, _ = fill(arrays(kind), variables(kind))
    actual, _ = fill(prefixed, variables(kind))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert weights.people(prefixed) == author_files.CLASSES


def refused(match, kind, changes=(), without=(), like=None, **options):
    found = {n: x for n, x in arrays(kind).items() if n not in without} | dict(changes)
    with pytest.raises(ValueError, match=match):
        fill(found, like or variables(kind), source="FILE", **options)


def test_what_does_not_fit_is_named():
    kind, x = agw_kind(), np.ones(3, np.float32)
    one = {"extra.weight": x}
    refused(r"FILE: extra\.weight would stay unused, .* the network of agw .*=ignore", kind, one)
    _, report = fill(arrays(kind) | one, variables(kind), unused="ignore")
    assert "extra.weight" in report.unused and "unused in the file: extra.weight" in str(report)
    lacks = r"FILE is a checkpoint of the authors' code of agw .*it lacks NL_2\.1\.phi\.weight"
    refused(lacks, kind, without=["NL_2.1.phi.weight"])
    shift = {"bottleneck.bias": arrays(kind)["bottleneck.bias"] + 1}
    refused(r"FILE: bottleneck\.bias is not 0", kind, shift)
    foreign = "code of deen .* nothing like params/backbone/layer3_0_specific/.* recipe deen"
    refused(foreign, "deen", like=variables("idkl"))
    refused("code of pdm .* it lacks MFA", "pdm", [], ["MFA1.CNL.g.weight"])
    refused("ResNet-18 .*depth=18", kind, like=variables("deen"))
    refused("init.unused is 'no'", kind, unused="no")
    other = "agw" if kind == "agw_half" else "agw_half"
    form = "half" if other == "agw_half" else "one"
    inner = rf"NL_2\.0\.theta\.weight has \d inner channels, .* \d; add .*non_local={form}$"
    refused(inner, other)
    refused("code of deen .*lacks MFA3", "deen_regdb", like=variables("deen"))
    refused(r"MFA3\.\S+ .* would stay unused", "deen", like=variables("deen_regdb"))


def test_other_files_are_not_scored_as_they_are():
    with pytest.raises(ValueError, match=r"FILE is no checkpoint of the authors' code .*--workdir"):
        weights.people(trunk.draw(10, 2), source="FILE")


# --- With PyTorch ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.torch
def test_files_of_the_authors_code(tmp_path):
    """As it saves them, with scores beside the weights; and the stored features are PyTorch's."""
    torch = pytest.importorskip("torch")
    from tests.weights.make_fixtures import author_features, author_net

    for kind in author_files.KINDS:
        net = author_net(kind)
        state = net.state_dict()
        if kind != "idkl":
            scores = {"cmc": np.arange(3.0), "mAP": np.float64(0.5), "mINP": 0.1, "epoch": 7}
            state = {"net": state, **scores}
        torch.save(state, tmp_path / "file.t")
        read = weights.read(tmp_path / "file.t")
        assert list(read) == list(net.state_dict()), kind
        for name, x in author_features(net).items():
            expected = author_files.features(kind)[name]
            np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5, err_msg=f"{kind}: {name}")


@pytest.mark.slow
@pytest.mark.torch
def test_idkl_in_training():
    """The specific branch, purifier and heads are of no use in tests, but of training."""
    torch = pytest.importorskip("torch")
    from tests.weights.make_fixtures import author_net
    from vireid_jax.methods.idkl.net import IDKLNet

    net = author_net("idkl").double().train()
    net.backbone["IN"].train()
    images = author_files.images().astype(np.float64)
    rows = images.swapaxes(0, 1).reshape(-1, *author_files.SIZE, 3)  # row 2 b + m
    with torch.no_grad():
        expected = net.trained(torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous())
    filled, _ = fill(arrays("idkl"), variables("idkl"))
    ours = IDKLNet(
        num_classes=author_files.CLASSES,
        backbone_options=dict(depth=10, width=author_files.WIDTH),
        mask="map",
        heads=("sh", "purified"),
        enhance_head="own",
        discriminated="purified",
        reversal=None,
        dropout=0.0,
    )
    with jax.enable_x64():
        wide = jax.tree.map(lambda x: x.astype(np.float64), filled)
        apply = jax.jit(lambda v, *x: ours.apply(v, *x, mutable=["batch_stats"])[0])
        out = apply(wide, *images)
        for name, x in expected.items():
            part, _, key = name.partition("/")
            actual = np.asarray(getattr(out, part)[key] if key else getattr(out, part))
            actual = actual.reshape(len(rows), -1)
            np.testing.assert_allclose(actual, x.numpy(), rtol=1e-8, atol=1e-10, err_msg=name)
