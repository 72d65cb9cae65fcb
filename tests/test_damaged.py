"""Commands on a run whose files anything has happened to: one line, no traceback, nothing lost."""

import copy
import json
import os
import random
import shutil
import sys
import time

import pytest

from tests.support.linear_command import build
from tests.support.recipes import small
from tests.test_options import ANY
from vireid_jax import main, methods
from vireid_jax.metrics.__main__ import main as compare

pytestmark = pytest.mark.slow

# What a file may hold instead. A pipe is the one that is waited for without end.
CONTENTS = (b"", b"\xff\xfe", b"{}", b"[]", b"null", b"5", b"[" * 200_000, b'{"a": 1', "pipe")
JSON = ("config.json", "env.json", "classes.json", "checkpoints/scores.json", "eval/2/*.json",
        "checkpoints/2/manifest/metadata")  # fmt: skip
OTHER = (
    "metrics.jsonl",
    "COMMAND",
    "checkpoints/2/_CHECKPOINT_METADATA",
    "checkpoints/2/training/*",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_device):
    methods.METHODS["linear"] = build
    folder = tmp_path_factory.mktemp("finished")
    config = small("linear", "synthetic", folder)
    assert main.run(config, workdir=folder / "run") == 0
    yield config, folder / "run"
    del methods.METHODS["linear"]


def mutated(value, rng):
    """A copy of a JSON value in which one value, at any depth, is another or not there."""
    root = copy.deepcopy(value)
    inner = root
    while isinstance(inner, (dict, list)) and inner:
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        if not isinstance(inner[key], (dict, list)) or not inner[key] or rng.random() < 0.2:
            if rng.random() < 0.2:
                del inner[key]
            else:
                inner[key] = rng.choice([v for v in ANY if type(v) not in (bytes, object)])
            break
        inner = inner[key]
    return json.dumps(root).encode()


def damage(file, rng, n):
    content = file.read_bytes()
    file.unlink()
    before = b""
    if file.suffix == ".jsonl":  # one of its lines
        lines = content.splitlines(keepends=True)
        before, content = b"".join(lines[:-1]), lines[-1]
    if n < len(CONTENTS):
        if CONTENTS[n] == "pipe":
            os.mkfifo(file)
        else:
            file.write_bytes(CONTENTS[n])
        return repr(CONTENTS[n][:20])
    try:
        new = before + mutated(json.loads(content), rng) + b"\n"
    except ValueError:  # no JSON: some bytes are others
        new = bytearray(content)
        for _ in range(3):
            new[rng.randrange(len(new))] = rng.randrange(256)
    file.write_bytes(new)
    return f"change {n - len(CONTENTS)}"


def content_of(folder):
    return {
        p: p.is_file() and p.read_bytes() for p in folder.rglob("*") if ".running" not in str(p)
    }


@pytest.mark.parametrize("name", JSON + OTHER)
def test_a_damaged_file_of_a_run(name, finished, tmp_path, capsys, monkeypatch):
    config, run = finished
    rng = random.Random(f"damage to {name}")
    monkeypatch.setattr(sys, "argv", ["main.py"])
    for n in range(len(CONTENTS) + 3):
        folder = tmp_path / str(n)
        shutil.copytree(run, folder)
        file = rng.choice(sorted(p for p in folder.glob(name) if p.is_file()))
        what = damage(file, rng, n)
        for command in ("train", "eval", "compare"):
            before = content_of(folder)
            capsys.readouterr()
            start = time.monotonic()
            if command == "compare":
                code = compare([str(folder)])
            else:
                code = main.run(
                    config if command == "train" else None, workdir=folder, mode=command
                )
            err = capsys.readouterr().err
            assert code in (0, 1), (what, command, err)
            assert "Traceback" not in err, (what, command, err)
            if code == 1:
                assert err.startswith("error: "), (what, command, err)
                assert str(folder) in err, (what, command, err)
                assert content_of(folder) == before, (what, command, err)
                assert time.monotonic() - start < 20, (what, command)
        shutil.rmtree(folder)
