"""The structure of the code in numbers: rooms, arrows between them, cycles, lines.

python -m scripts.bench.structure            # of this checkout
python -m scripts.bench.structure OTHER      # of another one, say of an earlier commit

A room is a folder of modules. In linseed/, trainer/ and scripts/ each module directly in the folder is its own room. An
arrow goes from a room to each other room that it imports; tests/test_architecture.py allows none upward.
"""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

TOPS = ("linseed", "scripts", "configs", "trainer", "models")
OWN_ROOMS = ("linseed", "trainer", "scripts")  # each module directly in these is a room


def files(root: Path) -> list[Path]:
    """The modules of the checkout at `root`, relative to it."""
    return sorted(path.relative_to(root) for top in TOPS for path in (root / top).rglob("*.py"))


def room(path: Path) -> str:
    """The room of a module: `trainer/run`, `trainer/train`."""
    own = path.stem == "__main__" or str(path.parent) in OWN_ROOMS and path.stem != "__init__"
    return str(path.with_suffix("") if own else path.parent)


def imports(path: Path) -> Iterator[str]:
    """The dotted names that `path` imports, anywhere in the file: `a` of `import a`, `a.b` of `from a import b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}: relative import")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(root: Path) -> dict[Path, set[Path]]:
    """For each module of the checkout, those of our modules that it imports."""
    known = {}
    for path in files(root):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        known |= {name: path, f"linseed.{name}": path}
    found = {path: set() for path in files(root)}
    for path, targets in found.items():
        for name in imports(root / path):
            target = known.get(name) or known.get(name.rpartition(".")[0])  # a module, or something in a module
            if target not in (None, path):
                targets.add(target)
    return found


def between_rooms(root: Path) -> dict[str, set[str]]:
    """For each room, the other rooms that it imports."""
    found = {}
    for path, targets in arrows(root).items():
        found.setdefault(room(path), set()).update(room(target) for target in targets)
    return {name: targets - {name} for name, targets in found.items()}


def circle(graph: dict) -> list:
    """The nodes of a cycle of `graph`, [] if there is none."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def levels(graph: dict) -> int:
    """The length of the longest path along arrows, in nodes; `graph` has no cycle."""
    depth = {}
    for node in graphlib.TopologicalSorter(graph).static_order():
        depth[node] = 1 + max((depth[below] for below in graph.get(node, ())), default=0)
    return max(depth.values())


def lines(root: Path, pattern: str) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in root.glob(pattern))


def main(root: Path):
    rooms, modules = between_rooms(root), arrows(root)
    print(f"rooms {len(rooms)}, arrows {sum(map(len, rooms.values()))}, modules {len(modules)}")
    print(f"modules directly in trainer/: {sum(path.parent.name == 'trainer' for path in modules)}")
    for what, graph in (("rooms", rooms), ("modules", modules)):
        found = circle(graph)
        print(
            f"{what}: "
            + (f"a circle, {' -> '.join(map(str, found))}" if found else f"no circle, {levels(graph)} levels")
        )
    code = sum(lines(root, f"{top}/**/*.py") for top in TOPS if top != "configs")
    print(f"lines: code {code:,}, configs {lines(root, 'configs/*.py'):,}, tests {lines(root, 'tests/**/*.py'):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
