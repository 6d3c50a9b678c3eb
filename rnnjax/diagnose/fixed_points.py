"""Fixed points of a cell at a constant input: where its state stands still, or almost."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import check, flat
from ..arrays import PyTree, State
from ..cell import AbstractCell, describe
from ..checked import Checked
from ..compiled import compiled
from .constant_input import at_input, check_cell, check_input, check_starts
from .fixed_point_table import FixedPoints, classify
from .trajectory import Step

NEWTON_STEPS = 30
BATCH = 64  # starts whose Jacobians are in memory at once
NEAR, SAME, ROUNDING = 1e-2, 1e-3, 32.0  # Newton's reach, distance of points that are one, residual in units of epsilon
FALL, PATIENCE = 1e-2, 3  # L-BFGS ends below `slow` after so many steps in which q fell by less than this share of it


class Found(NamedTuple):
    """Where each start has arrived, and its speed q there."""

    vectors: Float[Array, "S D"]
    speeds: Float[Array, " S"]


def fixed_points(
    cell: Checked[AbstractCell],
    x: Checked[PyTree[ArrayLike]],
    starts: Checked[State],
    *,
    steps: Checked[int] = 500,
    slow: Checked[float] = 1e-6,
) -> FixedPoints:
    """The fixed and slow points of `cell` at the constant input `x`, looked for from each of `starts`.

        q(s) = |step(s, x) - s|^2 / 2

    Sussillo & Barak 2013, "Opening the black box" (Neural Computation 25:626). L-BFGS lowers q from every start, and
    where q is at most `slow`, for as long as it still falls; Newton's method then looks for step(s, x) = s close by.
    Points closer than a thousandth of sqrt(D) + |s| are one point.

    cell            any cell; the floating numbers of its state are D
    x               the input of one step, without an axis of time
    starts          S states along a first axis: states that the cell visits, with or without noise
    steps           the largest number of steps of L-BFGS
    slow            q of a slow point: one that Newton's method does not find to be fixed, but that moves as slowly

    A point may be where no state of the cell gets. Weights narrower than float32 round the state, so that no point is
    quite fixed: cast them to float32 or float64 first.

    Returns `FixedPoints`, which prints a table. A start that ends with q > `slow` is not converged: it is in no point,
    and the table says how many there are: often it is at a minimum of q that is no fixed point. Only points near
    `starts` are found. The number of points is known only when it has run, so it cannot be jitted.
    """
    cell = check_cell(cell)
    x, starts = check_input(cell, x), check_starts(cell, starts)
    check.count("steps", steps)
    if not 0 < check.number("slow", slow) < math.inf:
        raise ValueError(f"slow: expected a positive speed q, got {slow!r}. Pass that of a slow point, such as 1e-6")
    found = jax.tree.map(np.asarray, _search(cell, x, starts, int(steps), float(slow)))
    size = math.sqrt(found.vectors.shape[1]) + np.linalg.norm(found.vectors, axis=1)
    chosen, reached = _merge(found, size, slow)
    padded = np.resize(chosen, BATCH * max(1, -(-len(chosen) // BATCH)))  # so that few numbers of points are compiled
    every = _unpack(found.vectors, starts)
    states = jax.tree.map(lambda leaf: leaf[padded], every)
    jacobians = np.asarray(_jacobians(cell, x, states))[: len(chosen)].astype(np.float64)
    states = jax.tree.map(lambda leaf: leaf[: len(chosen)], states)
    residuals, epsilon = np.sqrt(2 * found.speeds[chosen]), np.finfo(found.vectors.dtype).eps
    fixed = residuals <= ROUNDING * epsilon * size[chosen]
    return classify(describe(cell), states, found.speeds, chosen, reached, jacobians, fixed, math.sqrt(epsilon))


@compiled
def _search(cell: Any, x: Any, starts: State, steps: int, slow: float) -> Found:
    """Where L-BFGS and then Newton's method take each start."""

    def one(start: State) -> Found:
        step = at_input(cell, x, start)
        vector = _descend(step, flat.pack(start), steps, slow)
        return Found(vector, _speed(step, vector))

    def close(inputs: tuple[State, Found]) -> Found:
        start, found = inputs
        return _newton(at_input(cell, x, start), found)

    found = jax.vmap(one)(starts)
    return jax.lax.map(close, (starts, found), batch_size=BATCH)


def _speed(step: Step, vector: Float[Array, " D"]) -> Float[Array, ""]:
    """q of Sussillo & Barak."""
    return ((step(vector) - vector) ** 2).sum() / 2


def _descend(step: Step, vector: Float[Array, " D"], steps: int, slow: float) -> Float[Array, " D"]:
    """Where L-BFGS arrives: q is zero but for rounding, or at most `slow` and falls no more, or all steps are done."""
    rule, speed = optax.lbfgs(), lambda vector: _speed(step, vector)
    slope = optax.value_and_grad_from_state(speed)
    epsilon = jnp.finfo(vector.dtype).eps

    def goes_on(carry: Any) -> Array:
        number, vector, _, reached, idle = carry
        rounding = (ROUNDING * epsilon * (math.sqrt(vector.size) + jnp.linalg.norm(vector))) ** 2 / 2
        return (number < steps) & ((reached > slow) | ((reached > rounding) & (idle < PATIENCE)))

    def move(carry: Any) -> Any:
        number, vector, state, before, idle = carry
        value, gradient = slope(vector, state=state)
        updates, state = rule.update(gradient, state, vector, value=value, grad=gradient, value_fn=speed)
        vector = vector + updates
        reached = speed(vector)
        idle = jnp.where((before <= slow) & (reached > (1 - FALL) * before), idle + 1, 0)
        return number + 1, vector, state, reached, idle

    none = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(goes_on, move, (none, vector, rule.init(vector), speed(vector), none))[1]


def _newton(step: Step, found: Found) -> Found:
    """Newton's method on step(s) - s = 0, as long as it lowers q and stays close.

    A move along a direction in which the map is almost the identity would be long: it is refused, which leaves slow
    points where they are. The normal equations, with a little damping, have a solution even where it is the identity.
    """
    vector, size = found.vectors, found.vectors.size
    reach = NEAR * (math.sqrt(size) + jnp.linalg.norm(vector))
    identity = jnp.eye(size, dtype=vector.dtype)

    def goes_on(carry: Any) -> Array:
        number, _, share = carry
        return (number < NEWTON_STEPS) & (share > 1e-3)

    def move(carry: Any) -> Any:
        number, (current, speed), share = carry
        slope = jax.jacfwd(step)(current) - identity
        normal = slope.T @ slope
        damping = jnp.finfo(vector.dtype).eps * jnp.trace(normal) / size
        by = jax.scipy.linalg.solve(normal + damping * identity, slope.T @ (step(current) - current), assume_a="pos")
        candidate = current - share * by
        new_speed = _speed(step, candidate)
        better = (new_speed < speed) & (jnp.linalg.norm(candidate - vector) <= reach)  # false where there is a NaN
        chosen = Found(jnp.where(better, candidate, current), jnp.where(better, new_speed, speed))
        return number + 1, chosen, jnp.where(better, jnp.minimum(2 * share, jnp.ones_like(share)), share / 4)

    start = jnp.zeros((), jnp.int32), found, jnp.ones((), vector.dtype)
    return jax.lax.while_loop(goes_on, move, start)[1]


def _merge(found: Found, size: np.ndarray, slow: float) -> tuple[np.ndarray, np.ndarray]:
    """The starts whose ends stand for the points, the smallest q first, and the point of each start, or -1."""
    chosen: list[int] = []
    reached = np.full(len(size), -1)
    for start in np.argsort(found.speeds, kind="stable"):
        if not found.speeds[start] <= slow:  # or NaN
            continue
        distances = np.linalg.norm(found.vectors[chosen] - found.vectors[start], axis=1)
        if len(chosen) == 0 or distances.min() > SAME * size[start]:
            reached[start] = len(chosen)
            chosen.append(int(start))
        else:
            reached[start] = int(distances.argmin())
    return np.asarray(chosen, int), reached


@compiled
def _unpack(vectors: Float[Array, "S D"], like: State) -> State:
    return jax.vmap(flat.unpack)(vectors, like)


@compiled
def _jacobians(cell: Any, x: Any, states: State) -> Float[Array, "K D D"]:
    return jax.lax.map(lambda state: jax.jacfwd(at_input(cell, x, state))(flat.pack(state)), states, batch_size=BATCH)
