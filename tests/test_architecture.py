"""Who may import whom, and where flags and prints may stand."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for top in ("trainer", "models", "configs", "scripts") for path in (ROOT / top).rglob("*.py"))
OURS = {"trainer", "models", "configs", "scripts", "tests"}


def imports(path):
    """Every module that `path` imports, dotted, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def may_import(path, module):
    top = module.split(".")[0]
    package = path.relative_to(ROOT).parts[0]
    if package == "models":
        return top in {"models", "flax", "jax", "typing", "collections", "functools", "math", "difflib"}
    if package == "configs":
        return (
            top == "ml_collections" or module.startswith("configs.variants") or (top, path.stem) == ("json", "replay")
        )
    if package == "trainer":
        if top in {"configs", "scripts", "tests"} or module.startswith("absl.flags") or module == "absl.flags":
            return False
        if top == "models":
            return path == ROOT / "trainer" / "experiment.py"
        inside_tuning = "tuning" in path.relative_to(ROOT).parts
        return inside_tuning or not module.startswith("trainer.tuning")
    return top not in {"tests"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    wrong = [module for module in imports(path) if not may_import(path, module)]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_scripts_print_or_run(path):
    if path.is_relative_to(ROOT / "scripts"):
        return
    tree = ast.parse(path.read_text())
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls
    assert "__main__" not in path.read_text()


def test_only_parallel_knows_how_devices_are_arranged():
    words = ("jax.pmap", "shard_map", "NamedSharding", "Mesh(", "jax.distributed")
    processes = ROOT / "trainer" / "joining.py"
    for path in FILES:
        if path == ROOT / "trainer" / "parallel.py" or path.is_relative_to(ROOT / "configs"):
            continue
        code = ast.unparse(ast.parse(path.read_text()))
        docless = [line for line in code.splitlines() if '"""' not in line]
        for word in words[:4] if path == processes else words:
            assert not any(word in line for line in docless), f"{path} says {word}"


def test_no_file_without_a_concept():
    names = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in FILES if path.stem in names]
