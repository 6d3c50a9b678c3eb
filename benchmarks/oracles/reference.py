"""Parts of other people's files, run from where these are, and the comparison with them."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np


class _Doubles(ast.NodeTransformer):
    """`.double` in place of `.float`: such code casts to float32 wherever it wants precision."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        return ast.copy_location(ast.Attribute(node.value, "double", node.ctx), node) if node.attr == "float" else node


def parts(file: Path, names: Sequence[str], given: dict[str, Any], *, doubles: bool = False) -> dict[str, Any]:
    """The functions, classes and constants of these names, made by the source of a file in the namespace `given`.

    Files of models do other things when they are imported: compile for a GPU, read weights. Of several definitions of a
    name the last one is taken.
    """
    tree = ast.parse(file.read_text())
    tree = _Doubles().visit(tree) if doubles else tree
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    found = {name: node for node in statements for name in _defines(node) if name in names}
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{file}: expected definitions of {missing}, found none. Pass the folder of a newer clone")
    module = ast.Module([found[name] for name in names], type_ignores=[])
    exec(compile(module, str(file), "exec"), given)
    return given


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def difference(got: Any, expected: Any) -> float:
    """The largest difference of two trees, relative to the largest expected entry of each array if that is above 1."""
    worst = 0.0
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, "float64"), np.asarray(other, "float64")
        assert one.shape == other.shape
        worst = max(worst, float(np.max(abs(one - other)) / max(1.0, np.max(abs(other)))))
    return worst


def gradient_of(tensor: Any) -> np.ndarray:
    """The gradient of a tensor of torch, which has one."""
    return tensor.grad.numpy()


def show(record: dict[str, Any]) -> dict[str, Any]:
    """The record, printed as a row of layer, dtype and the largest differences."""
    kinds = {"outputs": None, "states": None, "gradients": None} | record
    columns = [f"{kind} {kinds[kind]:.1e}" for kind in ("outputs", "states", "gradients") if kinds[kind] is not None]
    print(f"{record['layer']:24} {record['dtype']:8} {record['reference']:42} {', '.join(columns)}", flush=True)
    return record
