"""Two processes embed as one: every image once, and all features on both.

`python -m tests.runtime.test_two_processes_embed OUT` is one of the processes, or alone.
"""

import sys

import jax
import numpy as np
import pytest

from tests.support import fused as few
from tests.support.pods import pod
from vireid_jax import embedding
from vireid_jax.runtime import processes
from vireid_jax.types import INFRARED, VISIBLE, Retrieval


def main(out):
    """Stores features and sums of similarities of random images in OUT.<process>.npz."""
    processes.start(out + ".run")
    embed, variables, mesh = few.make_parts()
    options = dict(mesh=mesh, image_size=few.SIZE, batch_size=8)
    # Neither number divides over the devices.
    sides = Retrieval(few.records(11, INFRARED, 0), few.records(17, VISIBLE, 1))
    found = embedding.embed_records(embed, variables, sides.query, **options)
    stored = {f"query {k}": v for k, v in found.items()}
    options |= dict(flip=True, memory_bytes=300)
    found = embedding.accumulate(embed, variables, sides, few.FUSIONS, **options)
    stored |= {f"similarity {k}": v for k, v in found.similarity.items()}
    np.savez(f"{out}.{jax.process_index()}.npz", **stored)
    processes.finish(0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_embed_as_one(tmp_path):
    out = tmp_path / "features"
    main(str(tmp_path / "alone"))
    run = pod(2, 2, "tests.runtime.test_two_processes_embed", out)
    assert run.codes == [0, 0], run.text()
    expected = np.load(tmp_path / "alone.0.npz")
    assert sorted(expected) == sorted(
        ["query plain", "query a", "query b", "similarity sum", "similarity weighted"]
    )
    found = [np.load(f"{out}.{process}.npz") for process in (0, 1)]
    for name, array in expected.items():
        assert array.shape[0] == 11
        np.testing.assert_array_equal(found[0][name], found[1][name], err_msg=name)
        np.testing.assert_allclose(found[0][name], array, rtol=1e-5, atol=1e-4, err_msg=name)


if __name__ == "__main__":
    main(*sys.argv[1:])
