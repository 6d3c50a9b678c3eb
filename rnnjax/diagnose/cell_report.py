"""Holds a user's cell to the laws, and says which it breaks and where to look."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import check
from ..arrays import PyTree, State
from ..cell import AbstractCell, describe
from ..checked import Checked
from ..engine import Plan
from ..refusal import Refusal
from .cell_laws import Law, Run, T, laws_of, reached, whole

TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}  # of the narrowest weights or inputs


class Verdict(NamedTuple):
    """Whether a cell obeys one law. `holds` is None where it was not tried, and `seen` says why."""

    law: str
    holds: bool | None
    error: float  # the largest difference of a value or gradient, relative to the largest entry of its array or to 1
    seen: str  # the error, the refusal, or where to look

    def __str__(self) -> str:
        word = {True: "held", False: "BROKEN", None: "not tried"}[self.holds]
        error = "" if np.isnan(self.error) else f"largest error {self.error:.1e}"
        return f"{word:<10} {self.law:<26} {'; '.join(filter(None, (error, self.seen)))}".rstrip()


class CellReport(NamedTuple):
    """What `check_cell` found. `str` is the report in words, a line for each law."""

    name: str
    tolerance: float
    verdicts: tuple[Verdict, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the broken laws; empty for a cell in order."""
        return tuple(verdict.law for verdict in self.verdicts if verdict.holds is False)

    def __str__(self) -> str:
        tried = sum(verdict.holds is not None for verdict in self.verdicts)
        found = f"breaks {len(self.broken)} of {tried} laws" if self.broken else f"holds all {tried} laws"
        return "\n".join([f"{self.name} {found}, to {self.tolerance:g}:", *map(str, self.verdicts)])

    __repr__ = __str__


def check_cell(cell: Checked[AbstractCell]) -> CellReport:
    """Hold `cell` to the laws that every engine relies on: `print(check_cell(MyCell(3, 8, key=key)))`.

    Random inputs of 6 steps, and a state that the cell has reached, are run in pairs of ways that must give the same
    values and the same gradients by weights, state and inputs:

    input_type     gives the shape and the dtype of one step's input; only reported where it does not
    state          `step` returns a state of the structure, shapes and dtypes that it was given
    finite         values and gradients of ordinary inputs are finite
    step           a plain `jax.lax.scan` over `step` equals `unroll`
    streaming      two parts, the state passed on, equal the whole
    length         padding changes nothing, NaN or not
    resets         a reset equals two sequences, and NaN before it changes nothing after
    reverse        the valid part run backwards equals the flipped sequence
    vmap           a batch equals its sequences one by one
    pointwise      of a gated cell: `step` is what its pointwise makes of W x + b and R h
    coefficients   of a linear cell: `step` is a h + b
    diagonal       of a diagonal cell: no unit sees the past of another
    engine ...     every engine that does not refuse the cell equals `Scan`

    Returns a `CellReport`, which prints a line for each law; `report.broken` names the broken ones. A law whose run
    raises is broken, and its line shows the error. Use a small cell: some 20 programs are compiled, which takes ten to
    twenty seconds. Raises TypeError for what is not a cell.
    """
    if not isinstance(cell, AbstractCell):
        raise TypeError(
            f"cell: expected an AbstractCell, got {cell!r}. Pass a cell, such as rnnjax.LSTM(3, 8, key=key)"
        )
    try:
        xs = _inputs(cell.input_type())
    except Exception as error:
        return CellReport(describe(cell), _tolerance(cell), (_raised("input_type", error),))
    tolerance = _tolerance((cell, xs))
    state_law = _attempt("state", lambda: _state_kept(cell, xs))
    if not state_law.holds:
        return CellReport(describe(cell), tolerance, (state_law,))
    state = eqx.filter_jit(reached)(cell, xs)
    outcome = cache(partial(_outcome, cell, state, xs))  # most laws share a run
    finite = _attempt("finite", lambda: _finite(outcome(whole)))
    refusal = lambda engine: None if engine is None else engine.plan(cell, xs)  # noqa: E731
    judge = lambda law: _judge(law, refusal(law.engine), outcome, tolerance)  # noqa: E731
    verdicts = [_attempt(law.name, partial(judge, law)) for law in laws_of(cell)]
    return CellReport(describe(cell), tolerance, (state_law, finite, *verdicts))


def _inputs(step: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """Random inputs of T steps: normal numbers, or zeros and ones where they are no numbers with a fraction."""
    generator = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> Array:
        shape = (T, *leaf.shape)
        drawn = (
            generator.normal(size=shape) if jnp.issubdtype(leaf.dtype, jnp.inexact) else generator.random(shape) < 0.5
        )
        return jnp.asarray(drawn.astype(leaf.dtype))

    return jax.tree.map(draw, step)


def _tolerance(tree: PyTree) -> float:
    names = {leaf.real.dtype.name for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))}
    return max((TOLERANCE.get(name, TOLERANCE["float32"]) for name in names), default=TOLERANCE["float32"])


def _attempt(name: str, judge: Any) -> Verdict:
    """The verdict, with the error in it if the cell raises one: a report has a line for each law."""
    try:
        return judge()
    except Exception as error:  # whatever a user's cell may raise
        return _raised(name, error)


def _raised(name: str, error: Exception) -> Verdict:
    lines = str(error).strip().splitlines() or [""]
    return Verdict(name, False, float("nan"), f"raised {type(error).__name__}: {lines[0]}")


def _state_kept(cell: AbstractCell, xs: PyTree[Array]) -> Verdict:
    before = jax.eval_shape(cell.initial)
    after = jax.eval_shape(lambda: cell.step(cell.initial(), jax.tree.map(lambda leaf: leaf[0], cell.project(xs))))
    same = check.alike(after, before)
    seen = f"step: expected a state like initial(), {check.show(before)}, got {check.show(after)}"
    return Verdict("state", same, float("nan"), "" if same else f"{seen}. Return its shapes and dtypes, by astype")


def _finite(outcome: PyTree) -> Verdict:
    holds = all(np.isfinite(leaf).all() for leaf in map(np.asarray, jax.tree.leaves(outcome)))
    advice = "" if holds else "look at roots, logarithms and divisions: jax.config.update('jax_debug_nans', True)"
    return Verdict("finite", holds, float("nan"), advice)


def _judge(law: Law, plan: Plan | Refusal | None, outcome: Callable[[Run], PyTree], tolerance: float) -> Verdict:
    if isinstance(plan, Refusal):
        return Verdict(law.name, None, float("nan"), str(plan))
    error = _difference(outcome(law.got), outcome(law.expected))
    holds = error <= tolerance
    return Verdict(law.name, holds, error, "" if holds else f"look at {law.look_at}")


@eqx.filter_jit
def _outcome(cell: AbstractCell, state: State, xs: PyTree[Array], run: Run) -> PyTree:
    """The gradients of a loss on the values of a run, by the numbers in cell, state and inputs, and the values."""
    numbers, others = eqx.partition((cell, state, xs), eqx.is_inexact_array)

    def loss(numbers: PyTree) -> tuple[Array, PyTree]:
        values = run(*eqx.combine(numbers, others))
        return _contract(values), values

    return jax.grad(loss, has_aux=True)(numbers)


def _contract(tree: PyTree) -> Array:
    """A scalar that sees every number of `tree`, each with a weight of its own."""
    total = jnp.zeros((), float)
    for leaf in jax.tree.leaves(tree):
        for part in (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                total += jnp.vdot(jnp.cos(0.7 * jnp.arange(leaf.size)).astype(float), part.ravel().astype(float))
    return total


def _difference(got: PyTree, expected: PyTree) -> float:
    """The largest difference, relative to the largest entry of each array or to 1; infinite where one alone is NaN."""
    return max(map(_difference_of, jax.tree.leaves(got), jax.tree.leaves(expected)), default=0.0)


def _difference_of(got: Array, expected: Array) -> float:
    wide = "complex128" if jnp.iscomplexobj(got) else "float64"
    one, other = np.asarray(got).astype(wide), np.asarray(expected).astype(wide)
    known = np.isfinite(one) & np.isfinite(other)
    if one.shape != other.shape or not (known | (np.isnan(one) & np.isnan(other)) | (one == other)).all():
        return float("inf")
    scale = max(1.0, float(np.max(np.abs(other[known]), initial=0.0)))
    return float(np.max(np.abs(one[known] - other[known]), initial=0.0)) / scale
