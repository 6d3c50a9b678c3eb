"""The house stands: every module of rnnjax imports only from floors below its own, at the top of its file."""

import ast
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2] / "rnnjax"
FLOORS = (
    ("arrays",),
    ("random",),
    ("initialise",),
    ("cell", "flat", "marks"),
    ("kernel", "engine"),
    ("cells/*", "kernels/*", "network", "check"),
    ("engines/*",),
    ("engines/auto",),
    ("unroll",),
    ("compose", "networks/*", "trees/*"),
    ("regularise/*",),
    ("models/*", "gradients/*", "diagnose/*"),
    ("training/*", "convert/*"),
    ("__init__",),
)
WITHIN = (
    "cells/*",
    "kernels/*",
    "engines/newton/*",
    "models/*",
    "networks/*",
    "trees/*",
    "regularise/*",
    "gradients/*",
    "diagnose/*",
    "training/*",
)  # rooms whose files may import each other; engines/auto stands above the engines
NEVER = (  # though the way is down
    ("cells/*", "engine"),
    ("cells/*", "kernel"),
    ("cells/*", "kernels/*"),
    ("kernels/*", "engine"),
    ("kernels/*", "cells/*"),
    ("engines/*", "cells/*"),
)


def fits(edge: tuple[str, str], patterns: tuple[str, str]) -> bool:
    return all(fnmatch(module, pattern) for module, pattern in zip(edge, patterns, strict=True))


def floor(module: str) -> int:
    """The highest floor that names the module: `engines/auto` stands above `engines/*`."""
    return max(number for number, rooms in enumerate(FLOORS) for room in rooms if fnmatch(module, room))


def faults(edges: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The imports `(module, imported)` that the floors forbid."""
    up = {edge for edge in edges if floor(edge[1]) >= floor(edge[0]) and not any(fits(edge, (a, a)) for a in WITHIN)}
    return sorted(up | {edge for edge in edges for patterns in NEVER if fits(edge, patterns)})


def name(path: Path) -> str:
    return path.relative_to(HOUSE).with_suffix("").as_posix()


def imports(path: Path, nodes: list[ast.AST]) -> list[str]:
    """What the statements among `nodes` import from the house: `from . import check` means check, not the package."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [module_of(HOUSE.parent, alias.name) for alias in node.names if alias.name.startswith(HOUSE.name)]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(HOUSE.name)):
            start = path.parents[node.level - 1] if node.level else HOUSE.parent
            found += [module_of(start, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names]
    return found


def module_of(start: Path, dotted: str) -> str:
    """The file that a dotted name means: a module, a package, or the one of these that its last part is written in."""
    path = start.joinpath(*dotted.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py", path.parent.with_suffix(".py"), path.parent / "__init__.py")
    return name(next(file for file in files if file.is_file()))


FILES = sorted(HOUSE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
EDGES = {(name(path), module) for path in FILES for module in imports(path, list(ast.walk(TREES[path])))}


def test_imports_go_down():
    assert {("unroll", "check"), ("cells/lstm", "initialise"), ("compose", "unroll")} <= EDGES
    assert {("engines/fused", "kernels/recurrence"), ("kernels/recurrence", "kernels/fold")} <= EDGES
    assert faults(EDGES) == []


def test_no_circle():
    graph = {module: {below for above, below in EDGES if above == module} for module in map(name, FILES)}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_opens_with_its_docstring_and_its_imports(path):
    body = TREES[path].body
    assert ast.get_docstring(TREES[path])
    assert body[0].lineno == 1
    hidden = [node for top in body if not isinstance(top, ast.Import | ast.ImportFrom) for node in ast.walk(top)]
    assert imports(path, hidden) == []


@pytest.mark.parametrize(
    "edge",
    [
        ("arrays", "cell"),
        ("cells/lstm", "engine"),
        ("cells/lstm", "unroll"),
        ("cells/lstm", "kernels/reference"),
        ("kernels/reference", "cells/lstm"),
        ("kernels/reference", "engine"),
        ("kernels/recurrence", "engines/fused"),
        ("engines/scan", "cells/lstm"),
        ("engines/scan", "engines/auto"),
        ("engines/scan", "engines/unrolled"),
        ("check", "network"),
        ("compose", "models/classifier"),
        ("regularise/penalties", "models/language"),
        ("unroll", "__init__"),
    ],
)
def test_a_bad_import_is_reported(edge):
    assert faults(EDGES | {edge}) == [edge]
