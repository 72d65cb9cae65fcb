"""MUN's prototypes survive a kill: they are state of the run, like its parameters."""

import numpy as np

from tests.test_resume import STEPS, killed_and_terminated
from vireid_jax.runtime import manifest
from vireid_jax.types import epochs_to_steps


def test_killed_and_terminated_with_prototypes_in_memory(tmp_path):
    ratios = "c.method.generator_ratios = (2, 4)  # of maps of 8 x 4"
    job = killed_and_terminated(tmp_path, "mun", ratios)
    arrays, rows = job.result()
    (name,) = (name for name in arrays if "memory" in name)
    assert arrays[name]["shape"] == [8, 3, 32] and arrays[name]["dtype"] == "float32"
    # Beta goes from the first step to the last, whichever process did them.
    betas = [row["beta"] for row in rows if "beta" in row]
    np.testing.assert_allclose(betas, [1.0, *(np.arange(1, STEPS) / (STEPS - 1))], rtol=1e-6)
    at = {s: manifest.read(job.workdir / "checkpoints" / str(s))[name] for s in job.committed()}
    assert len(at) == 3 and len({a["crc32"] for a in at.values()}) == 3, "it goes on changing"
    assert epochs_to_steps(6.0, 4) == STEPS
