"""Every command that a page, a docstring or a script prints is parsed, and run if it can run here.

A command that no row of WAYS knows fails. The fast tests start no process: they parse the options,
read the recipe, build its method, and look for files. The slow ones run commands on small stand-ins
of the data, with options added that make them small.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import pytest
from absl import flags
from PIL import Image

from launch.ahead import roofline
from tests.docs.test_pages import PAGES, ROOT, blocks
from tests.launch.shell import clean_environment
from tests.support.plain import PLAIN, QUICK, plainly
from tests.support.rows import each
from vireid_jax import build, main, train
from vireid_jax.runtime import devices, runfolder
from vireid_jax.synthetic.layouts import write_tree

SOURCES = [
    path
    for folder in ("vireid_jax", "configs", "launch", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".sh", ".sbatch", ".yaml") or path.name == "Dockerfile"
]
TOOLS = "git|scancel|scontrol|xpk|gcloud|docker|kubectl|sbatch|make|pip|pre-commit"
# Two spaces into a line, also of a comment, or in backticks: up to two spaces, or the backtick.
COMMAND = re.compile(
    rf"(?:^#? {{2,}}(?:\w+=\S+ )*|`)((?:python3? -m |bash launch/|(?:{TOOLS}) [\w-])"
    r"(?:[^\n`]*\\\n)*[^\n`]*)",
    re.M,
)


class Way(NamedTuple):
    """How commands are tried."""

    pattern: str
    run: str | None = None  # options to add to the command where it is run; None: it is not
    why: str = ""  # it is not run


MAIN = r"python -m vireid_jax\.main "
WAYS = (
    Way(
        r".*(\.\.\.|\[[A-Z-]|\| |\bARGS\b|COMMAND$|JOBID|NAME(?!=)|data prepare$)",
        why="a form to fill in",
    ),
    Way(MAIN + r".*--print_config", run=""),
    Way(MAIN + r".*=eval.*init\.weights", why="an author's file; tests/test_released.py has one"),
    Way(MAIN, run=""),  # see `smaller`
    Way(r"for t in .*vireid_jax\.main ", run=""),
    Way(r"python -m vireid_jax\.metrics runs/smcl-regdb", run=""),
    Way(r"python -m vireid_jax\.data check .*--rand-perm", why="the file comes with SYSU-MM01"),
    Way(r"python -m vireid_jax\.data (check|show) ", run=""),
    Way(r"python -m vireid_jax\.data prepare ", run="--no-strict"),
    Way(r"python -m vireid_jax\.(data\.)?synthetic$", run="--sheet people.png --ids 1"),
    Way(r"python -m vireid_jax\.synthetic\.pretrain", why="an hour; tests/synthetic/test_pretrain"),
    Way(r"python -m vireid_jax\.data\.corrupt ", run=""),
    Way(r"python -m vireid_jax\.visual\.curve ", run=""),
    Way(r"python -m vireid_jax\.ablation --(help|list)", run=""),
    Way(r"python -m vireid_jax\.ablation ", run="--show --folder runs/ablation"),
    Way(r"python -m launch\.(ahead|compile_ahead)( --help)?$", run="--help"),
    Way(r"python -m launch\.ahead\.tables ", why="needs figures of an hour's compilation"),
    Way(r"python -m launch\.ahead .*\$m", why="an hour: six methods at full size"),
    Way(
        r"python -m launch\.ahead ",
        run="--quick --noembed --tries=1 --chips=8 --config.data.image_size='(32,16)' "
        "--config.method.depth=10 --config.method.width=4",
    ),
    Way(r"for m in .*launch\.ahead ", why="an hour: six methods at full size"),
    Way(r"python -m benchmarks\b", why="measures for minutes; tests/benchmarks/ tries the parts"),
    Way(r"bash launch/local_pod\.sh ", run=""),
    Way(r"bash launch/tpu_vm\.sh ", run="--dry_run"),
    Way(r"bash launch/on_worker\.sh idle", why="asks systemd; tests/launch/test_hosts.py"),
    Way(r"bash launch/setup_host\.sh ", run="--fake fake"),
    Way(r"export ", run=""),
    Way(r"sbatch |scontrol |kubectl |docker |gcloud |git lfs", why="needs a service"),
    Way(r"--config\.devices\.\w+=", why="an option: parsed with a recipe"),
    Way(r"make |pre-commit |python -m pytest ", why="the checks themselves; .ci/run has them"),
    Way(r"pip install |python3? -m venv ", why="installs; .ci/run and .ci/release do it"),
)


UNKNOWN = Way("", why="")


def commands(text):
    """The commands in a text, as lines; those of a page's blocks are not looked for here."""
    found = (re.sub(r"\s*\\\n[# ]*", " ", command) for command in COMMAND.findall(text))
    return {re.split(r"  +|\)$", command)[0].strip().rstrip(",:;") for command in found}


def lines(block):
    """The commands of a block: a line each, and a loop as one."""
    text = re.sub(r"\s*\\\n\s*", " ", re.sub(r" +# .*$", "", block, flags=re.M))
    loop = re.compile(r"^for .*?^done$", re.M | re.S)
    return {*loop.findall(text), *loop.sub("", text).splitlines()}


def printed():
    """{command: the file that prints it}."""
    found = {}
    for path in [*PAGES, ROOT / "launch/README.md", *SOURCES]:
        text = path.read_text()
        if path.name == "CHANGELOG.md":
            continue
        here = set()
        if path.suffix == ".md":
            here = {line.strip() for block in blocks(path) for line in lines(block)}
            text = re.sub(r"^```.*?^```$|^ *(?=\S)", "", text, flags=re.M | re.S)
        for command in (here | commands(text)) - {""}:
            found.setdefault(command, str(path.relative_to(ROOT)))
    return dict(sorted(found.items()))


PRINTED = printed()


def way(command):
    return next((w for w in WAYS if re.match(w.pattern, command, re.S)), UNKNOWN)


def test_every_command_is_tried_in_some_way():
    wrong = [f"{where}: {command}" for command, where in PRINTED.items() if way(command) is UNKNOWN]
    assert not wrong, "add a row to WAYS:\n" + "\n".join(wrong)
    assert len(PRINTED) > 150
    for page in PAGES:  # commands stand in blocks of sh, which are looked at
        assert not re.search(r"^```(?!sh)\w*\n(python|bash|sbatch) ", page.read_text(), re.M), page
    assert {way(command) for command in PRINTED} == set(WAYS), "a row without a command"


# Parsing ------------------------------------------------------------------------------------------


class Parsed(BaseException):  # not an error of the program
    """The options are accepted; nothing further is done."""


@pytest.fixture
def parser(tmp_path, monkeypatch):
    """Parses a command as its program does, and stops before it does anything."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def take(config, **options):
        calls.append(config)
        return 0

    def stop(parse):
        def parse_and_stop(self, *arguments):
            parse(self, *arguments)
            raise Parsed

        return parse_and_stop

    monkeypatch.setattr(main, "run", take)
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stop(parse))

    def parse_main(*arguments):
        for word in arguments:
            runs = re.fullmatch(r"(?:--workdir=)?(RUN|runs/\S+)", word)
            if runs and "--mode=eval" in arguments and not pathlib.Path(runs[1]).exists():
                config = importlib.import_module("configs.smcl").get_config()
                runfolder.save_run_info(pathlib.Path(runs[1]), config.to_dict(), ["main"])
        argv = ["main.py", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # what the recipe of a run is changed by
        with pytest.raises(SystemExit) as end:
            main.main(argv)
        assert end.value.code == 0
        config = calls.pop() if calls else None
        if config is not None:
            build.make_method(config, 4, 1)
        return config

    def parse_module(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        package = importlib.util.find_spec(module).submodule_search_locations
        name = f"{module}.__main__" if package else module
        monkeypatch.delitem(sys.modules, name, raising=False)  # runpy warns of a second one
        with pytest.raises((Parsed, SystemExit)) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert end.type is Parsed or end.value.code == 0

    def parse_ahead(*arguments):
        known = flags.FlagValues()
        for flag in flags.FLAGS.flags_by_module_dict()["launch.ahead.__main__"]:
            known[flag.name] = flag
        config, _ = main.parse(["ahead", *arguments], known, about="")
        check_rows(config, roofline.parse(known.topology).chips)

    return parse_main, parse_module, parse_ahead


def check_rows(config, count):
    devices.check_rows(config.sampler.num_ids, config.sampler.num_instances, count)


def devices_of(words, where):
    """On how many devices a script starts its job."""
    options = dict(re.findall(r"--(\w[\w-]*)[= ](\S+)", " ".join(words)))
    if words[0] == "sbatch":
        return int(options.get("nodes", 1)) * int(options.get("gpus-per-node", 1))
    if words[1] == "launch/local_pod.sh":
        return int(words[2]) * int(options["devices"])
    (count,) = set(re.findall(r"^export .*ACCELERATOR=v[56]\w*-(\d+)", where.read_text(), re.M))
    return int(count)


def parse(command, where, parse_main, parse_module, parse_ahead):
    """Raises if a command cannot be what its program takes."""
    for line in re.split(r" && |^for .*; do\n|\ndone", command):
        if way(command).why == "a form to fill in":
            words = line.split()[: 2 if line.startswith("bash") else 3]
        else:
            words = shlex.split(line.replace("$t", "1").replace("$m", "smcl"))
        for word in words:  # files of the project
            if re.match(r"(launch|configs|tests)/[\w./-]+$", word):
                assert (ROOT / word).exists(), word
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
        elif words and words[0].startswith("--config."):
            parse_main("--config=smcl", "--config.sampler.num_ids=4", *words)
        elif words[:1] == ["sbatch"] or (words[:1] == ["bash"] and "--" in words):
            before = words.index("--" if "--" in words else "launch/slurm.sbatch")
            check_rows(parse_main(*words[before + 1 :]), devices_of(words, ROOT / where))
        elif words[1:2] == ["-m"] and words[2] not in ("venv", "pytest"):
            module, arguments = words[2], words[3:]
            assert importlib.util.find_spec(module), module
            if module == "vireid_jax.main" and arguments:
                parse_main(*arguments)
            elif module == "launch.ahead" and "--topology" in arguments:
                importlib.import_module("launch.ahead.__main__")
                parse_ahead(*arguments)
            elif arguments and not module.startswith("launch."):
                parse_module(module, *arguments)


@each("command", [c for c in PRINTED if not c.startswith("python -m benchmarks")])
def test_a_printed_command_is_one_that_its_program_takes(command, parser):
    parse(command, PRINTED[command], *parser)


@pytest.mark.slow
@each("command", [c for c in PRINTED if c.startswith("python -m benchmarks")])
def test_a_printed_benchmark_is_one_that_its_program_takes(command, parser):
    parse(command, PRINTED[command], *parser)


# Running ------------------------------------------------------------------------------------------

TREES = {"sysu": "SYSU-MM01", "regdb": "RegDB", "llcm": "LLCM", "folders": "mine"}


def smaller(arguments):
    """Options that make a command of vireid_jax.main small, and its data those of the sandbox."""
    recipe = re.search(r"--config[= ](?:configs/)?([a-z]+)(?:\.py)?(?::(\S+))?", arguments)
    data = re.search(r"\b(sysu|regdb|llcm|folders)\b", recipe[2] or "") if recipe else None
    added = {}
    if recipe:
        added = {"data.image_size": "'(48,24)'", "eval.batch_size": 32}
    if data:
        added |= {"data.root": f"data/{TREES[data[1]]}", "data.strict": False}
    if data and data[1] == "folders" and "test_share" not in arguments:
        added["data.test_share"] = 0.4
    if "--mode=eval" not in arguments:
        added |= {"method.depth": 10, "method.width": 8, "train.tensorboard": False}
        added |= {"sampler.num_ids": 4, "sampler.num_instances": 2, "sampler.steps_per_epoch": 2}
        if not data:
            added |= {f"data.{part}_ids": 5 for part in ("train", "val", "test")}
            added |= {"data.test_visible": 2, "data.test_infrared": 2, "eval.trials": 2}
        if re.search(r"\bmun\b", arguments):
            added["method.generator_ratios"] = "'(2,3,6)'"
    options = [f"--config.{key}={value}" for key, value in added.items()]
    if "--mode=eval" not in arguments:
        options += ["--max_steps=2", *([] if "--workdir" in arguments else ["--workdir=runs/try"])]
    return " ".join(options)


def runnable(command):
    """The command with the sandbox's files, and with the options that its way adds."""
    added = way(command).run
    command = re.sub(r" --config\.init\.weights=\S+", "", command)  # of ImageNet, 100 MB
    command = re.sub(r" --config\.data\.root=\S+", "", command)
    for here, there in (
        ("/data/SYSU-MM01", "data/SYSU-MM01"),
        (" FILE", " image.png"),
        ("--workdir RUN", "--workdir runs/mine"),
        ("bash launch/", "bash $ROOT/launch/"),
        ("1 2 3 4 5 6 7 8 9 10", "1 2"),
    ):
        command = command.replace(here, there)
    if command.startswith("for t"):
        folder = "--workdir=runs/smcl-regdb-trial=$t"
        return command.replace("=$t\n", f"=$t {folder} {smaller(command + folder)}\n")
    if "vireid_jax.main" in command or "local_pod" in command:
        return f"{command} {smaller(command)} {added}"
    first, dashes, rest = command.partition(" -- ")
    return f"{first} {added}{dashes}{rest}"


def stop(*_, **__):
    raise train.Preempted(0)


class Sandbox:
    """A folder with small stand-ins of the data sets and finished runs."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        self.compiled = set()  # methods
        for name in ("sysu", "regdb", "llcm"):
            write_tree(folder / "data" / TREES[name], name, train_ids=5, test_ids=5, images=2,
                       image_size=(48, 24))  # fmt: skip
        for kind, other in (("visible", "Visible"), ("infrared", "Thermal")):
            shutil.copytree(folder / "data/RegDB" / other, folder / "data/mine" / kind)
        (folder / "mine").symlink_to("data/mine")
        Image.new("RGB", (24, 48), "gray").save(folder / "image.png")
        (folder / "configs").symlink_to(ROOT / "configs")
        train, often = "python -m vireid_jax.main --config configs/smcl.py", ""
        for name in ("log_every", "eval_every"):
            often += f" --config.train.{name}=1"
        runs = [
            f"{train} --workdir runs/mine{often}",
            f"{train}:sysu --workdir runs/smcl-sysu{often}",
        ]
        loop = next(line for line in RUN if line.startswith("for t"))  # the runs of a mean
        of_splits = [re.search("python.*", loop)[0].replace("$t", t) for t in "12"]
        for command in [*map(runnable, runs), *of_splits]:
            self.compiled.clear()
            self(command)
        shutil.copytree(folder / "runs/mine", folder / "runs/smcl-synthetic")

    def __call__(self, command):
        """Runs a command; returns what it has printed."""
        shutil.rmtree(self.folder / "runs/try", ignore_errors=True)
        if re.match(r"python -m vireid_jax\.[^$&;*\n]*$", command):
            code, said = self.here(*shlex.split(command)[2:])
        else:
            environment = self.environment
            if "--topology cpu:" in command:  # it makes that many devices itself
                environment = environment | {"XLA_FLAGS": QUICK}
            done = subprocess.run(
                ["bash", "-euc", command], cwd=self.folder, env=environment, text=True,
                capture_output=True, stdin=subprocess.DEVNULL, timeout=600,
            )  # fmt: skip
            code, said = done.returncode, done.stdout + done.stderr
        # A stand-in of a data set is not the released one: "check" says so.
        differs = " data check " in command or ".data check " in command
        assert code == 0 or (differs and "checks differ" in said), (
            f"{command}\nended with {code}:\n{said[-4000:]}"
        )
        return said

    def here(self, module, *arguments):
        """Runs a module in this process, which has imported what it needs.

        The first training of a method is a whole one. Others end where the step would be compiled:
        their data and weights are loaded then, the step is traced, and the run's folder written.
        """
        method = re.search(r"--config[= ](?:configs/)?([a-z]+)", " ".join(arguments))
        again = method and "--mode=eval" not in arguments and method[1] in self.compiled
        self.compiled |= {method[1]} if method else set()
        name = f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module
        said = io.StringIO()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            mock.patch.dict(os.environ, self.environment),
            mock.patch.object(sys, "argv", [module, *arguments]),
            mock.patch.dict(sys.modules),
            mock.patch.object(train, "train", stop if again else train.train),
            pytest.raises(SystemExit) as end,
        ):
            sys.modules.pop(name, None)  # runpy warns of a second one
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return end.value.code or 0, said.getvalue()


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory, one_device):
    folder = tmp_path_factory.mktemp("printed")
    environment = clean_environment(
        PATH=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(ROOT),
        ROOT=str(ROOT),
        JAX_PLATFORMS="cpu",
        JAX_COMPILATION_CACHE_DIR=os.environ["JAX_COMPILATION_CACHE_DIR"],
        XLA_FLAGS=f"--xla_force_host_platform_device_count=1 {QUICK}",
        VIREID_CACHE=str(folder / "cache"),
        VIREID_DATA=str(folder / "prepared"),
        PROJECT="p", ZONE="z", NAME="n", ACCELERATOR="v6e-16", BUCKET="b",
        **PLAIN,
    )  # fmt: skip
    with plainly():
        yield Sandbox(folder, environment)


@pytest.fixture(scope="module")
def tpu_compiler(sandbox, tmp_path_factory):
    """The compiler of TPU programs, in a folder of its own: no test of ours may find a TPU."""
    if importlib.util.find_spec("libtpu") is None:
        (needed,) = {
            r.partition(";")[0].strip()
            for r in importlib.metadata.requires("jax") or ()
            if r.startswith("libtpu")
        }
        folder = tmp_path_factory.mktemp("libtpu")
        install = [*(sys.executable, "-m", "pip", "install", "-qq", "--no-deps")]
        got = subprocess.run([*install, "--target", folder, needed], capture_output=True, text=True)
        if got.returncode:
            pytest.skip(f"cannot install {needed}: {got.stderr.strip().splitlines()[-1]}")
        sandbox.environment["PYTHONPATH"] += f"{os.pathsep}{folder}"


RUN = list(dict.fromkeys(runnable(c) for c in PRINTED if way(c).run is not None))


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in RUN if "--topology" not in c])
def test_a_printed_command_runs(command, sandbox):
    if " prepare " in command:
        pytest.importorskip("tensorflow_datasets")
    if "visual.curve" in command:
        pytest.importorskip("matplotlib")
    sandbox(command)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in RUN if "--topology" in c])
def test_a_printed_compilation_for_chips_runs(command, sandbox, tpu_compiler):
    assert "identities x" in sandbox(command)
