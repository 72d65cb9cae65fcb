"""The command with a stand-in for training."""

import functools
import pathlib
import sys

import pytest

from vireid_jax.ablation import __main__ as command
from vireid_jax.ablation import cells

STAND_IN = pathlib.Path(__file__).with_name("stand_in.py")


@pytest.fixture
def stand_in(monkeypatch):
    """Cells run tests/ablation/stand_in.py in place of the main command."""
    real = cells.Cell.command

    def run(cell, score):
        return [sys.executable, str(STAND_IN), *real(cell, score)[3:]]

    monkeypatch.setattr(cells.Cell, "command", run)
    monkeypatch.setattr(command, "find_backend", lambda: "cpu")


@pytest.fixture
def ablation(stand_in, tmp_path):
    """The command line in a folder of its own, cells by the stand-in: (*argv) -> exit code."""
    return functools.partial(call, tmp_path)


def call(folder, *argv):
    return command.main([*argv, "--folder", str(folder)])


@pytest.fixture
def starts(tmp_path):
    """() -> {folder of a cell: what was started there}."""

    def read():
        found = sorted(tmp_path.glob("cells/*/*/starts"))
        return {path.parent: path.read_text().split() for path in found}

    return read
