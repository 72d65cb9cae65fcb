"""Compiled programs are kept, and damaged ones replaced."""

import os
import subprocess
import sys

import pytest

from tests.support.jobs import REPO

TRUNCATED = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from vireid_jax.runtime import compilation
compilation.use_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
f, x = jax.jit(lambda x: jnp.sin(x) @ x), np.ones((8, 8), np.float32)
f(x)
(entry,) = pathlib.Path(sys.argv[1]).glob("jit__lambda*-cache")
whole = entry.read_bytes()
for content in (whole[: len(whole) // 2], b""):
    entry.write_bytes(content)
    jax.clear_caches()
    f(x)
    print("replaced" if len(entry.read_bytes()) > len(whole) // 2 else "left", flush=True)
jax.clear_caches()
f(x)
"""


@pytest.mark.slow
def test_a_truncated_program_is_compiled_and_kept_again(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPO,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout == "replaced\n" * 2, done.stdout + done.stderr
    said = "the compilation cache has a damaged jit__lambda: compiling it again"
    assert done.stderr.count(said) == 2 and "Error reading" not in done.stderr, done.stderr
