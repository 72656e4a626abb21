"""The rooms of the code, who may import whom, and where flags and prints may stand."""

import ast
import configparser
import re
from pathlib import Path

import pytest

from linseed.scripts.bench import structure

ROOT = Path(__file__).parent.parent
FILES = structure.files(ROOT)

# Lowest first: a room imports those before it, and none after it. Rooms of one line do not import each other.
ORDER = (
    ("linseed/ranges",),
    ("models", "trainer/errors", "configs"),
    ("trainer/files",),
    ("trainer/checksum", "trainer/runtime"),
    ("trainer/data/augment",),
    ("trainer/data",),
    ("trainer/data/sources", "trainer/optim"),
    ("trainer/step",),
    ("trainer/config",),
    ("trainer/weights",),
    ("trainer/run", "trainer/plan"),
    ("trainer/report",),
    ("trainer/programs",),
    ("trainer/experiment", "trainer/portable"),
    ("trainer/evaluation",),
    ("trainer/resume", "trainer/ensemble", "trainer/soup"),
    ("trainer/train",),
    ("trainer/cost", "trainer/tuning/diagnosis"),
    ("trainer/tuning/report",),
    ("trainer/tuning",),
    ("scripts", "scripts/cli", "scripts/gallery"),
    ("scripts/train", "scripts/evaluate", "scripts/tune", "scripts/doctor", "scripts/export", "scripts/verify_resume"),
    ("scripts/predict",),
    ("scripts/gallery/__main__", "scripts/bench"),
    ("scripts/faults",),
    ("scripts/bench/__main__",),
    ("linseed/api",),
    ("linseed",),
    ("linseed/__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def test_every_room_has_its_level_and_imports_only_below_it():
    rooms = structure.between_rooms(ROOT)
    assert set(rooms) - {"trainer"} == set(LEVEL)
    upward = [(room, target) for room in LEVEL for target in rooms[room] if LEVEL[target] >= LEVEL[room]]
    assert not upward


def test_no_circle_and_few_modules_at_the_root():
    assert not structure.circle(structure.arrows(ROOT))
    assert sum(path.parent == Path("trainer") for path in FILES) <= 12


def test_models_need_flax_and_jax_alone_and_configs_ml_collections():
    allowed = {
        "models": {"flax", "jax", "typing", "collections", "functools", "math", "difflib", "numpy", "re"},
        "configs": {"ml_collections", "json", "os"},
    }
    for path in FILES:
        if path.parts[0] in allowed:
            others = {name.split(".")[0] for name in structure.imports(ROOT / path)} - {"linseed"}
            assert others <= allowed[path.parts[0]], path


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] in ("trainer", "models", "configs")], ids=str)
def test_only_scripts_print_run_or_have_flags(path):
    tree = ast.parse((ROOT / path).read_text())
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls and "__main__" not in (ROOT / path).read_text()
    assert not [name for name in structure.imports(ROOT / path) if name.startswith("absl.flags")]


def test_a_text_file_is_utf8_whatever_the_locale():
    for path in FILES:
        for call in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or "encoding" in {keyword.arg for keyword in call.keywords}:
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
            is_text = name == "open" and any(mode in modes for mode in ("r", "w", "a", "x", "r+", "w+", "a+"))
            is_text |= name == "open" and isinstance(call.func, ast.Name) and len(call.args) == 1
            assert not is_text and name not in ("read_text", "write_text"), f"{path}:{call.lineno} names no encoding"


def test_only_runtime_knows_how_devices_are_arranged():
    words = ("jax.pmap", "shard_map", "NamedSharding", "Mesh(", "jax.distributed")
    allowed = {"trainer/runtime/data_parallel.py": set(words), "trainer/runtime/join.py": {"jax.distributed"}}
    for path in FILES:
        if path.parts[0] == "configs":
            continue
        code = ast.unparse(ast.parse((ROOT / path).read_text()))
        docless = "\n".join(line for line in code.splitlines() if '"""' not in line)
        assert {word for word in words if word in docless} <= allowed.get(str(path), set()), path


def _writes(node):
    """Whether a call writes, makes, renames or deletes a file by itself."""
    called = ast.unparse(node.func)
    name = called.rpartition(".")[2]
    texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    texts += [keyword.value.value for keyword in node.keywords if isinstance(keyword.value, ast.Constant)]
    if name == "open":
        return called == "os.open" or any(re.fullmatch("[rwaxbt+]*[wax+][rwaxbt+]*", str(text)) for text in texts)
    if name == "replace":  # that of a string takes two, that of a NamedTuple or a state names
        return called == "os.replace" or len(node.args) == 1 and not node.keywords
    if ast.unparse(node) in ("shutil.disk_usage(disk_of)", "np.save(saved, labels)"):  # the latter into memory
        return False
    deeds = "write_text write_bytes touch mkdir makedirs unlink rmdir remove rename renames symlink_to hardlink_to"
    return name in deeds.split() or called.startswith(("shutil.", "np.save"))


def test_only_one_module_of_trainer_writes_files():
    for path in FILES:
        if path.parts[0] == "trainer" and path != Path("trainer/files.py"):
            calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)]
            assert not [ast.unparse(node) for node in calls if _writes(node)], path


@pytest.mark.parametrize(
    "code",
    ['open(path, "w")', 'path.open("ab")', 'path.open(mode="r+")', "os.open(path, os.O_WRONLY)", "path.write_text(t)"]
    + ["path.replace(to)", "os.replace(a, b)", "path.rename(to)", "shutil.copyfile(a, b)", "np.savez(path, a=a)"],
)
def test_a_call_that_writes_is_seen(code):
    assert _writes(ast.parse(code, mode="eval").body)


def test_no_file_without_a_concept():
    names = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in FILES if path.stem in names]


def test_the_wheel_holds_every_package_but_those_that_measure_and_break():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {f"linseed.{path.parent}".replace("/", ".") for path in FILES if path.name == "__init__.py"}
    left_out = {"linseed.linseed", "linseed.scripts.bench", "linseed.scripts.faults"}
    assert set(setup["options"]["packages"].split()) == (packages - left_out) | {"linseed"}


def test_test_files_do_not_import_each_other():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in structure.imports(path) if name.startswith(("tests.", "test_"))], path
