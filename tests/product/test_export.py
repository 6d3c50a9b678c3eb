"""Export by `jax.export`: programs of any batch and time, that run, to the same numbers, where there is no rnnjax."""

import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import exported_run
import grid
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import ShapeDtypeStruct as Shape
from jax.export import DisabledSafetyCheck, export, symbolic_shape

import rnnjax
from rnnjax import Bidirectional, Stack, unroll
from rnnjax.function import FunctionState
from rnnjax.models.attentive_decoder import InputFed

pytest.importorskip("flatbuffers", reason="JAX writes exported programs by it")
pytestmark = pytest.mark.usefixtures("annotations_unchecked")

B, T, H, V = 3, 40, 32, 7  # enough steps and units that the kernels would run


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


class Case(NamedTuple):
    """A function, the forms that it is exported for, and arguments to call it with."""

    function: Callable[..., Any]
    forms: tuple[Any, ...]
    arguments: tuple[Any, ...]

    @property
    def expected(self) -> Any:
        return jax.jit(self.function)(*self.arguments)


def of_any_size(case: Callable[..., Any]) -> Callable[[], Case]:
    return lambda: case(*symbolic_shape("B, T"))


def lstm(inputs: int, number: int) -> rnnjax.LSTM:
    return rnnjax.LSTM(inputs, H, key=jax.random.key(number), dtype=jnp.float64)


@of_any_size
def ragged_layers(batch: Any, time: Any) -> Case:
    """Two bidirectional layers, of a batch and a time that the program does not know, with lengths."""
    network = Stack([Bidirectional(lstm(2, 0), lstm(2, 1)), Bidirectional(lstm(2 * H, 2), lstm(2 * H, 3))])

    def run(xs: jax.Array, lengths: jax.Array) -> Any:
        return jax.vmap(lambda xs, length: unroll(network, None, xs, length=length)[1])(xs, lengths)

    arguments = drawn(B, T, 2), np.array([T, 0, 17])
    return Case(run, (Shape((batch, time, 2), "float64"), Shape((batch,), "int64")), arguments)


def streaming_step() -> Case:
    """One step of a stream, which takes and returns the state."""
    cell = lstm(2, 0)
    run = lambda state, x: unroll(cell, state, x[None])  # noqa: E731
    state, x = grid.random_state(cell), drawn(2)
    return Case(run, (jax.eval_shape(cell.initial), Shape((2,), "float64")), (state, x))


def language_model() -> rnnjax.models.LanguageModel:
    return rnnjax.models.LanguageModel(V, lstm(2, 0), key=grid.KEY)


@of_any_size
def language(batch: Any, time: Any) -> Case:
    """The language model; one stream has a token that is not of the vocabulary, in its sixth step."""
    model = language_model()
    state = model.initial()
    run = lambda tokens: jax.vmap(lambda tokens: model.logits(state, tokens)[1])(tokens)  # noqa: E731
    tokens = np.random.default_rng(0).integers(0, V, (B, T))
    tokens[1, 5] = V
    return Case(run, (Shape((batch, time), "int64"),), (tokens,))


def known_sizes() -> Case:
    """A gradient through cells that the kernels run, where all sizes are known."""
    network = Stack([lstm(2, 0), rnnjax.MinGRU(H, H, key=grid.KEY, dtype=jnp.float64)])
    run = jax.grad(lambda xs: jax.vmap(lambda xs: unroll(network, None, xs)[1])(xs).sum())
    return Case(run, (Shape((B, T, 2), "float64"),), (drawn(B, T, 2),))


CASES = {each.__name__: each for each in (streaming_step, known_sizes)} | {
    "ragged_layers": ragged_layers,
    "language": language,
}


def write(folder: Path, name: str, program: Any, arguments: tuple[Any, ...]) -> None:
    (folder / f"{name}.exported").write_bytes(program.serialize())
    (folder / f"{name}.pickle").write_bytes(pickle.dumps([np.asarray(leaf) for leaf in jax.tree.leaves(arguments)]))


def call_elsewhere(folder: Path, *options: str) -> None:
    subprocess.run([sys.executable, exported_run.__file__, str(folder), *options], check=True, timeout=300)


def answer(folder: Path, name: str) -> list[np.ndarray]:
    return pickle.loads((folder / f"{name}.answer").read_bytes())


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    """The folder of all programs, and of what they answered in a process without rnnjax."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a symbol is no int
        for name, build in CASES.items():
            case = build()
            write(folder, name, export(jax.jit(case.function))(*case.forms), case.arguments)
    call_elsewhere(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in CASES if name != "language"])
def test_a_program_runs_where_rnnjax_cannot_be_imported(name, answers):
    grid.assert_close(answer(answers, name), jax.tree.leaves(CASES[name]().expected))


def test_an_unknown_token_makes_what_follows_nan(answers):
    """Where an exported program cannot raise; the other streams, and the steps before it, stay as they are."""
    case = language()
    known = np.where(case.arguments[0] == V, 0, case.arguments[0])
    (found,) = answer(answers, "language")
    expected = np.array(jax.jit(case.function)(known))
    expected[1, 5:] = np.nan
    grid.assert_close(found, expected)
    with pytest.raises(Exception, match=f"tokens: expected tokens from 0 to {V - 1}"):
        jax.block_until_ready(eqx.filter_jit(case.function)(*case.arguments))


def test_tokens_after_an_unknown_one_are_no_tokens():
    """In an exported program; a program of `jax.jit` raises. A search, too, says -1 for a token that it cannot know."""
    model = language_model()
    run = jax.jit(lambda prompt: rnnjax.models.sample(model, prompt, 4, key=grid.KEY, temperature=0))
    program = export(run)(Shape((3,), "int64"))
    assert np.asarray(program.call(np.array([1, V, 2]))).tolist() == [-1] * 4
    assert np.asarray(program.call(np.array([1, 3, 2]))).tolist() == np.asarray(run(np.array([1, 3, 2]))).tolist()
    broken = eqx.tree_at(lambda model: model.output.bias, model, jnp.full(V, jnp.nan, model.output.bias.dtype))
    step, state, _ = broken.decoding()
    search = {"start": 1, "end": 0, "max_length": 2}
    for found in (
        rnnjax.models.greedy(step, state, **search),
        rnnjax.models.beam_search(step, state, width=2, **search),
    ):
        assert np.asarray(found.tokens).tolist() == [-1, -1]


def fused(exported: bool) -> Callable[[jax.Array], jax.Array]:
    cell, engine = lstm(2, 0), rnnjax.Fused(cpu=rnnjax.kernels.CPU(exported=exported))
    return jax.jit(lambda xs: unroll(cell, None, xs, engine=engine)[1])


def test_fused_is_plain_jax_in_a_file_unless_it_is_told_to_be_exported():
    form = Shape((T, 2), "float64")
    assert "custom_call" not in export(fused(False))(form).mlir_module()
    with pytest.raises(ValueError, match=rf"(?s)custom calls .*{rnnjax.kernels.CUSTOM_CALLS[0]}"):
        export(fused(True))(form)


@pytest.mark.slow
def test_a_file_with_the_kernels_calls_runs_where_rnnjax_is_imported(tmp_path):
    checks = [DisabledSafetyCheck.custom_call(name) for name in rnnjax.kernels.CUSTOM_CALLS]
    program = export(fused(True), disabled_checks=checks)(Shape((T, 2), "float64"))
    assert f"custom_call @{rnnjax.kernels.CUSTOM_CALLS[0]}" in program.mlir_module()
    xs = drawn(T, 2)
    write(tmp_path, "fused", program, ([xs],))
    call_elsewhere(tmp_path, "rnnjax")
    grid.assert_close(answer(tmp_path, "fused"), [fused(True)(xs)])


# Everything with sizes that are symbols

PARTS = (
    *(*grid.REPRESENTATIVES, "stack_of_bidirectional", "time_distributed", "conv_lstm", "convolution"),
    *(*grid.POOLED, "rwkv7", "mamba"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_every_kind_of_part_is_exported_for_any_size(name):
    """With lengths and resets."""
    part = grid.build(name)

    def run(xs: jax.Array, length: jax.Array, resets: jax.Array) -> Any:
        return unroll(part, None, xs, length=length, resets=resets)

    batch, time = symbolic_shape("B, T")
    forms = Shape((batch, time, grid.I), "float64"), Shape((batch,), "int64"), Shape((batch, time), bool)
    arguments = grid.inputs(B, 12), np.array([12, 0, 5]), np.random.default_rng(0).random((B, 12)) < 0.2
    mapped = jax.jit(jax.vmap(run))
    grid.assert_close(export(mapped)(*forms).call(*arguments), mapped(*arguments))


@pytest.mark.slow
@pytest.mark.usefixtures("as_it_comes")
def test_sequence_to_sequence_is_exported_for_any_size():
    """Loss and beam search, with attention. A target has at least two tokens, which `T + 1` says."""
    keys, models = jax.random.split(grid.KEY, 5), rnnjax.models
    encoder = Bidirectional(rnnjax.GRU(3, 4, key=keys[0]), rnnjax.GRU(3, 4, key=keys[1]))
    decoder = models.BahdanauDecoder(rnnjax.GRU(3 + 8, 5, key=keys[2]), models.Additive(5, 8, size=6, key=keys[3]))
    model = models.Seq2Seq(9, V, encoder, decoder, key=keys[4])

    def search(source: jax.Array, length: jax.Array) -> Any:
        step, state, _ = model.decoding(source, length=length)
        return models.beam_search(step, state, width=2, start=1, end=0, max_length=6)

    def both(*pairs: jax.Array) -> Any:
        return models.seq2seq_loss(model, None, pairs, None)[0], jax.vmap(search)(*pairs[:2])

    batch, steps, time = symbolic_shape("B, S, T + 1")
    lengths = Shape((batch,), "int32")
    forms = Shape((batch, steps), "int32"), lengths, Shape((batch, time), "int32"), lengths
    draw = lambda most, *shape: np.random.default_rng(0).integers(0, most, shape, np.int32)  # noqa: E731
    arguments = draw(9, 2, 5), np.array([5, 2], np.int32), draw(V, 2, 4), np.array([4, 3], np.int32)
    found, expected = export(jax.jit(both))(*forms).call(*arguments), jax.jit(both)(*arguments)
    grid.assert_close(found, expected, "float32")


# States


def modules() -> list[Any]:
    found = pkgutil.walk_packages(rnnjax.__path__, "rnnjax.")
    return [importlib.import_module(each.name) for each in found if not each.name.endswith(("__main__", ".launch"))]


def is_tuple(kind: Any) -> bool:
    return inspect.isclass(kind) and hasattr(kind, "_fields")


def tuples_in(tree: Any) -> set[type]:
    """The classes of the named tuples in a tree."""
    children = [child for child in jax.tree.leaves(tree, is_leaf=lambda node: node is not tree) if child is not tree]
    return set(filter(is_tuple, [type(tree)])).union(*map(tuples_in, children))


OF_NO_PROGRAM = {  # tuples that hold functions or options, or that Python reads
    *(rnnjax.models.Decoding, rnnjax.networks.Options, rnnjax.training.Fitted),
    FunctionState,  # within `unroll`
}


def test_every_state_has_a_name_in_exported_files():
    """All that are called states, all that parts start from, and all that models and batches hand out."""
    everywhere = {kind for module in modules() for _, kind in inspect.getmembers(module, is_tuple)}
    rooms = rnnjax.models, rnnjax.networks, rnnjax.training
    kinds = {kind for kind in everywhere if kind.__name__.endswith("State")} | {InputFed}
    kinds |= {kind for room in rooms for _, kind in inspect.getmembers(room, is_tuple)} - OF_NO_PROGRAM
    parts = [grid.build(name) for name in (*grid.CELLS, *grid.NETWORKS)]
    kinds |= set().union(*(tuples_in(jax.eval_shape(part.initial)) for part in parts))
    names = {kind.__name__ for kind in kinds - OF_NO_PROGRAM}
    assert {"LSTMState", "Hidden", "Directions", "Chunk", "Memory", "Window"} <= names
    forms = [kind(*(Shape((), "float64") for _ in kind._fields)) for kind in kinds - OF_NO_PROGRAM]
    written = bytes(export(jax.jit(lambda forms: forms))(forms).serialize())
    assert [name for name in names if f"rnnjax.{name}".encode() not in written] == []
