"""Every script passes shellcheck; the container file says what it must."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.launch.shell import LAUNCH, ROOT, run

pytestmark = pytest.mark.slow

SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), LAUNCH / "slurm.sbatch"])


def test_shellcheck():
    assert len(SCRIPTS) >= 7
    # Installed beside this Python, whose folder need not be on PATH.
    beside = pathlib.Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    assert shellcheck, "no shellcheck here; pip install -e '.[test]' brings it"
    command = [shellcheck, "--shell=bash", *SCRIPTS]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_scripts_say_how_to_use_them_and_fail_on_unset_variables():
    for path in SCRIPTS:
        text = path.read_text()
        assert text.startswith("#!/usr/bin/env bash\n#"), path
        assert re.search(r"^set -(eu|u)o pipefail$", text, re.M), path
        assert max(map(len, text.splitlines())) <= 100, path


def test_scripts_answer_help(tmp_path):
    """With what stands at their top, and without making a folder."""
    for path in SCRIPTS:
        home = tmp_path / path.stem
        result = run(str(path.relative_to(LAUNCH)), "--help", cwd=tmp_path, HOME=str(home))
        assert (result.returncode, result.stderr) == (0, ""), path
        shown = [line.strip() for line in result.stdout.splitlines()]
        top = re.search(r"(?:^#.*\n)+", path.read_text(), re.M)[0].splitlines()[1:]
        expected = [line[1:].strip() for line in top if not line.startswith("#SBATCH")]
        assert shown == expected and len(shown) > 5 and not home.exists(), path
    beside = run("tpu_vm.sh", "run", "--help")
    assert beside.returncode == 0 and "tpu_vm.sh up" in beside.stdout


def instructions() -> list[tuple[str, str]]:
    text = (LAUNCH / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_container_gets_sigterm_and_is_not_root():
    last = dict(instructions())  # of several the last one counts
    assert json.loads(last["ENTRYPOINT"]) == ["python", "-m", "vireid_jax.main"]
    assert "CMD" not in last
    assert last["USER"] == "1000"
    order = [name for name, _ in instructions()]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN")


def test_the_container_has_a_python_of_ours_and_no_gpu_tensorflow():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    arguments = [rest for name, rest in instructions() if name == "ARG"]
    (version,) = [a.partition("=")[2] for a in arguments if a.startswith("PYTHON=")]
    assert int(version.split(".")[1]) >= int(project["requires-python"].rpartition(".")[2])
    (base,) = [rest for name, rest in instructions() if name == "FROM"]
    assert base == "python:${PYTHON}-slim"
    (install,) = [rest for name, rest in instructions() if "pip install" in rest]
    assert install == 'pip install --editable ".${EXTRA:+[$EXTRA]}"'
    extras = project["optional-dependencies"]
    assert {"tpu", "cuda"} <= set(extras)
    assert not [d for d in project["dependencies"] if d.startswith("tensorflow")]
    (linux,) = [
        d
        for d in extras["data"]
        if re.match(r"tensorflow(-cpu)?[<>=]", d) and "platform_system == 'Darwin'" not in d
    ]
    assert linux.startswith("tensorflow-cpu>")


def test_what_the_image_is_made_of_is_there_and_let_in():
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY"]
    ignore = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignore if not line.startswith("#")]
    assert rules[0] == "*"
    for path in [path for paths in copied for path in paths]:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in rules, path


def test_what_the_image_is_made_of_can_be_installed(tmp_path):
    for rest in (rest for name, rest in instructions() if name == "COPY"):
        for path in map(ROOT.joinpath, rest.split()[:-1]):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, tmp_path / path.name)
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--editable"]
    target = ["--target", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, *install, ".", *target], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_command_substitution_where_a_trap_may_interrupt_it():
    """Bash 5.2 fails to parse one then, and the script ends with 1, the processes with it."""
    for name in ("supervise.sh", "local_pod.sh"):
        _, found, rest = (LAUNCH / name).read_text().partition("# From here on there is no $(...)")
        assert found, name
        code = re.sub(r"#.*", "", f"# {rest}")  # `rest` begins within the comment
        assert not re.search(r"\$\((?!\()|[<>]\((?!\()|`", code), name
