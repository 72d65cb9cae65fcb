"""Checkpoints: exact, kept as promised, and never silently wrong."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vireid_jax.runtime import checkpoint
from vireid_jax.runtime.checkpoint import Checkpoints, restore_variables

REPO = pathlib.Path(__file__).resolve().parents[2]
P = jax.sharding.PartitionSpec


class State(NamedTuple):
    step: jax.Array
    variables: dict
    optimizer: tuple


def sharding(devices=4, spec=P()):  # noqa: B008
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
    return jax.sharding.NamedSharding(mesh, spec)


def make_state(seed=0, *, classes=6, where=None):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((8, classes)).astype(np.float32)
    kernel[0, :3] = [np.nan, -0.0, np.inf]  # bits, not values, must come back
    params = {
        "conv": {"kernel": rng.standard_normal((3, 3, 2, 4)).astype(np.float32)},
        "classifier": {"kernel": kernel},
    }
    variables = {
        "params": params,
        "batch_stats": {"mean": jnp.asarray(rng.standard_normal(4), jnp.bfloat16)},
        "memory": {"seen": rng.random(5) > 0.5, "count": np.int32(seed)},
    }
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params)
    return jax.device_put(State(np.int32(seed), variables, optimizer), where or sharding())


def abstract(state, where=None):
    where = where or sharding()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state)


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        x.dtype == y.dtype and np.array(x).tobytes() == np.array(y).tobytes() for x, y in pairs
    )


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def make(tmp_path):
    opened = []

    def open_(directory=None, **options):
        opened.append(Checkpoints(directory or tmp_path / "ckpt", **options))
        return opened[-1]

    yield open_
    for checkpoints in opened:
        checkpoints.close()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two") / "ckpt"
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, make_state(1), metrics={"mAP": 0.5})
    checkpoints.save(2, make_state(2), metrics={"mAP": 0.4})
    checkpoints.close()
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    """A copy of it, to break."""
    return shutil.copytree(two_steps, tmp_path / "ckpt")


def test_a_save_compiles_nothing(tmp_path):
    """Training waits for it, and the first save may be the one after a SIGTERM."""
    where = sharding()
    arrays = {f"{n}": jax.device_put(np.zeros((4, n), np.float32), where) for n in range(41, 61)}
    compiled = []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(event)

    checkpoints = Checkpoints(tmp_path)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        checkpoints.save(1, {"variables": arrays}, wait=True)
        assert not compiled
        jax.jit(lambda x: x * 7 + 41)(np.zeros(41)).block_until_ready()
        assert compiled, "or the test hears nothing"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        checkpoints.close()


def test_round_trip_is_exact_and_survives_donation(make):
    state = make_state(3)
    kept = jax.tree.map(np.array, state)
    checkpoints = make()
    assert checkpoints.latest() is None and checkpoints.restore(abstract(state)) is None
    assert checkpoints.save(7, state)
    # The next step overwrites the buffers while the save goes on in the background.
    overwrite = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
    jax.block_until_ready(overwrite(state))
    restored, step = checkpoints.restore(abstract(kept))
    assert step == 7 and isinstance(restored, State)
    assert same_bits(restored, kept)
    assert all(x.sharding == sharding() for x in jax.tree.leaves(restored))


def test_restores_on_other_devices(make, tmp_path):
    tree = {"variables": {"params": {"w": np.arange(64, dtype=np.float32).reshape(8, 8)}}}
    places = ((4, P()), (1, P())), ((1, P()), (4, P("data"))), ((4, P("data")), (2, P()))
    for n, (save_on, restore_on) in enumerate(places):
        state = jax.device_put(tree, sharding(*save_on))
        checkpoints = make(tmp_path / str(n))
        checkpoints.save(1, state, wait=True)
        where = sharding(*restore_on)
        restored, _ = checkpoints.restore(abstract(state, where))
        assert same_bits(restored, tree), n
        assert jax.tree.leaves(restored)[0].sharding == where, n


def test_keeps_the_newest_and_the_best(make):
    scores = {1: 0.3, 2: 0.9, 3: None, 4: float("nan"), 5: 0.9, 6: 0.1, 7: 0.2}
    checkpoints = make(keep=2)
    kept = {}
    for step, score in scores.items():
        if step == 4:  # as a resumed run would
            checkpoints.close()
            checkpoints = make(keep=2)
        metrics = None if score is None else {"R1": 0.5, "mAP": score}
        checkpoints.save(step, make_state(step), metrics=metrics, wait=True)
        on_disk = sorted(int(p.name) for p in checkpoints.directory.iterdir() if p.name.isdigit())
        assert on_disk == checkpoints.steps()
        kept[step] = on_disk
    assert kept == {
        1: [1],
        2: [1, 2],
        3: [2, 3],
        4: [2, 3, 4],
        5: [4, 5],  # of equal scores the later one is the best
        6: [5, 6],
        7: [5, 6, 7],
    }
    assert checkpoints.latest() == 7 and checkpoints.best() == 5
    assert checkpoints.metrics(3) is None and checkpoints.metrics(6) == {"R1": 0.5, "mAP": 0.1}


def test_a_later_score_does_not_rewrite_the_step(make):
    checkpoints = make()
    checkpoints.save(1, make_state(1), wait=True)
    before = snapshot(checkpoints.directory / "1")
    assert not checkpoints.save(1, make_state(99), metrics={"mAP": 0.7})
    assert snapshot(checkpoints.directory / "1") == before
    assert checkpoints.best() == 1 and make().best() == 1
    assert same_bits(checkpoints.restore(abstract(make_state()))[0], make_state(1))


def test_refuses_what_cannot_be_meant(make):
    with pytest.raises(ValueError, match="keep is 0"):
        make(keep=0)
    checkpoints = make()
    with pytest.raises(ValueError, match=r"no top-level 'variables'.*\['params'\]"):
        checkpoints.save(1, {"params": jnp.zeros(2)})
    checkpoints.save(5, make_state(5))
    with pytest.raises(ValueError, match="step 3 is older than the newest checkpoint, 5"):
        checkpoints.save(3, make_state(3))
    assert checkpoints.steps() == [5]


def test_another_model_is_an_error_not_damage(two_steps, make):
    before = snapshot(two_steps)
    target = abstract(make_state(classes=9))
    with pytest.raises(ValueError) as error:
        make(two_steps).restore(target)
    assert (
        "variables/params/classifier/kernel: float32 [8, 6] in the checkpoint, "
        "float32 [8, 9] in this run" in str(error.value)
    )
    target = abstract(make_state())
    del target.variables["memory"]["count"]
    target.variables["params"]["neck"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(ValueError, match="2 of") as error:
        make(two_steps).restore(target)
    assert "memory/count: int32 [] in the checkpoint, absent in this run" in str(error.value)
    assert "params/neck: absent in the checkpoint, float32 [4] in this run" in str(error.value)
    assert not isinstance(error.value, checkpoint.DamageError)
    assert snapshot(two_steps) == before


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "delete": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
    "truncate": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    "flip one bit": flip,
}


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in DAMAGE if kind != "flip one bit"]


@pytest.mark.parametrize("kind", ["flip one bit", *SLOW])
def test_damage_to_any_file_is_harmless_or_found(two_steps, tmp_path, kind, caplog):
    names = [p.relative_to(two_steps) for p in sorted((two_steps / "2").rglob("*")) if p.is_file()]
    assert len(names) > 15
    set_aside = []
    for n, name in enumerate(names):
        folder = shutil.copytree(two_steps, tmp_path / str(n))
        DAMAGE[kind](folder / name)
        damaged = snapshot(folder / "2")
        caplog.clear()
        checkpoints = Checkpoints(folder)
        restored, step = checkpoints.restore(abstract(make_state()))
        assert same_bits(restored, make_state(step)), name
        if step == 2:
            continue  # a file that the numbers do not depend on
        set_aside.append(name)
        assert step == 1 and checkpoints.steps() == [1] and checkpoints.best() == 1
        assert "checkpoint 2 is damaged" in caplog.text and "trying step 1" in caplog.text
        assert snapshot(folder / "damaged" / "2") == damaged, "moved, not changed"
    assert len(set_aside) >= 5, "arrays, their index and the manifest are all needed"
    # Training comes by step 2 again.
    checkpoints = Checkpoints(tmp_path / str(names.index(set_aside[-1])))
    checkpoints.save(2, make_state(2), wait=True)
    assert same_bits(checkpoints.restore(abstract(make_state()))[0], make_state(2))


def test_wrong_numbers_in_sound_files_are_found(folder, caplog):
    # Orbax has no objection to a step that holds another step's arrays.
    shutil.rmtree(folder / "2/variables")
    shutil.copytree(folder / "1/variables", folder / "2/variables")
    restored, step = Checkpoints(folder).restore(abstract(make_state()))
    assert step == 1 and same_bits(restored, make_state(1))
    assert "checksum" in caplog.text


def test_a_step_under_another_number_is_not_believed(folder, caplog):
    (folder / "2").rename(folder / "3")
    shutil.copytree(folder / "1", folder / "4")
    for step, held in {3: 2, 4: 1}.items():
        with pytest.raises(ValueError, match=f"/{step} holds the checkpoint of step {held}, under"):
            restore_variables(folder, abstract(make_state().variables), step)
    restored, step = Checkpoints(folder).restore(abstract(make_state()))
    assert step == 1 and same_bits(restored, make_state(1))
    assert caplog.text.count("under another name") == 2
    assert sorted(p.name for p in (folder / "damaged").iterdir()) == ["3", "4"]


def test_another_model_is_refused_before_anything_is_written(folder):
    before = snapshot(folder)
    checkpoint.check_newest(folder, abstract(make_state()))
    checkpoint.check_newest(folder / "none", abstract(make_state(classes=9)))
    with pytest.raises(ValueError, match="saved by another model"):
        checkpoint.check_newest(folder, abstract(make_state(classes=9)))
    assert snapshot(folder) == before
    for step in "21":  # what cannot be read is found at the restore
        flip(folder / step / "manifest/metadata")
        if step == "2":
            with pytest.raises(ValueError, match="/1 was saved by another model"):
                checkpoint.check_newest(folder, abstract(make_state(classes=9)))
    checkpoint.check_newest(folder, abstract(make_state(classes=9)))


def test_all_steps_damaged(folder, make, caplog):
    for step in "12":
        DAMAGE["truncate"](folder / step / "manifest/metadata")
    with pytest.raises(ValueError, match="manifest/metadata"):
        restore_variables(folder, abstract(make_state().variables), 2)
    assert (folder / "2").exists(), "a step asked for is not moved"
    assert make(folder).restore(abstract(make_state())) is None
    assert "no other is left" in caplog.text
    checkpoints = make(folder)
    checkpoints.save(2, make_state(2), wait=True)
    DAMAGE["delete"](folder / "2/manifest/metadata")
    assert checkpoints.restore(abstract(make_state())) is None
    assert sorted(p.name for p in (folder / "damaged").iterdir()) == ["1", "2", "2-2"]


def test_damaged_scores_lose_only_the_best(folder, make, caplog):
    (folder / "scores.json").write_text('{"1": {"mAP"')
    checkpoints = make()
    assert "earlier scores are not known" in caplog.text
    assert checkpoints.best() is None and checkpoints.steps() == [1, 2]
    assert checkpoints.restore(abstract(make_state()))[1] == 2


def test_variables_alone(folder):
    for step in "12":
        shutil.rmtree(folder / step / "training")  # evaluation needs none of it
    before = snapshot(folder)
    target = abstract(make_state(2).variables)
    for step, found in {"last": 2, "best": 1, 1: 1, 2: 2}.items():
        variables, at = restore_variables(folder, target, step)
        assert at == found and same_bits(variables, make_state(found).variables)
        assert all(x.sharding == sharding() for x in jax.tree.leaves(variables))
    with pytest.raises(FileNotFoundError, match=r"step 9 in .*steps there: \[1, 2\]"):
        restore_variables(folder, target, 9)
    with pytest.raises(ValueError, match="expected 'last', 'best' or a number"):
        restore_variables(folder, target, "newest")
    with pytest.raises(ValueError, match="classifier/kernel"):
        restore_variables(folder, abstract(make_state(classes=3).variables))
    assert snapshot(folder) == before
    (folder / "scores.json").write_text('{"1": {"R1": 0.5}}')
    with pytest.raises(FileNotFoundError, match=r"'mAP' \(steps \[1, 2\], scored \[1\]"):
        restore_variables(folder, target, "best")
    flip(folder / "2/manifest/metadata")
    with pytest.raises(ValueError, match="checksum"):
        restore_variables(folder, target)
    assert (folder / "2").exists()


def test_variables_where_there_are_none(tmp_path):
    target = abstract(make_state().variables)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").touch()
    rows = {"last": r"no checkpoint in .*run holds metrics\.jsonl", "best": "no che", 3: "step 3"}
    for step, match in rows.items():
        with pytest.raises(FileNotFoundError, match=match):
            restore_variables(tmp_path / "run/checkpoints", target, step)
    assert not (tmp_path / "run/checkpoints").exists()


FULL_DISK = """
import resource, sys, numpy as np
from vireid_jax.runtime.checkpoint import Checkpoints
c = Checkpoints(sys.argv[1])
state = {"variables": {"w": np.random.default_rng(0).random((300, 300), np.float32)}}
c.save(1, state, wait=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # as if the disk were full
try:
    c.save(2, state, wait=True)
except Exception as error:
    print("error:", type(error).__name__, error, c.steps(), flush=True)
"""


def test_a_save_that_fails_says_so(tmp_path, make):
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "ckpt"],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=120,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert "Traceback" not in run.stderr
    assert run.stdout.startswith("error: FullDiskError "), run.stdout + run.stderr[-2000:]
    assert run.stdout.endswith(" or name another --workdir [1]\n") and run.stdout.count("\n") == 1
    assert f"needs 360,000 bytes (360.0 kB), and did not fit in {tmp_path}/ckpt" in run.stdout
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == ["1"], "nothing half-written"
    restored, step = make().restore(abstract({"variables": {"w": np.zeros((300, 300), "f4")}}))
    assert step == 1 and float(restored["variables"]["w"].sum()) > 0


def test_manifest_names_every_array(two_steps):
    text = json.loads((two_steps / "2/manifest/metadata").read_text())
    arrays = text["arrays"]
    assert len(arrays) == len(jax.tree.leaves(make_state()))
    kernel = np.asarray(make_state(2).variables["params"]["conv"]["kernel"])
    assert arrays["variables/params/conv/kernel"] == {
        "shape": [3, 3, 2, 4],
        "dtype": "float32",
        "crc32": zlib.crc32(kernel.tobytes()),
    }
    assert "optimizer/1/0/mu/conv/kernel" in arrays


def test_a_task_of_orbax_that_nobody_waits_for_prints_no_traceback(make, caplog):
    make()
    for file, heard in (("/lib/orbax/checkpoint/a.py", False), ("/lib/own/a.py", True)):
        code = compile("raise ValueError('No space left on device')", file, "exec")
        try:
            exec(code)
        except ValueError as error:
            logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=error)
        assert ("never retrieved" in caplog.text) == heard


def test_orbax_tells_only_what_to_worry_about(make, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    make().save(1, make_state(1), wait=True)
    make().restore(abstract(make_state()))
    assert not caplog.records
    from absl import logging as absl_logging

    absl_logging.info("others are heard")
    assert "others are heard" in caplog.text
