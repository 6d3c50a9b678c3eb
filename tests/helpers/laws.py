"""The laws: what must hold for every cell and network, run by every engine. To be in `LAWS` is to be tested.

A law is a function of a `Runner`, which runs a part (a cell or a network in float64) by an engine. All laws share its
few compiled programs: each takes a batch of four sequences of T steps, with a length and resets for each.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import rnnjax

B, T = 4, grid.T
STEPS = np.arange(T)


class Problem(NamedTuple):
    """Four sequences, what is ignored of them, and what the loss sees."""

    state: PyTree
    xs: Any  # [B, T, I]
    length: Any  # [B]
    resets: Any  # [B, T]
    seen_outputs: Any  # [B, T]
    seen_last: Any  # [B]


class Outcome(NamedTuple):
    """Last states and outputs, the gradient of the loss by weights, states and inputs, for each sequence apart."""

    last: PyTree
    ys: Any
    gradient: tuple[PyTree, PyTree, Any]
    tangent: PyTree  # along the sine of the inputs; none of a run forwards

    def row(self, number: int) -> "Outcome":
        """Of one sequence."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[number], self)


class Runner:
    """A part, run by an engine."""

    def __init__(self, part: Any, engine: rnnjax.AbstractEngine):
        self.part, self.engine = part, engine

    def __call__(self, problem: Problem, *, reverse: bool = False) -> Outcome:
        made = _run(self.part, self.engine, jax.tree.map(np.asarray, problem), reverse)
        return jax.tree.map(np.asarray, made)

    def short(self, state: PyTree, *batches: Any) -> list[tuple[PyTree, Array]]:
        """Batches of sequences of any length, all of their steps taken: last states and outputs of each."""
        made = _short(self.part, self.engine, state, [np.asarray(xs) for xs in batches])
        return jax.tree.map(np.asarray, made)

    def initial(self) -> PyTree:
        """The state of rest, for each of four sequences."""
        return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (B, *leaf.shape)), self.part.initial())

    def problem(self, **changed: Any) -> Problem:
        """Random states and inputs, every step taken and every output seen, but for what is changed."""
        plain = Problem(
            grid.random_state(self.part, B),
            grid.inputs(B, T),
            np.full(B, T),
            np.zeros((B, T), bool),
            np.ones((B, T), bool),
            np.ones(B, bool),
        )
        return plain._replace(**changed)


@eqx.filter_jit
def _run(part: Any, engine: rnnjax.AbstractEngine, problem: Problem, reverse: bool) -> Outcome:
    weights, static = eqx.partition(part, eqx.is_inexact_array)

    def one(problem: Problem) -> Outcome:
        numbers, truths = eqx.partition(problem.state, eqx.is_inexact_array)
        marks = {"length": problem.length, "resets": problem.resets, "reverse": reverse}

        def run(weights: PyTree, numbers: PyTree, xs: Array) -> tuple[PyTree, Array]:
            state = eqx.combine(numbers, truths)
            return rnnjax.unroll(eqx.combine(weights, static), state, xs, **marks, engine=engine)

        def loss(*arguments: Any) -> tuple[Array, PyTree]:
            last, ys = run(*arguments)
            seen = _where(problem.seen_last, last), _where(problem.seen_outputs, ys)
            return grid.contract(seen), (last, ys)

        gradient, (last, ys) = jax.grad(loss, (0, 1, 2), has_aux=True)(weights, numbers, problem.xs)
        along = partial(run, weights, numbers)
        tangent = jax.jvp(along, (problem.xs,), (jnp.sin(problem.xs),))[1] if reverse else None
        return Outcome(last, ys, gradient, eqx.filter(tangent, eqx.is_inexact_array))

    return jax.vmap(one)(problem)


def _where(seen: Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.where(_spread(seen, leaf), leaf, jnp.zeros_like(leaf)), tree)


def _spread(seen: Array, leaf: Array) -> Array:
    return seen.reshape(seen.shape + (1,) * (leaf.ndim - seen.ndim))


@eqx.filter_jit
def _short(part: Any, engine: rnnjax.AbstractEngine, state: PyTree, batches: list[Array]) -> list[Any]:
    run = jax.vmap(lambda state, xs: rnnjax.unroll(part, state, xs, engine=engine))
    return [run(state, xs) for xs in batches]


@eqx.filter_jit
def from_rest(part: Any, engine: rnnjax.AbstractEngine, xs: Array) -> Array:
    """The outputs of a batch that starts from no state in particular."""
    return jax.vmap(lambda xs: rnnjax.unroll(part, None, xs, engine=engine)[1])(xs)


def assert_finite(tree: PyTree) -> None:
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def moved(xs: Any, start: int, stop: int) -> np.ndarray:
    """The steps from `start` to `stop`, at the front of T; NaN after them."""
    padded = np.full_like(xs, np.nan)
    padded[:, : stop - start] = np.asarray(xs)[:, start:stop]
    return padded


# The laws


def law_length_zero_is_identity(run: Runner) -> None:
    """No step, no change: the initial state comes back, even where the inputs are NaN, with a gradient of one."""
    problem = run.problem(xs=np.full((B, T, grid.I), np.nan), length=np.zeros(B, int), resets=np.ones((B, T), bool))
    got = run(problem)
    grid.assert_close((got.last, got.ys), (problem.state, np.zeros_like(got.ys)))
    dweights, dstate, dxs = got.row(0).gradient
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[0], problem.state)
    grid.assert_close(dstate, eqx.filter(grid.contraction(state), _is_number(state)))
    grid.assert_close((dweights, dxs), jax.tree.map(np.zeros_like, (dweights, dxs)))


def _is_number(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: np.issubdtype(leaf.dtype, np.inexact), tree)


def law_length_is_a_shorter_sequence(run: Runner) -> None:
    """The steps from `length` on do not matter, and their outputs are zero."""
    problem, lengths = run.problem(), (7, 1)
    short = run.short(problem.state, *(np.asarray(problem.xs)[:, :length] for length in lengths))
    for length, (expected_last, expected) in zip(lengths, short, strict=True):
        got = run(problem._replace(length=np.full(B, length)))
        rest = np.zeros_like(got.ys[:, length:])
        grid.assert_close((got.last, got.ys[:, :length], got.ys[:, length:]), (expected_last, expected, rest))


def law_padding_is_ignored(run: Runner, directions: tuple[bool, ...] = (False, True)) -> None:
    """NaN and inf in padding change no value, gradient or tangent, in a batch of lengths, forward or in reverse.

    The tangent is that along the sine of the inputs, so that it is NaN in padding, too; only runs in reverse have one.
    """
    lengths = np.asarray([0, 1, 7, T])
    clean = run.problem(length=lengths)
    padding = STEPS[None, :] >= lengths[:, None]
    poison = np.asarray([np.nan, np.inf, -np.inf])
    poisoned = clean._replace(xs=np.where(padding[:, :, None], poison, clean.xs))
    for reverse in directions:
        got, expected = (run(problem, reverse=reverse) for problem in (poisoned, clean))
        assert_finite(got)
        grid.assert_close(got, expected)


def law_reset_is_two_sequences(run: Runner) -> None:
    """A reset at t: what follows is a sequence of its own, and what came before does not know of it."""
    problem, t = run.problem(state=run.initial()), 5
    got = run(problem._replace(resets=np.broadcast_to(t == STEPS, (B, T))))
    before = run(problem._replace(length=np.full(B, t)))
    after = run(problem._replace(xs=moved(problem.xs, t, T), length=np.full(B, T - t)))
    grid.assert_close(got.ys, np.concatenate([before.ys[:, :t], after.ys[:, : T - t]], 1))


def law_nan_before_a_reset_is_gone(run: Runner) -> None:
    """NaN before a reset is seen where it is, and changes neither value nor gradient after it."""
    t = 5
    resets = np.broadcast_to(t == STEPS, (B, T))
    seen = np.broadcast_to(t <= STEPS, (B, T))
    clean = run.problem(resets=resets, seen_outputs=seen, seen_last=np.zeros(B, bool))
    xs = np.array(clean.xs)
    xs[:, 3] = np.asarray([np.nan, 1.0, np.inf])
    got, expected = run(clean._replace(xs=xs)), run(clean)
    assert not np.isfinite(got.ys[:, 3]).any()
    assert_finite((got.gradient[0], got.gradient[2]))
    grid.assert_close((got.ys[:, t:], got.gradient), (expected.ys[:, t:], expected.gradient))


def law_reverse_flips_the_valid_part(run: Runner) -> None:
    """In reverse is flip, run, flip back, of the valid part alone; resets are met in running order."""
    length = 9
    problem = run.problem(length=np.full(B, length), resets=np.broadcast_to(STEPS % 5 == 3, (B, T)))
    flip = lambda array: np.concatenate([array[:, :length][:, ::-1], array[:, length:]], 1)  # noqa: E731
    got = run(problem, reverse=True)
    turned = {name: flip(np.asarray(getattr(problem, name))) for name in ("xs", "resets")}
    # The loss weighs outputs by their place: the gradient is compared where it sees the last state alone.
    last_only = np.zeros((B, T), bool)
    flipped = run(problem._replace(**turned, seen_outputs=last_only))
    grid.assert_close((got.last, got.ys), (flipped.last, flip(flipped.ys)))
    dweights, dstate, dxs = run(problem._replace(seen_outputs=last_only), reverse=True).gradient
    grid.assert_close((dweights, dstate, flip(dxs)), flipped.gradient)


def law_everything_composes(run: Runner) -> None:
    """Lengths, resets and reverse together, by gradient and by jvp, equal `Scan`."""
    marks = {"length": np.asarray([7, T, 1, 0]), "resets": np.broadcast_to(STEPS % 4 == 3, (B, T))}
    problem = run.problem(**marks)
    grid.assert_close(run(problem, reverse=True), Runner(run.part, grid.ORACLE)(problem, reverse=True))


def causal_law_chunks_are_one_pass(run: Runner) -> None:
    """Feeding a sequence in chunks, passing the state along, gives the same result; resets and lengths included."""
    resets = np.broadcast_to(STEPS % 4 == 2, (B, T))
    problem = run.problem(resets=resets, length=np.full(B, 10))
    whole, state, pieces = run(problem), problem.state, []
    for start, stop in [(0, 1), (1, 8), (8, T)]:
        length = min(max(10 - start, 0), stop - start)
        marks = {"resets": np.roll(resets, -start, 1), "length": np.full(B, length)}
        part = run(problem._replace(state=state, xs=moved(problem.xs, start, stop), **marks))
        state = part.last
        pieces.append(part.ys[:, : stop - start])
    grid.assert_close((state, np.concatenate(pieces, 1)), (whole.last, whole.ys))


def causal_law_nan_in_a_replaced_state_is_gone(run: Runner) -> None:
    """A reset before the first step hides the state it replaces, NaN or not, from value and gradient."""
    clean = run.problem(resets=np.broadcast_to(STEPS == 0, (B, T)))
    poison = lambda leaf: ~leaf if leaf.dtype == bool else np.full_like(leaf, np.nan)  # noqa: E731
    poisoned = clean._replace(state=jax.tree.map(lambda leaf: poison(np.asarray(leaf)), clean.state))
    got, expected = run(poisoned), run(clean)
    grid.assert_close((got.last, got.ys, got.gradient), (expected.last, expected.ys, expected.gradient))


def causal_law_reset_hands_on_no_state(run: Runner) -> None:
    """After a reset the state given is forgotten: the last state is that of the second sequence alone."""
    problem, t = run.problem(), 5
    got = run(problem._replace(resets=np.broadcast_to(t == STEPS, (B, T))))
    rest = {"state": run.initial(), "xs": moved(problem.xs, t, T), "length": np.full(B, T - t)}
    grid.assert_close(got.last, run(problem._replace(**rest)).last)


def _named(prefix: str) -> dict[str, Callable[[Runner], None]]:
    return {name.removeprefix(prefix): law for name, law in globals().items() if name.startswith(prefix)}


LAWS = _named("law_")
CAUSAL_LAWS = _named("causal_law_")  # for parts that read their sequence from the left alone


@lru_cache
def runner(part: str, engine: rnnjax.AbstractEngine) -> Runner:
    """A part of the grid, run by an engine; its programs are compiled once."""
    return Runner(grid.build(part), engine)
