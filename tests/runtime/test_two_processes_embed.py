"""Two processes embed as one: every image once, and all features on both."""

import numpy as np
import pytest

from tests.runtime import embedding
from tests.support.pods import pod


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_embed_as_one(tmp_path):
    out = tmp_path / "features"
    embedding.main(str(tmp_path / "alone"))
    run = pod(2, 2, "tests.runtime.embedding", out)
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
