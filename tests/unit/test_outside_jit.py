"""Cells as values of Python and JAX outside of `jax.jit`: compiled once, donated, copied, pickled."""

import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax

PARTS = [*grid.CELLS, *grid.NETWORKS]
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """How many programs have been compiled since the test began: `len` of this list."""
    seen: list[str] = []

    def listener(event: str, duration: float, **_: Any) -> None:
        del duration
        if event == COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)


def rectified_sum(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.nn.relu(state + x), state


def value(engine: rnnjax.AbstractEngine) -> Any:
    return rnnjax.unroll(grid.build("gru"), None, grid.inputs(5), engine=engine)


def value_with_marks(engine: rnnjax.AbstractEngine) -> Any:
    xs, resets = grid.inputs(5), np.arange(5) == 2
    return rnnjax.unroll(grid.build("gru"), None, xs, length=4, resets=resets, reverse=True, engine=engine)


def gradient(engine: rnnjax.AbstractEngine) -> Any:
    loss = lambda cell: rnnjax.unroll(cell, None, grid.inputs(5), engine=engine)[1].sum()  # noqa: E731
    return eqx.filter_grad(loss)(grid.build("gru"))


def batch(engine: rnnjax.AbstractEngine) -> Any:
    return jax.vmap(lambda xs: rnnjax.unroll(grid.build("gru"), None, xs, engine=engine))(grid.inputs(2, 5))


def of_function(engine: rnnjax.AbstractEngine) -> Any:
    return rnnjax.unroll(rectified_sum, jnp.zeros(grid.I), grid.inputs(5), engine=engine)


def gradient_of_function(engine: rnnjax.AbstractEngine) -> Any:
    loss = lambda xs: rnnjax.unroll(rectified_sum, jnp.zeros(grid.I), xs, engine=engine)[1].sum()  # noqa: E731
    return jax.grad(loss)(grid.inputs(5))


def product_norms(engine: rnnjax.AbstractEngine) -> Any:
    return rnnjax.diagnose.product_norms(grid.build("gru"), None, grid.inputs(5), engine=engine)


def lyapunov_exponents(engine: rnnjax.AbstractEngine) -> Any:
    del engine  # has none
    return rnnjax.diagnose.lyapunov_exponents(grid.build("gru"), None, grid.inputs(5), count=2, skip=1)


def gradient_of_trees(engine: rnnjax.AbstractEngine) -> Any:
    del engine
    cell, trees = (
        tree_cell(),
        rnnjax.trees.pack_trees([rnnjax.trees.Tree([[1, 2], [], []], [None, 0, 1])], vocabulary_size=2),
    )
    return eqx.filter_grad(lambda cell: rnnjax.trees.recurse(cell, trees, grid.inputs(2)).h.sum())(cell)


@grid.once
def tree_cell() -> rnnjax.trees.ChildSumTreeLSTM:
    return rnnjax.trees.ChildSumTreeLSTM(grid.I, 4, key=grid.KEY, dtype=jnp.dtype("float64"))


def scheduled(engine: rnnjax.AbstractEngine) -> Any:
    half = {"teacher_forcing": jnp.asarray(0.5), "key": grid.KEY}
    return sequence_to_sequence().logits(np.arange(3), np.arange(4), engine=engine, **half)


@grid.once
def sequence_to_sequence() -> rnnjax.models.Seq2Seq:
    encoder, recurrence = (rnnjax.GRU(4, 4, key=grid.KEY), rnnjax.GRU(8, 4, key=grid.KEY))
    score = rnnjax.models.General(4, 4, key=grid.KEY)
    decoder = rnnjax.models.LuongDecoder(recurrence, score, memory_size=4, attentional_size=4, key=grid.KEY)
    return rnnjax.models.Seq2Seq(5, 5, encoder, decoder, key=grid.KEY)


def forced(engine: rnnjax.AbstractEngine) -> Any:
    return sequence_to_sequence().logits(np.arange(3), np.arange(4), engine=engine)


CELL_CALLS = [value, value_with_marks, gradient, batch, of_function, gradient_of_function]
OTHER_CALLS = [product_norms, lyapunov_exponents, gradient_of_trees, forced, scheduled]


@pytest.mark.parametrize(
    ("call", "engine"),
    [
        *((call, engine) for call in CELL_CALLS for engine in (rnnjax.Scan(), rnnjax.Checkpointed(2))),
        *((call, rnnjax.Scan()) for call in OTHER_CALLS),
    ],
)
def test_a_second_call_compiles_nothing(call, engine, compilations):
    """As plain JAX, the first of each gradient may trace what the second finds."""
    call(engine), call(engine)
    before = len(compilations)
    assert before
    call(engine), call(engine)
    assert len(compilations) == before


def test_a_function_may_close_over_other_arrays_at_each_call():
    weight = jnp.asarray(2.0)

    def scale(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return state * weight + x, state

    run = lambda: rnnjax.unroll(scale, jnp.asarray(1.0), np.zeros(3))[0]  # noqa: E731
    assert run() == 8
    weight = jnp.asarray(3.0)
    assert run() == 27

    def loss(given: jax.Array) -> jax.Array:
        nonlocal weight
        weight = given
        return run()

    assert jax.grad(loss)(jnp.asarray(3.0)) == 27


def resident() -> float:
    """Megabytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.usefixtures("annotations_unchecked")
def test_a_long_training_takes_no_more_memory_and_compiles_nothing(compilations):
    xs, cell = grid.inputs(5), grid.build("gru")
    seen: list[tuple[int, float]] = []

    def loss(cell: Any, carry: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
        del key
        return (rnnjax.unroll(cell, None, batch)[1] ** 2).sum(), carry

    def validate(cell: Any) -> float:
        del cell
        seen.append((len(compilations), resident()))
        return 1.0

    options = {"steps": 8_000, "every": 800, "validate": validate, "progress": False, "key": grid.KEY}
    rnnjax.training.fit(cell, loss, lambda _: xs, optax.sgd(1e-6), **options)
    programs, memory = zip(*seen[2:], strict=True)  # before them, the best and a worse one have been judged
    assert set(programs) == {programs[0]}
    assert memory[-1] - memory[0] < 8


@pytest.mark.usefixtures("annotations_unchecked")
def test_losses_that_wait_for_a_report_take_no_memory():
    """As arrays of JAX, those of 5,000 steps took 35 MB."""
    steps, seen = 5_000, {}

    def batches(step: int) -> np.ndarray:
        if step in (500, steps - 1):
            seen[step] = resident()
        return np.ones(3)

    loss = lambda weights, carry, batch, key: (jnp.sum((weights - batch) ** 2), carry)  # noqa: ARG005, E731
    options = {"steps": steps, "every": steps, "progress": False, "key": grid.KEY}
    rnnjax.training.fit(grid.place(np.zeros(3)), loss, batches, optax.sgd(0.1), **options)
    assert seen[steps - 1] - seen[500] < 8


@pytest.mark.slow
@pytest.mark.usefixtures("annotations_unchecked")
def test_memory_is_flat_over_hundreds_of_calls():
    for _ in range(50):
        value(rnnjax.Scan()), of_function(rnnjax.Scan())
    gc.collect()
    before = resident()
    for _ in range(300):
        value(rnnjax.Scan()), of_function(rnnjax.Scan())
    gc.collect()
    assert resident() - before < 6


def drawn(name: str) -> Any:
    """As a user has it: without the noise of `grid.build`, which makes every array anew."""
    return (grid.CELLS | grid.NETWORKS)[name](grid.I, jnp.dtype("float64"))


@pytest.mark.parametrize("name", PARTS)
def test_a_cell_and_its_state_are_donated(name):
    twice = lambda tree: jax.tree.map(lambda leaf: leaf * 2 if eqx.is_inexact_array(leaf) else leaf, tree)  # noqa: E731
    part = drawn(name)
    given = eqx.filter(part, eqx.is_array), part.initial()
    leaves = [leaf for leaf in jax.tree.leaves(given) if leaf.size]
    jax.jit(twice, donate_argnums=0)(given)
    assert all(leaf.is_deleted() for leaf in leaves)


def through_pickle(part: Any) -> Any:
    return pickle.loads(pickle.dumps(part))


ACTIVATIONS = [jnp.tanh, jax.nn.relu, jax.nn.gelu, partial(jax.nn.leaky_relu, negative_slope=0.2), rnnjax.cells.linear]


def elman(activation: Any) -> rnnjax.Elman:
    return rnnjax.Elman(3, 4, key=grid.KEY, activation=activation)


MODELS: dict[str, Callable[[], Any]] = {
    **{name: partial(drawn, name) for name in PARTS},
    **{f"engine {name}": partial(grid.ENGINES.get, name) for name in grid.ENGINES},
    **{f"elman {number}": partial(elman, activation) for number, activation in enumerate(ACTIVATIONS)},
    "auto": rnnjax.Auto,
    "classifier": lambda: rnnjax.models.Classifier(drawn("gru"), jax.nn.softmax, pooling=rnnjax.models.maximum),
    "tagger": lambda: rnnjax.models.Tagger(drawn("gru"), jnp.tanh),
    "language": lambda: rnnjax.models.LanguageModel(7, drawn("gru"), key=grid.KEY),
    "bidirectional": lambda: rnnjax.Bidirectional(drawn("gru"), drawn("gru"), merge=jnp.add),
    "tree": lambda: rnnjax.trees.RecursiveNetwork(3, 4, arity=2, key=grid.KEY),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_a_copy_is_the_same_pytree(name, duplicate):
    """So that one program runs both, and an average of the two is a map over them."""
    model = MODELS[name]()
    if duplicate is through_pickle and name in ("conv_lstm", "conv_gru"):
        pytest.skip("the grid's holds a lambda, which Python does not pickle")
    made = duplicate(model)
    assert jax.tree.structure(made) == jax.tree.structure(model)
    assert hash(jax.tree.structure(made)) == hash(jax.tree.structure(model))
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(model), strict=True):
        assert np.array_equal(one, other) if eqx.is_array(other) else one == other


def test_a_copy_is_not_compiled_anew(compilations):
    run, cell = eqx.filter_jit(rnnjax.unroll), rnnjax.Elman(grid.I, 4, key=grid.KEY, dtype=jnp.dtype("float64"))
    copies, xs = [copy.deepcopy(cell), through_pickle(cell)], grid.inputs(5)
    run(cell, None, xs)
    before = len(compilations)
    for other in copies:
        run(other, None, xs)
    assert len(compilations) == before


class WithDefaults(rnnjax.AbstractGatedCell):
    """Optional fields by defaults of the class, beside an `__init__` of its own."""

    gates = "n"
    input_weight: jax.Array
    recurrent_weight: jax.Array
    bias: None = None
    initial_state: None = None

    def __init__(self):
        self.input_weight = grid.place(np.ones((grid.I, 4)))
        self.recurrent_weight = grid.place(np.ones((4, 4)))

    def pointwise(self, parameters: None, u: Any, v: Any, state: Any) -> rnnjax.Hidden:
        del parameters, state
        return rnnjax.Hidden(jnp.tanh(u[0] + v[0]))


def test_a_cell_may_have_defaults_of_its_class():
    loss = lambda cell: rnnjax.unroll(cell, None, grid.inputs(5))[1].sum()  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(WithDefaults())
    assert value == loss(WithDefaults())
    assert gradient.recurrent_weight.shape == (4, 4)


# Options that change nothing of what runs are checked by one process; each of the others needs one of its own.
DEBUGGING = {
    "checks": (
        *("jax_debug_nans=True", "jax_debug_infs=True", "jax_debug_key_reuse=True", "jax_enable_checks=True"),
        *("jax_numpy_rank_promotion='raise'", "jax_numpy_dtype_promotion='strict'", "jax_check_tracer_leaks=True"),
    ),
    "disable_jit": ("jax_disable_jit=True",),
    "transfer_guard": ("jax_transfer_guard='disallow'",),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [pytest.param(options, marks=pytest.mark.xdist_group(name), id=name) for name, options in DEBUGGING.items()],
)
def test_debugging_options_find_nothing(options):
    script = Path(grid.__file__).with_name("debug_run.py")
    ended = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    assert ended.stdout == "done\n", ended.stderr
