"""Corners of `unroll` that no law of cells meets: plain functions, infinite states, overflow before a reset."""

import sys
from collections import Counter
from functools import lru_cache
from typing import Any

import chex
import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import check, unroll

T = 5


def running_maximum(state, x):
    """A function whose state is rightly infinite at first."""
    state = jnp.maximum(state, x)
    return state, state


@pytest.mark.parametrize("part", ["cell", "function"])
def test_the_path_through_unroll_only_descends(monkeypatch, part):
    """Each argument is checked once and the engine is planned once; a function does not enter `unroll` again."""
    calls: Counter[str] = Counter()
    whole, state = {"cell": (grid.build("lstm"), None), "function": (running_maximum, jnp.zeros(grid.I))}[part]

    def count(holder: Any, name: str) -> None:
        original = getattr(holder, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(holder, name, counted)

    names = {"unroll": sys.modules["rnnjax.unroll"], "plan": rnnjax.Scan}
    names |= dict.fromkeys(("sequence", "length", "steps", "flags"), check)
    for name, holder in names.items():
        count(holder, name)
    options: dict[str, Any] = {"length": 3, "resets": np.zeros(T, bool), "engine": rnnjax.Scan(3)}
    names["unroll"].unroll(whole, state, grid.inputs(T), **options)
    assert calls == dict.fromkeys(names, 1) | {"steps": 2}  # resets and mask


@pytest.mark.parametrize("engine", ["scan", "unrolled", "checkpointed"])
def test_a_function_is_run_as_scan_would(engine):
    step = lambda state, x: (state + x, {"sum": state + x, "input": x})  # noqa: E731
    run = lambda state, xs: unroll(step, state, xs, engine=grid.ENGINES[engine])  # noqa: E731
    both = jax.jit(lambda *arguments: (run(*arguments), jax.lax.scan(step, *arguments)))
    grid.assert_close(*both(np.asarray(0.0), np.arange(1.0, T + 1)))


def test_padding_is_safe_for_a_function_that_has_no_value_at_zero():
    def loss(weight):
        step = lambda state, x: (state + weight * jnp.log(x), state)  # noqa: E731
        return unroll(step, jnp.asarray(0.0), np.arange(1.0, T + 1), length=3)[0]

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(1.0), np.log([1, 2, 3]).sum(), rtol=1e-12)


def test_an_infinite_state_is_a_state():
    xs, resets = np.asarray([1.0, 3.0, 2.0, 0.0, 1.0]), np.arange(T) == 3
    run = jax.jit(lambda state, xs, resets: unroll(running_maximum, state, xs, resets=resets))
    _, ys = run(np.asarray(-np.inf), xs, resets)
    np.testing.assert_array_equal(ys, [1, 3, 3, 0, 1])


def test_no_step_returns_the_state_given_whatever_it_holds():
    state = rnnjax.Hidden(np.where(np.arange(grid.H) == 0, np.inf, np.nan))
    run = jax.jit(lambda cell, state, xs: unroll(cell, state, xs, length=0, resets=np.zeros(T, bool)))
    last, _ = run(grid.build("gru"), state, grid.inputs(T))
    np.testing.assert_array_equal(last.h, state.h)


def test_overflow_before_a_reset_ends_there_under_every_engine():
    """Finite inputs whose product is not: a zero times infinity would carry it over the reset.

    But for Newton, which solves for numbers, and says that there are none.
    """
    cell = jax.tree.map(lambda leaf: (10 * np.asarray(leaf)).astype(leaf.dtype), grid.build("min_gru", "float16"))
    xs, resets = np.ones((T, grid.I), np.float16), np.arange(T) == 2
    xs[0] = 60_000
    given = {name: engine for name, engine in grid.ENGINES.items() if "newton" not in name}
    engines = {name: engine for name, engine in given.items() if grid.refusal(engine, cell, grid.place(xs)) is None}

    @eqx.filter_jit
    def run(engines: dict[str, rnnjax.AbstractEngine], cell: Any, xs: jax.Array) -> Any:
        after = lambda engine: unroll(cell, None, xs, resets=resets, engine=engine)[1][2:]  # noqa: E731
        expected = unroll(cell, None, xs[2:], engine=grid.ORACLE)[1]
        return {name: after(engine) for name, engine in engines.items()}, expected

    found, expected = run(engines, cell, xs)
    assert {"scan", "unrolled", "checkpointed", "associative"} <= set(found)
    for ys in found.values():
        grid.assert_close(ys, expected, "float16")
    with pytest.raises(Exception, match="Newton cannot start on MinGRU"):
        jax.block_until_ready(run({"newton": rnnjax.Newton()}, cell, xs))


@pytest.mark.usefixtures("annotations_unchecked")
def test_auto_plans_for_cells_only():
    with pytest.raises(TypeError, match=r"^cell: expected a cell, got Stack. Use rnnjax.explain"):
        rnnjax.Auto().plan(grid.build("stack"), grid.inputs(T))


def test_dropout_falls_between_layers_and_not_after_the_last():
    """With a key, outputs differ from those without; a network of one layer has nothing between its layers."""
    stack = grid.build("stack")
    networks = {"stack": stack, "single": rnnjax.Stack(stack.layers[:1], dropout=0.5)}

    @jax.jit
    def run(key: jax.Array, xs: jax.Array) -> Any:
        """The outputs with the key and without one."""
        return {name: [unroll(part, None, xs, key=one)[1] for one in (key, None)] for name, part in networks.items()}

    first, again, other = (run(jax.random.key(seed), grid.inputs(T)) for seed in (5, 5, 6))
    dropped, whole = first["stack"]
    assert not np.allclose(dropped, whole)
    np.testing.assert_array_equal(dropped, again["stack"][0])
    assert not np.allclose(dropped, other["stack"][0])
    np.testing.assert_array_equal(*first["single"])


MERGES = {
    merge.__name__: merge
    for merge in (
        rnnjax.networks.concatenate,
        rnnjax.networks.add,
        rnnjax.networks.average,
        rnnjax.networks.multiply,
        rnnjax.networks.pair,
    )
}


@lru_cache
def merged() -> tuple[Any, Any, dict[str, Any]]:
    """The outputs forward, those backward, and those of both directions merged in each way."""

    @jax.jit
    def run(forward: Any, backward: Any, xs: jax.Array) -> Any:
        parts = {name: rnnjax.Bidirectional(forward, backward, merge=merge) for name, merge in MERGES.items()}
        first, second = unroll(forward, None, xs)[1], unroll(backward, None, xs[::-1])[1][::-1]
        return first, second, {name: unroll(part, None, xs)[1] for name, part in parts.items()}

    first, second, ys = run(grid.build("gru"), grid.build("elman"), grid.inputs(T))
    return np.asarray(first), np.asarray(second), ys


@pytest.mark.parametrize("merge", MERGES)
def test_merges(merge):
    first, second, ys = merged()
    expected = {
        "concatenate": lambda: np.concatenate([first, second], -1),
        "add": lambda: first + second,
        "average": lambda: (first + second) / 2,
        "multiply": lambda: first * second,
        "pair": lambda: rnnjax.networks.Directions(first, second),
    }
    grid.assert_close(ys[merge], expected[merge]())


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_all_states_are_the_last_states_of_shorter_sequences(engine):
    """Beside the outputs of the cell; zero at ignored steps, whose inputs have no effect; with gradients."""
    cell, xs = grid.build("lstm_options"), np.array(grid.inputs(T))
    xs[3] = np.nan
    options: dict[str, Any] = {"mask": np.arange(T) != 3, "resets": np.arange(T) == 2, "engine": grid.ENGINES[engine]}

    @eqx.filter_jit
    def run(cell: Any, xs: jax.Array) -> Any:
        state, (ys, states) = unroll(rnnjax.networks.AllStates(cell), None, xs, **options)
        shorter = [unroll(cell, None, xs, length=n + 1, **options) for n in range(T)]
        by_c = jax.grad(lambda cell: unroll(rnnjax.networks.AllStates(cell), None, xs, **options)[1][1].c.sum())(cell)
        expected = jax.grad(lambda cell: sum(unroll(cell, None, xs, length=n + 1, **options)[0].c.sum() for n in LIVE))
        return (state, ys, states, by_c), (shorter, expected(cell))

    (state, ys, states, by_c), (shorter, expected) = run(cell, jnp.asarray(xs))
    for n, (last, outputs) in enumerate(shorter):
        alone = jax.tree.map(lambda leaf, n=n: leaf[n], states)
        chex.assert_trees_all_close(alone, last if n in LIVE else jax.tree.map(jnp.zeros_like, last), rtol=1e-12)
        np.testing.assert_allclose(ys[: n + 1], outputs[: n + 1], rtol=1e-12)
    chex.assert_trees_all_close(state, shorter[-1][0], rtol=1e-12)
    chex.assert_trees_all_close(by_c, expected, rtol=1e-9, atol=1e-12)


LIVE = 0, 1, 2, 4  # the valid steps of the test above


def test_shared_weights_are_trained_by_both_directions():
    """The numbers of a `Bidirectional` of one cell twice, and the sum of the gradients of its two directions."""
    cell, xs = grid.build("gru"), grid.inputs(T)
    marks = {"length": 4, "resets": np.arange(T) == 2, "reverse": True}
    options = {"merge": rnnjax.networks.multiply}
    shared = lambda cell: rnnjax.networks.SharedBidirectional(cell, **options)  # noqa: E731

    @jax.jit
    def both(cell: Any, state: Any, xs: jax.Array) -> Any:
        run = lambda network, xs: unroll(network, state, xs, **marks)  # noqa: E731
        loss = lambda network, xs: grid.contract(run(network, xs))  # noqa: E731
        pair = rnnjax.Bidirectional(cell, cell, **options)
        one, two = (jax.grad(loss, (0, 1))(network, xs) for network in (shared(cell), pair))
        summed = jax.tree.map(jnp.add, two[0].forward, two[0].backward)
        return (run(shared(cell), xs), one[0].layer, one[1]), (run(pair, xs), summed, two[1])

    grid.assert_close(*both(cell, grid.random_state(shared(cell)), xs))


def test_shared_weights_are_one_set():
    cell = grid.build("gru")
    network = rnnjax.networks.SharedBidirectional(cell)
    made = rnnjax.diagnose.summary(network, grid.inputs(T))
    assert made.parameters == rnnjax.diagnose.count(network) == rnnjax.diagnose.count(cell)
    assert [planned.path for planned in rnnjax.explain(network, grid.inputs(T)).cells] == ["layer"]
    state = network.initial()
    assert state.forward.h is not state.backward.h  # so that both may be donated


def test_nan_in_the_first_step_does_not_reach_the_last_state_through_the_padding():
    """Padding is filled with the first step; a reset ends that step's influence, in the padding too."""
    xs = np.array(grid.inputs(T))
    xs[0] = np.nan

    @jax.jit
    def both(cell: Any, xs: jax.Array) -> Any:
        return unroll(cell, None, xs, length=3, resets=np.arange(T) == 1)[0], unroll(cell, None, xs[1:3])[0]

    grid.assert_close(*both(grid.build("gru"), xs))


def exported(cell: Any, engine: rnnjax.AbstractEngine, **options: Any) -> Any:
    """A program for every T."""
    (T,) = jax.export.symbolic_shape("T")
    run = jax.jit(lambda xs: unroll(cell, None, xs, engine=engine, **options)[1])
    return jax.export.export(run)(jax.ShapeDtypeStruct((T, grid.I), "float64"))


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("cell", ["lstm", "min_gru"])
def test_a_program_of_any_number_of_steps(cell):
    """`Auto` leaves it to `Scan`, which alone need not know T."""
    cell, xs = grid.build(cell), grid.inputs(7)
    found = exported(cell, rnnjax.Auto(), length=jnp.asarray(4, "uint8")).call(xs)
    expected = unroll(cell, None, xs, length=4, engine=rnnjax.Scan())[1]
    grid.assert_close(found, expected)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("engine", "cell"),
    [(rnnjax.Checkpointed(), "lstm"), (rnnjax.Fused(), "lstm"), (rnnjax.Associative(), "min_gru")],
    ids=["checkpointed", "fused", "associative"],
)
def test_an_engine_that_must_know_the_steps_says_so(engine, cell):
    with pytest.raises(ValueError, match=rf"{type(engine).__name__} cannot run \w+ with a symbolic T: .* Use Scan\(\)"):
        exported(grid.build(cell), engine)


def test_a_cell_of_equinox_is_no_function_of_state_and_input():
    cell = eqx.nn.GRUCell(grid.I, 4, key=grid.KEY)
    with pytest.raises(TypeError, match=r"^cell: .* got GRUCell of Equinox, which takes the input first"):
        unroll(cell, np.zeros(4), grid.inputs(3))
