"""Where full-size trees are written."""

import os
import pathlib
import shutil
import tempfile

import pytest


@pytest.fixture(scope="module")
def big_folder(tmp_path_factory):
    """A new folder, in memory where the system has one: 45,000 files are slow on a busy disk."""
    memory = "/dev/shm"
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**28:
        folder = tempfile.mkdtemp(dir=memory, prefix="vireid_jax_cam1 ")
    else:
        folder = tmp_path_factory.mktemp("vireid_jax_cam1 ")
    yield pathlib.Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Trees of full size are not for the fast tier."""
    for item in items:
        if "big_folder" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
