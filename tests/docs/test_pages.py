"""What README.md, docs/ and the recipes' docstrings say exists: commands, extras, links, keys."""

import ast
import importlib
import itertools
import pathlib
import re
import shlex
import tomllib

import pytest
from absl import flags
from ml_collections import config_flags

from configs import common
from tests.support.plain import plainly
from vireid_jax import build
from vireid_jax.methods import METHODS
from vireid_jax.methods import common as common_options

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RECIPES = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem not in ("common", "tables"))


def blocks(path, language="sh"):
    """The fenced code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.M | re.S)


def installs():
    """The two commands of the README, each split at && into words."""
    found = [block for block in blocks(README) if "pip install" in block]
    assert len(found) == 2, "README.md gives one command to train and one to test"
    assert all(block.count("\n") == 1 for block in found), "each is one line"
    return [[shlex.split(part) for part in block.split("&&")] for block in found]


def extras(word):
    """(what is installed, its extras): ".[test,viz]" -> (".", {"test", "viz"})."""
    base, _, rest = word.partition("[")
    return base, set(rest.rstrip("]").split(",")) - {""}


def arguments(words):
    """What follows "python -m": in the README the interpreter is .venv's."""
    assert words[0].endswith("python") or words[0] == "$python", words
    assert words[1] == "-m"
    return words[2:]


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_the_two_commands_install_into_a_fresh_environment():
    for venv, install, use in installs():
        assert venv == ["python3", "-m", "venv", ".venv"]
        assert install[:3] == [".venv/bin/pip", "install", "-e"] and len(install) == 4
        base, wanted = extras(install[3])
        assert base == "." and wanted <= set(PROJECT["optional-dependencies"])
        assert use[0] == ".venv/bin/python"


def test_the_first_command_trains_a_recipe_that_exists():
    (_, install, train), _ = installs()
    assert extras(install[3]) == (".", set())
    module, option, recipe = arguments(train)
    assert (module, option) == ("vireid_jax.main", "--config")
    assert (ROOT / recipe).is_file() and (ROOT / "vireid_jax/main.py").is_file()


def test_ci_runs_the_second_command_first_and_then_the_slow_tests():
    _, (_, install, tests) = installs()
    text = (ROOT / ".ci/run").read_text().replace("\\\n", " ")
    lines = [shlex.split(x) for x in re.findall(r'^ *("\$python" -m .*)$', text, re.M)]
    runs = [arguments(words) for words in lines if "pytest" in words]
    assert runs[0] == arguments(tests) and runs[0][:3] == ["pytest", "-m", "not slow"]
    assert runs[1:] == [["pytest", "-m", "slow", *runs[0][3:]]]
    wanted = [extras(w[-1])[1] for w in lines if w[:4] == ["$python", "-m", "pip", "install"]]
    assert len(wanted) == 1 and extras(install[3])[1] <= wanted[0]


def test_make_has_the_same_tests():
    text = (ROOT / "Makefile").read_text()
    _, (_, _, tests) = installs()
    assert f"$(PYTHON) -m {shlex.join(arguments(tests))}".replace("'", '"') in text


def test_the_script_of_the_command_line_exists():
    for name, target in PROJECT["scripts"].items():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_named_extras_exist():
    """Wherever a page or a file's text says pip install '...[extra]'."""
    sources = [*ROOT.glob("vireid_jax/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    named = set()
    for path in [*PAGES, ROOT / ".ci/run", *sources]:
        for names in re.findall(r"['\"](?:\.|vireid_jax)\[([a-z,]+)\]['\"]", path.read_text()):
            named |= set(names.split(","))
    assert {"test", "viz", "cuda"} <= named <= set(PROJECT["optional-dependencies"])


def targets(path):
    """Relative link and image targets of a page, outside code blocks."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [link for link in links if not re.match(r"[a-z]+:", link)]


def anchors(path):
    """The anchors of a page's headings, as a forge makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_relative_links_and_images_exist():
    for path in PAGES:
        for target in targets(path):
            name, _, anchor = target.partition("#")
            file = path.parent / name if name else path
            assert file.exists(), f"{path.name} links to {target}"
            if anchor:
                assert anchor in anchors(file), f"{path.name} links to {target}"


def test_the_readme_shows_a_picture_and_links_the_pages():
    found = targets(README)
    assert any(target.endswith(".png") for target in found)
    index = {target.partition("#")[0] for target in targets(ROOT / "docs" / "README.md")}
    linked = {target.partition("#")[0] for target in found}
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in linked or page.name in index, page.name


def test_files_that_the_pages_name_exist():
    wrong = []
    for path in PAGES:
        if path.name != "CHANGELOG.md":
            found = r"`((?:vireid_jax|configs|tests|benchmarks|docs|launch)/[\w/.]+)[:`]"
            named = set(re.findall(found, path.read_text()))
            wrong += [
                f"{path.name}: {name}" for name in sorted(named) if not (ROOT / name).exists()
            ]
    assert not wrong


def test_modules_that_the_pages_run_and_import_exist():
    text = "\n".join(path.read_text() for path in PAGES)
    modules = set(re.findall(r"python -m ((?:vireid_jax|benchmarks)[\w.]*)", text))
    assert "vireid_jax.main" in modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for block in blocks(README, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def config_keys():
    """(where, key) of every --config.some.key that the texts mention."""
    texts = {str(p.relative_to(ROOT)): p.read_text() for p in PAGES if p.name != "CHANGELOG.md"}
    texts |= {path.name: docstring(path) for path in [*RECIPES, ROOT / "vireid_jax/main.py"]}
    return {
        (name, key)
        for name, text in texts.items()
        for key in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)(?![\w.]*\*)", text)
    }


def test_every_config_key_in_the_texts_is_a_key():
    mentioned = config_keys()
    assert {"README.md", "docs/data.md", "docs/fidelity.md"} <= {where for where, _ in mentioned}
    recipes = [importlib.import_module(f"configs.{p.stem}") for p in RECIPES]
    # Some keys belong to some methods or data sets only.
    configs = [recipe.get_config(d).to_dict() for recipe in recipes for d in common.DATASETS]
    for where, key in mentioned - {("main.py", "key"), ("docs/ablations.md", "key")}:
        assert any(_has(config, key.split(".")) for config in configs), (
            f"{where} mentions --config.{key}"
        )


def _has(config, parts):
    return not parts or (parts[0] in config and _has(config[parts[0]], parts[1:]))


def changes():
    """Every --config.key=value in the texts, as the shell hands it over."""
    texts = [path.read_text() for path in PAGES]
    texts += [docstring(path) for path in [*RECIPES, ROOT / "vireid_jax/main.py"]]
    found = re.findall(r"--config\.[\w.]+=(?:\"[^\"]*\"|[^\s`,]+)", "\n".join(texts))
    return sorted({text.replace('"', "").replace("$t", "1") for text in found})


def takes(recipe, dataset, change):
    """Whether the command line of a recipe takes a change; else why not."""
    argv = ["vireid", f"--config={recipe}:{dataset}", change]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, ValueError) as error:
        return f"{recipe.stem}:{dataset}: {error}"
    return None


def test_the_command_line_takes_every_change_in_the_texts():
    wrong = []
    for change in changes():
        if re.match(r"--config\.(key|KEY)=", change):
            continue
        # Some keys belong to some methods or data sets only.
        pairs = itertools.product(RECIPES, common.DATASETS)
        refused = [refusal for pair in pairs if (refusal := takes(*pair, change))]
        if len(refused) == len(RECIPES) * len(common.DATASETS):
            wrong.append(f"{change}: {refused[-1]}")
    assert not wrong, "\n".join(wrong)


def test_every_option_in_the_tables_of_the_data_sets_is_a_key():
    """The first cells of docs/data.md: `data.images`, `loader.name`, ..."""
    text = (ROOT / "docs/data.md").read_text()
    keys = set(re.findall(r"`((?:data|loader|sampler|eval|init)\.[a-z_.]+)`", text))
    assert {"data.images", "data.trial", "data.test_share", "sampler.rule"} <= keys
    configs = [
        importlib.import_module("configs.smcl").get_config(d).to_dict() for d in common.DATASETS
    ]
    for key in keys:
        assert any(_has(config, key.split(".")) for config in configs), key


def method_options(method):
    """The `name` and `name=value` cells of the last column of fidelity.md's table of a method."""
    text = (ROOT / "docs/fidelity.md").read_text()
    section = text[text.index(f"## {method}") :].split("\n## ")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("| ")]
    options = [re.sub(r"\([^)]*\)", "", row[-1]) for row in rows]  # brackets name lines to edit
    cells = {cell for row in options for cell in re.findall(r"`([^`]+)`", row)}
    return {cell for cell in cells if not cell.startswith("--")}


def changed(method, name, value):
    """The recipe of a method, with another value of an option."""
    config = importlib.import_module(f"configs.{method.lower()}").get_config("sysu")
    assert value != config.method[name], f"{name}={value} of {method} is what we do anyway"
    with config.method.ignore_type():
        config.method[name] = value
    return config


def test_every_option_in_the_table_of_a_method_is_an_option_and_takes_the_value():
    for method in map(str.upper, METHODS):
        config = importlib.import_module(f"configs.{method.lower()}").get_config()
        # "--config.optim.restart_epoch, milestones" names a second key of the optimizer.
        known = set(config.method) | set(config.optim) | set(config.devices)
        cells = method_options(method)
        assert cells, method
        for cell in cells:
            name, _, text = cell.partition("=")
            assert name in known, f"{method}: {cell}"
            if text:
                build.make_method(changed(method, name, _value(text)), 4, 1)


def _value(text):
    """True, 1, 0.1, ("neck",) or a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # "global" is a word of Python's
        return text


def test_every_option_of_a_method_has_its_line():
    """What is left has no counterpart in paper or code."""
    for method in ("IDKL", "AGW", "DEEN", "PDM"):
        named = {cell.partition("=")[0] for cell in method_options(method)}
        options = set(importlib.import_module(f"configs.{method.lower()}").get_config().method)
        shared = {"name", *common_options.Backbone._fields}
        assert options - named <= shared, method


def test_the_table_of_pdm_names_every_value_in_which_its_presets_differ():
    named = {cell.partition("=")[0] for cell in method_options("PDM")}
    get_config = importlib.import_module("configs.pdm").get_config
    for dataset in common.DATASETS:
        code, paper = (get_config(f"{dataset},{p}").method for p in ("code", "paper"))
        assert {name for name in code if paper[name] != code[name]} <= named


def preset_rows():
    """(options, what paper has, what official has) of docs/idkl.md's table of differences."""
    text = (ROOT / "docs/idkl.md").read_text()
    section = text[text.index("## What differs") :]
    table = section[: section.index("| recipe |")]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    return [
        (re.findall(r"`(\w+)`", row[3]), *row[4:])
        for row in rows
        if len(row) == 6 and row[3].startswith("`") and row[0] != "topic"
    ]


def test_the_presets_of_idkl_are_what_the_page_says():
    get_config = importlib.import_module("configs.idkl").get_config
    for names, *cells in preset_rows():
        for preset, cell in zip(("paper", "official"), cells, strict=True):
            dataset = "regdb" if cell.startswith("on RegDB ") else "sysu"
            found = cell.removeprefix("on RegDB ").replace("`", "")
            found = [_value(found)] if len(names) == 1 else [_value(v) for v in found.split(", ")]
            method = get_config(f"{dataset},{preset}").method
            assert found == [method[name] for name in names], (preset, names)


def test_the_page_shows_every_option_in_which_the_presets_of_idkl_differ():
    get_config = importlib.import_module("configs.idkl").get_config
    shown = {name for names, *_ in preset_rows() for name in names}
    for dataset in common.DATASETS:
        paper, official = (get_config(f"{dataset},{p}").method for p in ("paper", "official"))
        assert {name for name in paper if paper[name] != official[name]} <= shown


def test_the_recipes_that_the_texts_ask_for_exist():
    """configs/NAME.py:WORDS wherever a page or a recipe has it."""
    texts = [*(path.read_text() for path in PAGES), *map(docstring, RECIPES)]
    texts.append(docstring(ROOT / "configs/tables.py"))
    found = set(re.findall(r"configs/(\w+)\.py:([\w,./]+(?::\w+)?)", "\n".join(texts)))
    found = {(name, arg.rstrip(".,")) for name, arg in found}
    assert {("idkl", "sysu,official"), ("tables", "mun/3/both:sysu")} <= found
    for name, arg in found:
        if not re.search("[A-Z]", arg):  # a place to fill in
            importlib.import_module(f"configs.{name}").get_config(arg)


def test_nothing_is_left_to_fill_in():
    for path in PAGES:
        assert not re.findall(r"@@\w*|TODO|FIXME|XXX|\bTBD\b", path.read_text()), path.name


def run_blocks(path):
    """A page's Python blocks one after the other, as a reader would type them."""
    names: dict = {"__name__": "page"}
    found = blocks(path, "python")
    for block in found:
        exec(compile(block, path.name, "exec"), names)
    return len(found)


def test_the_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sum(run_blocks(path) for path in PAGES if path.name != "python.md") >= 2
    assert "mAP 0.953, rank-1 1.000" in capsys.readouterr().out  # README.md


@pytest.mark.slow
def test_the_blocks_of_the_page_on_python_run(tmp_path, monkeypatch, one_device):
    monkeypatch.chdir(tmp_path)
    with plainly():
        assert run_blocks(ROOT / "docs" / "python.md") == 4
