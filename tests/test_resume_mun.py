"""MUN's prototypes survive a kill: they are state of the run, like its parameters."""

import signal

import numpy as np

from tests.test_resume import STEPS, Job
from vireid_jax import manifest
from vireid_jax.types import epochs_to_steps

RECIPE = """
from configs import mun

def get_config(arg=None):
    c = mun.get_config()
    c.run_name = "tiny"
    parts = ("train", "val", "test")
    c.data.update({{f"{{part}}_{{m}}": 1 for part in parts for m in ("visible", "infrared")}})
    c.data.update(train_ids=6, val_ids=3, test_ids=3, cache={cache!r})
    c.data.image_size = (32, 16)
    c.method.width = 4
    c.method.generator.ratios = (2, 4)  # of maps of 8 x 4
    c.sampler.num_ids, c.sampler.num_instances, c.sampler.steps_per_epoch = 4, 2, 4
    c.train.epochs, c.train.log_every = 6.0, 1
    c.train.eval_every, c.train.checkpoint_every = 0.0, 1.0
    c.eval.protocols, c.eval.trials = ("sysu/all/single",), 2
    c.eval.baselines, c.eval.batch_size = False, 16
    return c
"""


def test_killed_and_terminated_with_prototypes_in_memory(tmp_path):
    recipe = tmp_path / "tiny.py"
    recipe.write_text(RECIPE.format(cache=str(tmp_path / "cache")))
    whole, job = (Job(recipe, tmp_path / name, devices=2) for name in ("whole", "run"))
    whole.finish()
    code, out, _ = job.stop_when(lambda: 7 in job.steps_written(), signal.SIGKILL)
    assert code == -signal.SIGKILL, out
    code, out, _ = job.stop_when(lambda: 14 in job.steps_written(), signal.SIGTERM)
    assert code == 42, out
    job.finish()
    (arrays, rows), (expected, expected_rows) = job.result(), whole.result()
    assert arrays == expected and rows == expected_rows
    (name,) = (name for name in arrays if "memory" in name)
    assert arrays[name]["shape"] == [8, 3, 32] and arrays[name]["dtype"] == "float32"
    # Beta goes from the first step to the last, whichever process did them.
    betas = [row["new_weight"] for row in rows if "new_weight" in row]
    np.testing.assert_allclose(betas, [1.0, *(np.arange(1, STEPS) / (STEPS - 1))], rtol=1e-6)
    at = {s: manifest.read(job.workdir / "checkpoints" / str(s))[name] for s in job.committed()}
    assert len(at) == 3 and len({a["crc32"] for a in at.values()}) == 3, "it goes on changing"
    assert epochs_to_steps(6.0, 4) == STEPS
