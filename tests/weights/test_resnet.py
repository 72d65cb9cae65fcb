"""ImageNet weights in the backbone: every array, PyTorch's features, and what does not fit."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.plain import plainly
from tests.support.reference.convert import flatten
from tests.weights import build, trunk
from vireid_jax import weights
from vireid_jax.methods.common import Backbone
from vireid_jax.methods.smcl.method import build as smcl
from vireid_jax.nets.resnet import ResNet
from vireid_jax.types import INFRARED, VISIBLE
from vireid_jax.weights.resnet import fill

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
KEY = jax.random.key(0)
SIZE = (64, 32)


@pytest.fixture(autouse=True, scope="module")
def compiled_plainly():
    with plainly():
        yield


@functools.cache
def abstract(depth, width=64, specific=0):
    """The variables of a backbone alone, as shapes and dtypes."""
    net = ResNet(depth=depth, width=width, specific=specific)
    image = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)

    def init(a, b):
        return net.init(KEY, [a, b], stems=[VISIBLE, INFRARED], train=True)

    variables = jax.eval_shape(init, image, image)
    return {c: {"backbone": tree} for c, tree in variables.items()}


@functools.cache
def forward(depth, width, specific, stem):
    net = ResNet(depth=depth, width=width, specific=specific)
    return jax.jit(lambda v, x: net.apply(v, [x], stems=[stem], train=False).mean((1, 2)))


def features(variables, depth, width, *, specific=0, stem=VISIBLE):
    inner = {c: tree["backbone"] for c, tree in variables.items()}
    return np.asarray(forward(depth, width, specific, stem)(inner, trunk.images(size=SIZE)))


def init_from(path, variables):
    return fill(weights.read(path), variables, source=str(path))


def stored():
    with np.load(FIXTURES / "features.npz") as file:
        return file["features"]


# --- Features ---------------------------------------------------------------------------


def test_stored_features_of_pytorch():
    expected = stored()
    assert np.abs(expected).max() > 0.3 and expected.std() > 0.1
    for name in ("archive.pth", "stream.pth", "checkpoint.pth", "plain.safetensors"):
        variables, report = init_from(FIXTURES / name, abstract(10, 2))
        actual = features(variables, 10, 2)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5, err_msg=name)
        assert len(report.matched) == len(flatten(abstract(10, 2))), name


def test_names_are_the_way_back():
    arrays = weights.read(FIXTURES / "plain.safetensors")
    found = weights.named(fill(arrays, abstract(10, 2))[0])
    other = re.compile(r"fc\.|.*num_batches_tracked")
    assert found.keys() == {name for name in arrays if not other.match(name)}
    for name, x in found.items():
        np.testing.assert_array_equal(x, arrays[name], err_msg=name)
    with pytest.raises(ValueError, match=r"has bn1.bias several times"):
        weights.named(fill(arrays, abstract(10, 2, specific=1))[0])


@pytest.mark.slow
def test_every_stem_gives_the_same_features():
    for specific in (1, 3, 5):
        variables, _ = init_from(FIXTURES / "archive.pth", abstract(10, 2, specific))
        for stem in (VISIBLE, INFRARED):
            actual = features(variables, 10, 2, specific=specific, stem=stem)
            row = f"specific {specific}, stem {stem}"
            np.testing.assert_allclose(actual, stored(), rtol=0, atol=1e-5, err_msg=row)


def test_half_precision_is_near():
    variables, _ = init_from(FIXTURES / "bfloat16.pth", abstract(10, 2))
    difference = np.abs(features(variables, 10, 2) - stored()).max()
    assert 1e-5 < difference < 0.05


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("depth, form", [(18, "safetensors"), (50, "archive")])
def test_features_of_pytorch(tmp_path, depth, form):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    from tests.weights.make_fixtures import features as expected_features
    from tests.weights.make_fixtures import tensors

    arrays = trunk.draw(depth)
    path = tmp_path / f"resnet.{form}"
    if form == "safetensors":
        safetensors.torch.save_file(dict(tensors(arrays)), path)
    else:
        torch.save(tensors(arrays), path)
    variables, report = init_from(path, abstract(depth))
    assert {"fc.weight", "fc.bias"} < set(report.unused)
    expected = expected_features(arrays, depth, 64, trunk.images(size=SIZE))
    assert 0.1 < expected.std() < 10
    np.testing.assert_allclose(features(variables, depth, 64), expected, rtol=0, atol=1e-4)


def test_swapped_arrays_change_the_features(tmp_path):
    """Two arrays of one shape, exchanged in the file: shapes alone would not tell."""
    pairs = [
        ("layer1.0.conv1.weight", "layer1.0.conv2.weight"),
        ("bn1.weight", "bn1.bias"),
        ("layer4.0.bn2.running_mean", "layer4.0.bn1.running_mean"),
        ("layer3.0.bn1.running_var", "layer3.0.downsample.1.running_var"),
    ]
    for a, b in pairs:
        arrays = trunk.draw(10, 2)
        arrays[a], arrays[b] = arrays[b], arrays[a]
        path = tmp_path / "swapped.pth"
        path.write_bytes(build.archive_of(arrays))
        variables, _ = init_from(path, abstract(10, 2))
        assert np.abs(features(variables, 10, 2) - stored()).max() > 1e-3, (a, b)


# --- Trees and the report ---------------------------------------------------------------


def test_every_array_is_placed_once_by_name():
    """Constant arrays, each with its own value: what is where, by an independent renaming."""
    for depth, specific in ((18, 2), (34, 0), (50, 1)):
        row = f"depth {depth}, specific {specific}"
        shapes = trunk.shapes(depth, 2)
        arrays = {k: np.full(s, n + 1, np.float32) for n, (k, s) in enumerate(shapes.items())}
        filled, report = fill(arrays, abstract(depth, 2, specific))
        leaves = flatten(filled)
        used = set()
        for path, x in leaves.items():
            _, _, stage, part, leaf = path.split("/")
            stage = stage.removesuffix("_visible").removesuffix("_infrared")
            stage = "" if stage == "stem" else stage.replace("_", ".") + "."
            torch_leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean",
                          "var": "running_var"}.get(leaf, leaf)  # fmt: skip
            name = f"{stage}{part.replace('_', '.')}.{torch_leaf}"
            used.add(name)
            assert report.matched[path] == name, row
            assert (x == arrays[name].flat[0]).all(), (row, path)
        trunk_names = {k for k in shapes if "num_batches" not in k and not k.startswith("fc.")}
        assert used == trunk_names, row
        assert set(report.unused) == set(shapes) - trunk_names, row
        suffixed = [p for p in leaves if "_visible" in p]
        assert len(suffixed) == len([p for p in leaves if "_infrared" in p]), row
        assert bool(suffixed) == bool(specific), row


def test_kernels_are_transposed():
    arrays = trunk.draw(10, 2)
    filled, _ = fill(arrays, abstract(10, 2))
    kernel = filled["params"]["backbone"]["layer2_0"]["conv1"]["kernel"]
    source = arrays["layer2.0.conv1.weight"]
    for o, i, h, w in np.ndindex(source.shape):
        assert kernel[h, w, i, o] == source[o, i, h, w]


def test_the_report_in_words():
    _, report = init_from(FIXTURES / "archive.pth", abstract(10, 2))
    count = len(flatten(abstract(10, 2)))
    assert str(report) == (
        f"{count}/{count} arrays of the backbone from {FIXTURES / 'archive.pth'}; unused in the "
        "file: fc.weight, fc.bias, 12 num_batches_tracked"
    )


@functools.cache
def method():
    """A small method and what it starts from."""
    backbone = Backbone(depth=10, width=2)
    model = smcl(num_classes=5, image_size=SIZE, steps_per_epoch=1, backbone=backbone)
    return model, model.init(KEY)


def test_a_method_starts_from_the_file():
    model, start = method()
    before = jax.tree.map(np.array, start)
    filled, report = init_from(FIXTURES / "archive.pth", start)
    jax.tree.map(np.testing.assert_array_equal, start, before)  # arguments are not modified
    assert jax.tree.structure(filled) == jax.tree.structure(start)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), filled, start)
    assert all(jax.tree.leaves(same))
    old, new = flatten(start), flatten(filled)
    assert set(report.matched) == {p for p in old if p.split("/")[1] == "backbone"}
    assert set(report.untouched) == set(old) - set(report.matched)
    assert all(new[p] is old[p] for p in report.untouched)
    assert str(report).endswith("not from the file: neck, auxiliary, classifier")
    images = trunk.images(size=SIZE)
    for modality in (VISIBLE, INFRARED):
        pooled = jax.jit(model.embed, static_argnums=2)(filled, images, modality)["pool"]
        np.testing.assert_allclose(pooled, stored(), rtol=0, atol=1e-5)


def test_filling_is_traceable():
    _, start = method()
    shapes = jax.eval_shape(lambda: start)
    filled, report = init_from(FIXTURES / "archive.pth", shapes)
    leaves = flatten(filled)
    assert all(isinstance(leaves[p], np.ndarray) for p in report.matched)
    assert all(isinstance(leaves[p], jax.ShapeDtypeStruct) for p in report.untouched)
    values = jax.jit(lambda v: init_from(FIXTURES / "archive.pth", v)[0])(start)
    assert jax.eval_shape(lambda: values) == shapes
    np.testing.assert_array_equal(
        values["batch_stats"]["backbone"]["stem"]["bn1"]["var"],
        trunk.draw(10, 2)["bn1.running_var"],
    )


def test_the_dtypes_of_the_model_are_kept():
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), abstract(10, 2))
    arrays = {k: v.astype(np.float64) for k, v in trunk.draw(10, 2).items()}
    filled, _ = fill(arrays, like)
    assert {x.dtype for x in jax.tree.leaves(filled)} == {np.dtype(jnp.bfloat16)}
    filled, _ = fill(arrays, abstract(10, 2))
    assert {x.dtype for x in jax.tree.leaves(filled)} == {np.dtype(np.float32)}
    filled["params"]["backbone"]["stem"]["conv1"]["kernel"][:] = 0
    assert arrays["conv1.weight"].all(), "copies: the next model is not changed"


def test_prefixes():
    for prefix in ("module.", "backbone.", "base.", "module.model.encoder_q."):
        arrays = {f"{prefix}{k}": v for k, v in trunk.draw(10, 2).items()}
        arrays["queue"] = np.zeros((2, 2), np.float32)
        with pytest.raises(ValueError, match=r"FILE: queue would stay unused, .*unused=ignore"):
            fill(arrays, abstract(10, 2), source="FILE")
        filled, report = fill(arrays, abstract(10, 2), unused="ignore")
        assert {f"{prefix}fc.weight", "queue"} <= set(report.unused), prefix
        actual = features(filled, 10, 2)
        np.testing.assert_allclose(actual, stored(), rtol=0, atol=1e-5, err_msg=prefix)


# --- What does not fit ------------------------------------------------------------------


def fails(arrays, match, variables=None):
    with pytest.raises(ValueError, match=match):
        fill(arrays, variables or abstract(10, 2), source="FILE")


def test_another_network_is_named():
    fails(
        trunk.draw(34, 2),
        r"FILE holds a ResNet-34 \(3, 4, 6, 3 basic blocks\) of width 2, the model's backbone is a "
        r"ResNet-50 \(3, 4, 6, 3 bottlenecks\) of width 2; take weights of a ResNet-50 .* or "
        r"--config.method.depth=34$",
        abstract(50, 2),
    )
    # There is no ResNet-101 here.
    fails(trunk.draw(101, 2), r"ResNet-101 .*take weights of a ResNet-50[^-]*$", abstract(50, 2))
    fails(trunk.draw(18, 2), "holds a ResNet-18 .* backbone is a ResNet-10")
    fails(trunk.draw(10, 4), "of width 4, .* of width 2; .* or --config.method.width=4$")
    both = r"ResNet-18.*--config.method.depth=18 --config.method.width=4"
    fails(trunk.draw(18, 4), both, abstract(10))


def test_a_deep_stem_is_refused():
    arrays = trunk.draw(10, 2)
    kernel = arrays.pop("conv1.weight")
    arrays |= {f"conv1.{n}.weight": kernel for n in (0, 3, 6)}
    fails(
        arrays,
        r"lacks conv1\.weight \(for .*stem/conv1/kernel\); it has conv1\.0\.weight, .* no place.*"
        "resnet50d",
    )


def test_every_missing_array_is_an_error():
    arrays = trunk.draw(10, 2)
    for name in arrays:
        if name.startswith("fc.") or "num_batches" in name:
            continue
        with pytest.raises(ValueError, match=r"there is no|lacks|holds a ResNet"):
            fill({k: v for k, v in arrays.items() if k != name}, abstract(10, 2))


ZEROS, BAD = functools.partial(np.zeros, dtype=np.float32), np.array([0, np.nan], np.float32)


def test_arrays_that_do_not_fit_are_named():
    for name, array, match in (
        ("layer1.0.se.fc1.weight", ZEROS(2), r"has layer1\.0\.se\.fc1\.weight, .* no place"),
        ("layer1.0.conv1.bias", ZEROS(2), r"has layer1\.0\.conv1\.bias, .* no place"),
        ("conv2.weight", ZEROS(2), r"has conv2\.weight, .* no place"),
        # Gray images, and a wide ResNet's block.
        ("conv1.weight", ZEROS((2, 1, 7, 7)), r"is \[2, 1, 7, 7\], expected \[2, 3, 7, 7\]"),
        (
            "layer2.0.conv1.weight",
            ZEROS((8, 2, 3, 3)),
            r"FILE: layer2\.0\.conv1\.weight is \[8, 2, 3, 3\], expected \[4, 2, 3, 3\] for params",
        ),
        (
            "bn1.weight",
            ZEROS(3),
            r"bn1\.weight is \[3\], expected \[2\] for params/backbone/stem/bn1/scale",
        ),
        ("layer1.0.bn1.bias", BAD, r"layer1\.0\.bn1\.bias has values that are not finite"),
        ("bn1.bias", ZEROS(2) + np.inf, r"bn1\.bias has values that are not finite"),
        ("bn1.running_var", ZEROS(2) - 1, r"bn1\.running_var has negative values"),
        ("bn1.weight", np.array([1, 1]), r"bn1\.weight has the type int64"),
    ):
        fails(trunk.draw(10, 2) | {name: array}, match)


def test_trained_arrays_beside_the_backbone_are_refused_unless_asked_for():
    """A checkpoint of another re-identification: its neck and its attention would be lost."""
    arrays = {f"base.{k}": v for k, v in trunk.draw(10, 2).items()}
    rest = {"neck.weight": ZEROS(16), "attention.0.weight": ZEROS(2), "classifier.0.bias": ZEROS(3)}
    fails(
        arrays | rest,
        r"^FILE: neck\.weight, attention\.0\.weight would stay unused, .*init\.unused=ignore$",
    )
    _, report = fill(arrays | rest, abstract(10, 2), unused="ignore")
    assert set(rest) < set(report.unused)


def test_two_networks_and_none():
    arrays = trunk.draw(10, 2)
    both = {f"{p}.{k}": v for p in ("q", "k") for k, v in arrays.items()}
    fails(both, r"holds 2 ResNets, under the prefixes 'q\.', 'k\.'")
    fails({"embedder.weight": arrays["bn1.bias"]}, r"no layer1.*it has embedder\.weight")
    fails({}, "holds no ResNet")


def test_an_array_of_the_module_that_no_resnet_has():
    variables = jax.tree.map(lambda x: x, abstract(10, 2))
    extra = jax.ShapeDtypeStruct((2,), np.float32)
    variables["params"]["backbone"] = {**variables["params"]["backbone"], "attention": {"w": extra}}
    fails(trunk.draw(10, 2), "lacks params/attention/w", variables)
