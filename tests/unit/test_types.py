"""Public signatures say what they take, to readers and to type checkers; a user's typed program runs."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import typed_user

import rnnjax

ROOT = Path(__file__).parents[2]
USER = Path(typed_user.__file__)
ARBITRARY = {  # files with arguments of which no more is known: any function, or that JAX, Pallas and ONNX do not type
    "diagnose/plot",
    "gradients/estimator",
    "kernels/pallas",
    "kernels/recurrence/batching",
    "kernels/recurrence/functions",
    "kernels/recurrence/gpu/device",
    "kernels/recurrence/gpu/warp_group",
    "kernels/recurrence/primitive",
    "models/attention",
    "named",
}


@pytest.mark.usefixtures("as_it_comes")
@pytest.mark.parametrize(
    "part",
    [
        typed_user.run,
        pytest.param(typed_user.look, marks=pytest.mark.slow),
        pytest.param(typed_user.train, marks=pytest.mark.slow),
    ],
    ids=lambda part: part.__name__,
)
def test_a_typed_program_runs(part, capsys):
    part(jax.random.key(0))
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_pyright_sees_the_typed_program():
    """`.ci/run` runs pyright, which has to find that file, and to be strict in it."""
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]["include"]
    assert USER.relative_to(ROOT).as_posix() in include
    assert re.search(r"^# pyright: strict$", USER.read_text(), re.MULTILINE)


def public_functions(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """The functions and methods under `node` that a user may call."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.If) and not getattr(child, "name", "").startswith("_"):
            yield from public_functions(child)
        elif isinstance(child, ast.FunctionDef) and (child.name[0] != "_" or child.name in ("__init__", "__call__")):
            yield child


def untyped(tree: ast.AST) -> list[str]:
    """The arguments of public functions that say nothing of their type, or `Any`."""
    found = []
    for function in public_functions(tree):
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        for argument in arguments:
            if argument is None or argument.arg in ("self", "cls"):
                continue
            if argument.annotation is None or re.search(r"\bAny\b", ast.unparse(argument.annotation)):
                found.append(f"{function.name}({argument.arg})")
    return found


def test_public_signatures_have_types():
    house = Path(rnnjax.__file__).parent
    files = {path.relative_to(house).with_suffix("").as_posix(): path for path in sorted(house.rglob("*.py"))}
    found = {name: untyped(ast.parse(path.read_text())) for name, path in files.items()}
    assert {name: arguments for name, arguments in found.items() if arguments and name not in ARBITRARY} == {}
    assert [name for name in sorted(ARBITRARY) if not found[name]] == []
    assert untyped(ast.parse("class A:\n    def f(self, x, *y: Any, z: int): ...\ndef _g(x): ...")) == ["f(x)", "f(y)"]
