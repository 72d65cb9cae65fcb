"""The command that compiles ahead, on fake devices of the CPU, and on a TPU's if libtpu is here."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import agw, idkl, smcl
from launch.ahead import points, programs, roofline
from tests.support.plain import PLAIN, plainly
from vireid_jax.data import datasets
from vireid_jax.types import train_labels

pytestmark = pytest.mark.slow
REPO = pathlib.Path(__file__).resolve().parents[3]
TINY = (
    "--config.data.image_size=(32,16)",
    "--config.method.depth=10",
    "--config.method.width=4",
    "--config.eval.batch_size=6",
)


def _run(*arguments, module="launch.ahead", timeout=300, **env):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=timeout,
        env=env | {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")},
    )


def _tiny(config, ids=4, instances=2):
    config.data.image_size = (32, 16)
    config.method.depth, config.method.width = 10, 4
    config.sampler.num_ids, config.sampler.num_instances = ids, instances
    config.eval.batch_size = 6
    return config


# --- The command ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled_for_eight(tmp_path_factory):
    file = tmp_path_factory.mktemp("ahead") / "deep" / "figures.json"
    run = _run(
        "--config=configs/idkl.py:sysu",
        "--topology=cpu:8",
        *TINY,
        "--config.sampler.num_ids=8",
        "--config.sampler.num_instances=1",
        f"--json={file}",
        **PLAIN,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(file.read_text()), run.stdout


@pytest.fixture(scope="module")
def built():
    """The same step on one device, not compiled."""
    config = _tiny(idkl.get_config("sysu"), 8, 1)
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    return programs.assemble(config, programs.facts(config), mesh)


def test_a_step_of_eight_devices_moves_no_maps(compiled_for_eight, built):
    figures, shown = compiled_for_eight
    assert figures["recipe"] == "idkl-sysu" and figures["classes"] == 395
    step = figures["step"]
    assert (step["chips"], step["rows"], step["num_ids"]) == (8, 8, 8)
    groups = step["collectives"]
    assert not groups["other"]["operations"], groups["other"]["list"]
    # Every parameter's gradient is in the all-reduces.
    size = sum(4 * np.prod(x.shape) for x in jax.tree.leaves(built.state.variables["params"]))
    assert size <= groups["gradients and statistics"]["bytes"] <= 2 * size
    embed = step["embed"]
    assert embed["images"] == 8  # 6 of the recipe, as many as divide
    assert {c["kind"] for c in embed["collectives"]["all"]["list"]} <= {"all-gather", "all-reduce"}
    assert "8 x cpu (cpu:8), batch 8 identities x 1 images" in shown
    assert "no figures for this chip (cpu)" in shown and "seconds" not in step
    assert step["fits"] is None


def test_bytes_and_flops_are_those_of_the_step(compiled_for_eight, built):
    """Arguments: the state on every device, a share of the batch; donated: the state."""
    state = sum(x.dtype.itemsize * np.prod(x.shape) for x in jax.tree.leaves(built.state))
    batch = sum(x.dtype.itemsize * np.prod(x.shape) / 8 for x in jax.tree.leaves(built.batch))
    memory = compiled_for_eight[0]["step"]["memory_bytes"]
    assert memory["arguments"] == pytest.approx(state + batch, rel=0.01)
    assert memory["aliased"] == pytest.approx(state, rel=0.01)
    parts = memory["arguments"] + memory["outputs"] + memory["temporaries"] - memory["aliased"]
    assert memory["peak"] >= parts
    assert compiled_for_eight[0]["step"]["flops_per_chip"] > 0


SMCL = "--config=configs/smcl.py"
WRONG = [
    ((SMCL,), 2, "--topology is missing, as in --topology=v5e:2x2"),
    (("--topology=cpu:2",), 2, "--config is missing"),
    ((SMCL, "--topology=v7:2x2"), 2, "no chip 'v7'; expected v5e, v5p"),
    ((f"{SMCL}:market", "--topology=cpu:2"), 2, "no recipe for the data set"),
    ((SMCL, "--topology=v5e:2x2", "--scaling", "--chips=24"), 2, "no slice of 24 v5e chips"),
    (("--config=configs/no.py", "--topology=cpu:2"), 2, "no recipe 'configs/no.py'; recipes"),
    (
        (SMCL, "--topology=cpu:2", "--largest_batch"),
        2,
        "--largest_batch needs a chip whose memory is known",
    ),
    ((SMCL, "--topology=cpu:2", "--workdir=/tmp/x"), 2, "Unknown command line flag 'workdir'"),
    (
        ("--config=configs/idkl.py:sysu", "--topology=cpu:8"),
        1,
        "a batch of 12 identities x 5 images, 60 rows, does not divide over 8 devices; choose "
        "--config.sampler.num_ids=8 or 16",
    ),
]


def test_what_is_wrong_is_said_in_a_line():
    for arguments, code, message in WRONG:
        run = _run(*arguments)
        assert run.returncode == code, (arguments, run.stderr)
        assert message in run.stderr and run.stderr.startswith("error: "), arguments
        assert "Traceback" not in run.stderr, arguments


def test_the_former_name_of_the_command_works():
    run = _run("--help", module="launch.compile_ahead")
    assert "--topology" in run.stdout and "Compiles a recipe's steps" in run.stdout


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_the_message_says_how_to_get_it():
    with pytest.raises(ValueError) as error:
        programs.find_devices(roofline.parse("v5e:2x4"))
    assert "no description of v5e:2x4" in str(error.value)
    assert "in an environment of its own, pip install 'jax[tpu]'" in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_tpu_that_is_not_here():
    run = _run("--config=configs/smcl.py", "--topology=v5e:2x2", *TINY, "--quick", "--noembed")
    assert run.returncode == 0, run.stderr
    assert "4 x TPU v5 lite (v5e:2x2)" in run.stdout and ": fits" in run.stdout
    assert "collectives, other: none" in run.stdout and "roofline estimate" in run.stdout


CUDA = any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))


@pytest.mark.skipif(CUDA, reason="the compiler for CUDA is here")
def test_without_the_compiler_for_cuda_the_message_says_how_to_get_it():
    with pytest.raises(ValueError, match="pip install --no-deps jax-cuda12-plugin"):
        programs.find_devices(roofline.parse("h100"))


@pytest.mark.skipif(not CUDA, reason="needs jax-cuda12-plugin and jax-cuda12-pjrt")
def test_a_gpu_that_is_not_here():
    run = _run("--config=configs/deen.py", "--topology=h100", *TINY, "--noembed")
    assert run.returncode == 0, run.stderr
    assert "1 x NVIDIA H100 80GB HBM3 (h100)" in run.stdout and ": fits" in run.stdout


# --- Its parts ------------------------------------------------------------------------------


def test_the_facts_are_those_of_the_data():
    """Of the one data set that is here; the builders hold the others to their counts."""
    config = smcl.get_config()
    config.data.train_ids, config.data.test_ids, config.data.image_size = 5, 2, (16, 8)
    config.data.val_ids, config.data.train_visible = 1, 2
    config.sampler.num_ids = 4
    split = datasets.load(**config.data, cache=False)
    label, persons = train_labels(split.train)
    modality = split.train.modality[label >= 0]
    found = programs.facts(config)
    assert found == (len(persons), (modality == 0).sum(), (modality == 1).sum())
    for name, classes in (("sysu", 395), ("regdb", 206), ("llcm", 713)):
        assert programs.facts(smcl.get_config(name)).classes == classes
    held = smcl.get_config("sysu")
    held.data.val_ids = 99
    assert programs.facts(held) == (296, 20284, 9929)


def test_people_that_are_not_known_are_asked_for():
    config = smcl.get_config("folders")
    with pytest.raises(ValueError, match="expected --num_classes=N"):
        programs.facts(config)
    assert programs.facts(config, 70).classes == 70
    assert programs.facts(smcl.get_config("sysu"), 79) == (79, 4452, 2382)
    with pytest.raises(ValueError, match="num_classes is 0, expected at least 1"):
        programs.facts(config, 0)
    with pytest.raises(ValueError, match="num_ids is 4, but folders has 3 people"):
        programs.facts(config, 3)


def test_larger_batches_have_more_people_then_more_images():
    for rows, ids, instances in (
        *((32, 8, 4), (16, 4, 4), (1024, 256, 4), (2048, 256, 8)),
        *((8192, 256, 32), (1200, 300, 4)),
    ):
        found = programs.resized(agw.get_config("sysu"), rows, 395).sampler
        assert (found.num_ids, found.num_instances) == (ids, instances), rows


def test_rows_that_are_no_batch():
    with pytest.raises(ValueError, match=r"18 rows is no multiple of sampler\.num_instances, 4"):
        programs.resized(agw.get_config("sysu"), 18, 395)
    config = _tiny(agw.get_config("sysu"), 3, 2)
    with pytest.raises(ValueError, match=r"6 rows, .* 16 devices; choose .*num_ids=8$"):
        programs.check_rows(config, 16)
    programs.check_rows(config, 3)


def test_the_compiler_says_what_it_would_need():
    hbm = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (32.00G) exceeds available HBM (15.75G)."
    )
    used = "Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm. Exceeded hbm"
    needed = [programs.needed_bytes(text) for text in (hbm, used, "something else")]
    assert needed == [32 << 30, int(512.5 * (1 << 20)), None]


def test_scaling_and_programs_that_are_kept(tmp_path, capsys, monkeypatch):
    """With figures of a chip for the CPU: rows of a chip stay, and nothing is compiled twice."""
    chip = roofline.TPUS["v5e"]._replace(ring=0)
    monkeypatch.setattr(roofline, "chip_of", lambda *_: chip)
    config = _tiny(agw.get_config("sysu"), 2, 2)
    two, four = roofline.parse("cpu:2"), roofline.parse("cpu:4")
    asked = points.Points(config, keep=tmp_path)
    with plainly():
        step = asked.step(two, embed=False)
        found = asked.scaling(two, [two, four])
    assert [(f["chips"], f["num_ids"], f["num_instances"]) for f in found] == [(2, 2, 2), (4, 4, 2)]
    assert len(list(tmp_path.glob("*.json"))) == 2
    seconds = step["seconds"]
    alone = max(seconds["compute"], seconds["memory"])
    assert found[0]["seconds"] == seconds and found[0]["chips"] == step["chips"]
    assert found[0]["efficiency"]["serial"] == alone / seconds["serial"] < 1
    assert found[1]["efficiency"]["overlapped"] <= 1.2
    assert "4 x 2: efficiency" in capsys.readouterr().out

    def compile_again(*_):
        raise AssertionError("this is compiled already")

    monkeypatch.setattr(programs, "_compile", compile_again)
    assert points.Points(config, keep=tmp_path).scaling(two, [four]) == found[1:]
    config.optim.lr = 0.2  # another program
    with pytest.raises(AssertionError, match="compiled already"):
        points.Points(config, keep=tmp_path).step(two, embed=False)


def test_the_largest_batch_with_and_without_remat(monkeypatch, capsys):
    """Of programs whose bytes are known: 1 MB, and 100 kB an identity, half of that with remat."""
    chip = roofline.TPUS["v5e"]._replace(memory=10_000_000)
    monkeypatch.setattr(roofline, "chip_of", lambda *_: chip)
    asked = points.Points(_tiny(agw.get_config("sysu"), 8, 2))

    def compile_for(config, topology, embed):
        assert topology.chips == 1 and not embed
        assert config.sampler.num_instances == 2 and config.devices.fsdp == 1
        each = 50_000 if config.devices.remat else 100_000
        peak = 1_000_000 + each * config.sampler.num_ids
        return {"fits": peak <= chip.memory, "memory_bytes": {"peak": peak}}, []

    monkeypatch.setattr(asked, "_compiled", compile_for)
    found = asked.largest(roofline.parse("cpu:4"))
    assert (found["plain"]["num_ids"], found["remat"]["num_ids"]) == (90, 180)
    assert found["plain"]["rows"] == 180 and 90 < found["plain"]["refused_num_ids"] <= 93
    assert not asked.config.devices.remat and asked.config.sampler.num_ids == 8
    assert "90 identities x 2 images of each modality fit, 360 images" in capsys.readouterr().out
    few = asked.largest(roofline.parse("cpu:4"), tries=1)
    assert len(few["plain"]["tried"]) == 1 and few["plain"]["refused_num_ids"] is None


# --- What is as large for one batch as for another --------------------------------------


@jax.jit
def _inner(kernel, x):
    joined = jnp.concatenate([kernel, kernel], 1)  # [5, 14], of the weights alone
    return x @ joined  # [rows, 14]


def _step(kernel, x):
    def one_row(carry, row):
        return carry, jnp.outer(row, row)  # [5, 5], but of a row

    maps = jax.lax.cond(
        x[0, 0] > 0, lambda: _inner(kernel, x), lambda: jnp.tanh(_inner(kernel, x) * 2)
    )
    scatter = maps.T @ maps  # [14, 14], a statistic
    return scatter.sum() + jax.lax.scan(one_row, 0, x)[1].sum()


def _sizes(*rows):
    kernel = jnp.ones((5, 7))
    return programs.fixed_sizes(*(jax.jit(_step).trace(kernel, jnp.ones((n, 5))) for n in rows))


def test_weights_and_statistics_stay_and_maps_grow():
    found = _sizes(8, 9)
    assert {5 * 14, 14 * 14} <= found
    assert not {8 * 14, 9 * 14, 8 * 5, 9 * 5, 8 * 25, 9 * 25} & found
    assert 25 not in found  # what a loop has of each row is no statistic
    assert 8 * 14 in _sizes(8, 8), "one batch alone tells nothing"


def test_a_larger_batch_divides_as_the_recipes_does():
    config = smcl.get_config("sysu")
    config.sampler.num_ids, config.sampler.num_instances = 6, 4
    config.devices.accumulate = 3
    more = programs.enlarged(config, 4, 395).sampler
    assert more.num_ids * more.num_instances == 24 + 12
    config.sampler.num_ids = 395  # no more people than there are
    more = programs.enlarged(config, 4, 395).sampler
    assert more.num_ids <= 395
    assert more.num_ids * more.num_instances == 395 * 4 + 12
