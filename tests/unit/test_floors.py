"""The house stands: every module of rnnjax imports only from floors below its own, at the top of its file."""

import ast
from fnmatch import fnmatch
from functools import lru_cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

HOUSE = Path(__file__).parents[2] / "rnnjax"
FLOORS = (
    ("checked", "exporting"),
    ("arrays", "compiled", "hints", "named", "refusal"),
    ("check", "runtime_error"),
    ("random",),
    ("initialise",),
    ("cell", "flat", "marks", "map_steps"),
    ("gated_cell", "matrix_cell"),
    ("engine", "function", "mask", "segments"),
    ("cells/*", "kernels/*", "network"),
    ("engines/*", "weights"),
    ("engines/auto",),
    ("engines/__init__",),
    ("unroll",),
    ("explain", "prepare"),
    ("networks/*", "trees/*"),
    ("regularise/*",),
    ("models/*", "gradients/*", "diagnose/*"),
    ("training/*",),
    ("convert/*",),
    ("__init__",),
)
WITHIN = (
    "cells/*",
    "kernels/*",
    "engines/newton/*",
    "engines/chunked/*",
    "models/*",
    "networks/*",
    "trees/*",
    "regularise/*",
    "gradients/*",
    "diagnose/*",
    "training/*",
    "convert/*",
)  # rooms whose files may import each other; engines/auto stands above the engines
NEVER = (  # though the way is down
    ("cells/*", "engine"),
    ("cells/*", "kernels/*"),
    ("kernels/*", "engine"),
    ("kernels/*", "cells/*"),
    ("engines/*", "cells/*"),
)


def fits(edge: tuple[str, str], patterns: tuple[str, str]) -> bool:
    return all(fnmatch(module, pattern) for module, pattern in zip(edge, patterns, strict=True))


def floor(module: str) -> int:
    """The highest floor that names the module: `engines/auto` is above `engines/*`."""
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


class House(NamedTuple):
    """The files of rnnjax, and what they import from it."""

    trees: dict[Path, ast.Module]
    edges: set[tuple[str, str]]


@lru_cache
def house() -> House:
    trees = {path: ast.parse(path.read_text()) for path in sorted(HOUSE.rglob("*.py"))}
    return House(
        trees, {(name(path), module) for path, tree in trees.items() for module in imports(path, list(ast.walk(tree)))}
    )


def test_imports_go_down():
    edges = house().edges
    assert {("unroll", "check"), ("cells/lstm", "initialise"), ("networks/stack", "unroll")} <= edges
    assert {
        ("engines/fused", "kernels/recurrence/primitive"),
        ("kernels/recurrence/primitive", "kernels/recurrence/batching"),
    } <= edges
    assert faults(edges) == []


def test_no_circle():
    files, edges = house()
    graph = {module: {below for above, below in edges if above == module} for module in map(name, files)}
    assert len(list(TopologicalSorter(graph).static_order())) == len(files)


def opening_faults(path: Path, tree: ast.Module) -> list[tuple[str, str]]:
    """What is wrong with how a file opens, as pairs (file, fault)."""
    hidden = [node for top in tree.body if not isinstance(top, ast.Import | ast.ImportFrom) for node in ast.walk(top)]
    found = [f"imports {module} below its top" for module in imports(path, hidden)]
    if not ast.get_docstring(tree):
        found.append("has no docstring")
    elif tree.body[0].lineno != 1:
        found.append(f"begins with its docstring in line {tree.body[0].lineno}")
    return [(name(path), fault) for fault in found]


def test_every_file_opens_with_its_docstring_and_its_imports():
    assert len(house().trees) > 100
    assert [fault for path, tree in house().trees.items() for fault in opening_faults(path, tree)] == []


def test_a_bad_opening_is_reported():
    source = "# rnnjax\n'''A cell.'''\ndef late():\n    from ..unroll import unroll\n    return unroll\n"
    path = HOUSE / "cells" / "lstm.py"
    late = ("cells/lstm", "imports unroll below its top")
    assert opening_faults(path, ast.parse(source)) == [late, ("cells/lstm", "begins with its docstring in line 2")]
    assert opening_faults(path, ast.parse("pass")) == [("cells/lstm", "has no docstring")]
    assert opening_faults(path, ast.parse("'''A cell.'''\nfrom ..unroll import unroll\n")) == []


@pytest.mark.parametrize(
    "edge",
    [
        ("arrays", "cell"),
        ("cells/lstm", "engine"),
        ("cells/lstm", "unroll"),
        ("cells/lstm", "kernels/recurrence/reference"),
        ("kernels/recurrence/reference", "cells/lstm"),
        ("kernels/recurrence/reference", "engine"),
        ("kernels/recurrence/primitive", "engines/fused"),
        ("engines/scan", "cells/lstm"),
        ("engines/scan", "engines/auto"),
        ("engines/scan", "engines/unrolled"),
        ("check", "network"),
        ("networks/stack", "models/classifier"),
        ("regularise/penalties", "models/language"),
        ("unroll", "__init__"),
    ],
)
def test_a_bad_import_is_reported(edge):
    assert faults(house().edges | {edge}) == [edge]
