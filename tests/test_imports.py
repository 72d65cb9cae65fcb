"""The import rules of the package, held over the syntax trees of its files."""

import ast
import functools
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vireid_jax"

# Imports flow one way: a file imports from its own layer's row or from rows above it.
LAYERS = [
    ["types", "options"],
    ["nets", "losses", "metrics", "data", "synthetic", "weights", "optim", "runtime"],
    ["methods", "embedding", "visual"],
    ["evaluate"],
    ["build"],
    ["train"],
    ["main"],
    ["ablation"],
]
# A command that has its place with what it is about.
COMMANDS = {"synthetic/pretrain.py": "ablation"}
HEAVY = ("tensorflow", "tensorflow_datasets", "torch", "clu.metric_writers", "clu.periodic_actions")
# Evaluators and samplers are usable, and fast to start, without jax.
NUMPY_ONLY = ["metrics", "data/sampler", "data/arrays.py"]
TF_FILES = ["data/tfdata.py"]


def files(folder=PACKAGE):
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


@functools.cache
def imports(path, *, module_level_only=False):
    """Absolute names of the modules that a file imports, as far as syntax can tell."""
    tree = ast.parse(path.read_text(), str(path))
    relative = path.relative_to(ROOT).with_suffix("").parts
    package = relative[:-1]
    nodes = _module_level(tree) if module_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from a import b`: b is a module or a name in a; both are held to the rules.
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def _module_level(tree):
    """Statements that run at import: all but function bodies and `if TYPE_CHECKING`."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        yield node
        todo += ast.iter_child_nodes(node)


def under(name, prefixes):
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def part(name):
    """vireid_jax.data.arrays -> data; None for what is not a part of the package."""
    head, _, rest = name.partition(".")
    return rest.split(".")[0] if head == "vireid_jax" and rest else None


def layer(name):
    return next((n for n, row in enumerate(LAYERS) if name in row), None)


def test_every_part_has_a_layer():
    parts = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in files()} - {"__init__"}
    placed = {name for row in LAYERS for name in row}
    assert parts == placed, "add a new part to LAYERS, after what it imports"


def test_imports_flow_one_way():
    offenders = {}
    for path in files():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        own = COMMANDS.get(path.relative_to(PACKAGE).as_posix(), own)
        names = imports(path)
        if own == "__init__":
            # The public names load on first use: importing the package starts nothing.
            bad = {n for n in imports(path, module_level_only=True) if under(n, ["jax", "flax"])}
        else:
            parts = {n: part(n) for n in names}
            bad = {n for n, p in parts.items() if layer(p) is not None and layer(p) > layer(own)}
            bad |= {n for n in names if under(n, ["configs", "tests", "benchmarks", "launch"])}
        if bad:
            offenders[str(path.relative_to(PACKAGE))] = sorted(bad)
    assert not offenders


def test_tensorflow_and_torch_stay_out():
    """Lazily they may be asked for, but torch never is: the package does not depend on it."""
    offenders = {}
    for path in files():
        name = str(path.relative_to(PACKAGE))
        bad = {n for n in imports(path, module_level_only=True) if under(n, HEAVY)}
        bad = set() if name in TF_FILES else bad | {n for n in imports(path) if under(n, ["torch"])}
        if bad:
            offenders[name] = sorted(bad)
    assert not offenders


def test_methods_do_not_import_each_other():
    folders = [p for p in (PACKAGE / "methods").iterdir() if (p / "method.py").exists()]
    assert len(folders) >= 6
    for folder in folders:
        others = [f"vireid_jax.methods.{p.name}" for p in folders if p != folder]
        for path in files(folder):
            assert not {n for n in imports(path) if under(n, others)}, path


def test_numpy_only_parts_import_no_jax():
    for rule in NUMPY_ONLY:
        paths = [p for p in files() if str(p.relative_to(PACKAGE)).startswith(rule)]
        assert paths, rule
        for path in paths:
            bad = {n for n in imports(path) if under(n, ["jax", "flax", "optax", "orbax"])}
            assert not bad, path


def test_orbax_is_used_by_checkpoints_alone():
    users = {p.name for p in files() if any(under(n, ["orbax"]) for n in imports(p))}
    assert users == {"checkpoint.py"}


def test_the_loop_knows_no_method_data_set_or_protocol():
    source = (PACKAGE / "train.py").read_text()
    names = imports(PACKAGE / "train.py")
    assert not {n for n in names if part(n) in ("methods", "data", "metrics", "nets", "losses")}
    assert not {n for n in names if under(n, HEAVY)}
    words = {node.id.lower() for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    for name in ("smcl", "sysu", "regdb", "llcm", "synthetic"):
        assert not {w for w in words if name in w}
        assert f'"{name}' not in source.lower()


def test_configs_import_nothing_of_the_package():
    paths = files(ROOT / "configs")
    assert paths
    allowed = {"ml_collections", "configs"} | set(sys.stdlib_module_names)
    for path in paths:
        assert {n.split(".")[0] for n in imports(path)} <= allowed, path


def test_no_configuration_of_jax_at_import():
    """Importing the package must not change the process of who imports it."""
    for path in files():
        for node in _module_level(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert "jax.config.update" not in called, path


def test_the_rules_can_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "vireid_jax" / "methods" / "x.py"
    path.parent.mkdir(parents=True)
    lazily = "def f():\n    import tensorflow as tf\n"
    path.write_text(f"import torch\nfrom . import a\nfrom ..b import c\n{lazily}")
    assert {"torch", "vireid_jax.methods.a", "vireid_jax.b.c", "tensorflow"} <= imports(path)
    assert "tensorflow" not in imports(path, module_level_only=True)
    assert under("torch.nn", HEAVY) and not under("torchvision", HEAVY)
