"""Newton's iterations, for many sequences at once, each of which stops soon after it has converged."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...arrays import PyTree, select
from ...cell import describe
from . import time
from .blocks import Blocks, Vectors
from .jacobian import AbstractJacobian
from .memory import shortage
from .problem import Problem
from .trust import damped_step

FEWER = 4  # once a fourth of the rows is left, only those are computed
EASED, STIFFENED = 0.1, 10.0  # factors of the damping after a step that lowered the merit, and after one that did not
LEAST = 1e-12  # the smallest damping: a smaller one would have no effect


class Settings(NamedTuple):
    """`Newton`'s options, with the tolerance for the state's dtype."""

    jacobian: AbstractJacobian
    iterations: int
    tolerance: float
    damping: float | None
    axis: str | None


class Iterate(NamedTuple):
    """An approximate solution and its residual. For many sequences, every field has a leading axis."""

    x: Vectors
    after: Vectors  # one step from each state before
    jacobians: Blocks
    merit: Float[Array, "..."]  # the sum of the squares of after - x
    residual: Float[Array, "..."]  # the largest entry of |after - x| / (1 + |x|)
    damping: Float[Array, "..."]
    taken: Int[Array, "..."]
    done: Bool[Array, "..."]


class Solution(NamedTuple):
    """All states over time, and whether they have converged. The residual is NaN where the iterations overflowed."""

    states: Any
    iterations: Int[Array, "..."]
    residual: Float[Array, "..."]
    converged: Bool[Array, "..."]


def solve(settings: Settings, problem: Problem, axes: PyTree[int | None], rows: int) -> Solution:
    """The solutions of `rows` problems; `axes` is 0 for each array of `problem` with an axis of rows, else None."""
    over_rows = partial(jax.vmap, axis_size=rows)
    iterate = over_rows(partial(_start, settings), in_axes=(axes,))(problem)
    jacobians = iterate.jacobians
    damped, remedy = settings.damping is not None, settings.jacobian.remedy
    reason = shortage(jacobians.shape, jacobians.dtype.itemsize, damped, remedy)
    if reason is not None:  # for all rows together; `plan` checks one row
        raise ValueError(f"engine: Newton cannot run {describe(problem.cell)}: {reason}.")
    iterate = _iterate(settings, problem, axes, iterate)
    return over_rows(partial(_finish, settings), in_axes=(axes, 0))(problem, iterate)


def _start(settings: Settings, problem: Problem) -> Iterate:
    """One step from `start` at every t: close to the solution if the cell's memory is short."""
    jacobian = settings.jacobian
    step = lambda u, marks: jacobian.pack(problem.step(problem.cell.step, problem.start, u, marks))  # noqa: E731
    guess = problem.over_time(step)
    damping = jnp.full((), settings.damping or 0.0, guess.real.dtype)
    return _measure(settings, problem, guess, damping, jnp.zeros((), jnp.int32))


def _measure(settings: Settings, problem: Problem, x: Vectors, damping: Array, taken: Array) -> Iterate:
    """The states `x` as an iterate."""
    after, jacobians = settings.jacobian.evaluate(problem, befores(settings, problem, x))
    size = jnp.abs(after - x)
    residual = time.largest(size / (1 + jnp.abs(x)), settings.axis)
    done = (residual <= settings.tolerance) | (taken >= settings.iterations) | ~jnp.isfinite(residual)
    return Iterate(x, after, jacobians, time.total(size * size, settings.axis), residual, damping, taken, done)


def befores(settings: Settings, problem: Problem, x: Vectors) -> Vectors:
    """The states before each step, from the states `x` after each step."""
    return time.before(settings.jacobian.pack(problem.start), x, settings.axis)


def _iterate(settings: Settings, problem: Problem, axes: PyTree[int | None], iterate: Iterate) -> Iterate:
    """Iterate until all rows are done. When few rows are left, only those are computed."""
    rows = iterate.done.shape[0]
    fewer = rows // FEWER
    advance = jax.vmap(partial(_advance, settings), in_axes=(axes, 0), axis_size=rows)

    def body(iterate: Iterate) -> Iterate:
        return select(iterate.done, iterate, advance(problem, iterate))

    iterate = jax.lax.while_loop(lambda iterate: jnp.sum(~iterate.done) > fewer, body, iterate)
    if fewer == 0:
        return iterate
    left = jnp.argsort(iterate.done, stable=True)[:fewer]
    part = jax.tree.map(lambda leaf, axis: leaf if axis is None else leaf[left], problem, axes)
    rest = _iterate(settings, part, axes, jax.tree.map(lambda leaf: leaf[left], iterate))
    return jax.tree.map(lambda leaf, rest: leaf.at[left].set(rest), iterate, rest)


def _advance(settings: Settings, problem: Problem, iterate: Iterate) -> Iterate:
    """One iteration. The damping decreases after a step that lowered the merit, and increases after others. A step to
    NaN is not taken.

    The damping is at most the given one, with which the solved prefix of time grows, if slowly. The merit may increase
    for a while on the way to the solution, and without an upper bound the damping would then stop all progress.
    """
    taken = iterate.taken + 1
    if settings.damping is None:
        return _measure(settings, problem, iterate.x + _newton_step(settings, iterate), iterate.damping, taken)
    step = damped_step(iterate.jacobians, iterate.after - iterate.x, iterate.damping, settings.axis)
    moved = _measure(settings, problem, iterate.x + step, iterate.damping, taken)
    at_most = iterate.damping >= settings.damping  # the next step would be the same
    stayed = iterate._replace(taken=taken, done=(taken >= settings.iterations) | at_most)
    change = jnp.where(moved.merit < iterate.merit, EASED, STIFFENED)
    damping = jnp.clip(iterate.damping * change, LEAST, settings.damping)
    return select(jnp.isfinite(moved.merit), moved, stayed)._replace(damping=damping)


def _newton_step(settings: Settings, iterate: Iterate) -> Vectors:
    """The change of the states that would solve the equations if they were linear."""
    residuals = iterate.after - iterate.x
    return time.recurrence(iterate.jacobians, residuals, jnp.zeros_like(residuals[0]), settings.axis)


def _finish(settings: Settings, problem: Problem, iterate: Iterate) -> Solution:
    """The solution after one more step, for which everything is computed already; without it if it is not small."""
    step = _newton_step(settings, iterate)
    length = time.largest(jnp.abs(step) / (1 + jnp.abs(iterate.x)), settings.axis)
    converged = iterate.residual <= settings.tolerance
    x = jnp.where(converged & (length <= settings.tolerance**0.5), iterate.x + step, iterate.x)
    states = jax.vmap(lambda x: settings.jacobian.unpack(x, problem.start))(x)
    return Solution(states, iterate.taken, iterate.residual, converged)
