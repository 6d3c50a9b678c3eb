"""Layers of other JAX libraries beside what `rnnjax.convert` makes of them: a table of cases, and their differences.

`python tests/helpers/conversions.py` prints the largest difference of outputs and last states, and of gradients in
parameters, states and inputs, for each case whose library is installed.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax import Hidden, convert
from rnnjax.cells import LSTMState
from rnnjax.networks import Directions

T, B, I, H = 4, 2, 2, 3  # noqa: E741
SPACE = (4, 3)
WIDE_SPACE = (5, 6)


class Original(NamedTuple):
    """A layer of another library."""

    parameters: Any  # a pytree of arrays
    network: Callable[[Any], Any]  # what `from_...` makes of parameters, traced or not
    apply: Callable[[Any, Any, Any], tuple[Any, Any]]  # of parameters, a state of ours, and one sequence
    there_and_back: Callable[[Any], Any]  # a network through the other library


class Case(NamedTuple):
    library: str  # the module to import
    name: str
    build: Callable[[str], Original]  # from a dtype

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.library) is not None


def draw(tree: Any, *shape: int, seed: int) -> Any:
    """`tree` with every array drawn afresh, with leading axes `shape`."""
    leaves, structure = jax.tree.flatten(tree)
    generator = np.random.default_rng(seed)
    drawn = [(0.5 * generator.standard_normal((*shape, *leaf.shape))).astype(leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(structure, drawn)


def carry(state: Any) -> Any:
    """A state of ours as a carry of Flax."""
    match state:
        case LSTMState(h, c):
            return c, h
        case Hidden(h):
            return h
        case Directions(forward, backward):
            return carry(forward), carry(backward)
    raise TypeError(type(state))


def from_carry(carried: Any, like: Any) -> Any:
    """A carry of Flax as a state of ours."""
    match like:
        case LSTMState():
            return LSTMState(carried[1], carried[0])
        case Hidden():
            return Hidden(carried)
        case Directions():
            return Directions(*map(from_carry, carried, like))
    raise TypeError(type(like))


def linen(cell: str, both: bool, dtype: str, **options: Any) -> Original:
    from flax import linen as nn

    make = lambda: nn.RNN(getattr(nn, cell)(H, dtype=dtype, param_dtype=dtype, **options))  # noqa: E731
    module = nn.Bidirectional(make(), make()) if both else make()
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((T, I), dtype))["params"]
    activation = options.get("activation_fn")

    def apply(parameters: Any, state: Any, xs: Any) -> Any:
        carried, ys = module.apply({"params": parameters}, xs, initial_carry=carry(state), return_carry=True)
        return from_carry(carried, state), ys

    read = lambda parameters: convert.from_linen(parameters, activation=activation)  # noqa: E731
    return Original(draw(shapes, seed=1), read, apply, lambda network: read(convert.to_linen(network)))


def nnx(cell: str, both: bool, dtype: str, **options: Any) -> Original:
    from flax import nnx

    def make() -> Any:
        made = getattr(nnx, cell)(I, H, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0), **options)
        return nnx.RNN(made)

    module = nnx.Bidirectional(make(), make()) if both else make()
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def filled(parameters: Any) -> Any:
        copy = jax.tree.map(lambda leaf: leaf, params)
        nnx.replace_by_pure_dict(copy, parameters)
        return nnx.merge(graph, copy, rest)

    def apply(parameters: Any, state: Any, xs: Any) -> Any:
        carried, ys = filled(parameters)(xs, initial_carry=carry(state), return_carry=True)
        return from_carry(carried, state), ys

    there_and_back = lambda network: convert.from_nnx(convert.to_nnx(network))  # noqa: E731
    drawn = draw(nnx.to_pure_dict(params), seed=1)
    return Original(drawn, lambda parameters: convert.from_nnx(filled(parameters)), apply, there_and_back)


def haiku(cell: str, dtype: str, **options: Any) -> Original:
    import haiku as hk

    def run(state: Any, xs: Any) -> Any:
        core = getattr(hk, cell)(H, **options)
        before = hk.LSTMState(*state) if cell == "LSTM" else state.h
        ys, last = hk.dynamic_unroll(core, xs, before)
        return LSTMState(*last) if cell == "LSTM" else Hidden(last), ys

    module = hk.without_apply_rng(hk.transform(run))
    zeros = jnp.zeros(H, dtype)
    state = LSTMState(zeros, zeros) if cell == "LSTM" else Hidden(zeros)
    shapes = jax.eval_shape(module.init, jax.random.key(0), state, jax.ShapeDtypeStruct((T, I), dtype))
    there_and_back = lambda network: convert.from_haiku(convert.to_haiku(network))  # noqa: E731
    return Original(draw(shapes, seed=1), convert.from_haiku, module.apply, there_and_back)


def equinox(cell: str, dtype: str, **options: Any) -> Original:
    module = getattr(eqx.nn, cell)(I, H, dtype=dtype, key=jax.random.key(0), **options)

    def apply(parameters: Any, state: Any, xs: Any) -> Any:
        def step(before: Any, x: Any) -> Any:
            after = parameters(x, before if cell == "LSTMCell" else before[0])
            after = after if cell == "LSTMCell" else (after,)
            return tuple(after), after[0]

        last, ys = jax.lax.scan(step, tuple(state), xs)
        return type(state)(*last), ys

    there_and_back = lambda network: convert.from_equinox(convert.to_equinox(network))  # noqa: E731
    return Original(draw(module, seed=1), convert.from_equinox, apply, there_and_back)


def keras(make: Callable[[Any], Any], dtype: str, shape: tuple[int, ...] = (I,)) -> Original:
    import keras

    layer = make(keras.layers)
    layer.build((None, T, *shape))
    rest = [variable.value for variable in layer.non_trainable_variables]

    def states(state: Any) -> Any:
        """As `initial_state`: flat, but a list for each of the stacked cells."""
        if isinstance(state, tuple) and not hasattr(state, "_fields"):
            return [states(each) for each in state]
        leaves = [frames(leaf, 0)[None] for leaf in jax.tree.leaves(state)]
        return leaves[0] if len(leaves) == 1 and isinstance(layer.cell, keras.layers.StackedRNNCells) else leaves

    def apply(parameters: Any, state: Any, xs: Any) -> Any:
        before = states(state) if hasattr(layer, "cell") else [leaf[None] for leaf in jax.tree.leaves(state)]
        with mock.patch("keras.src.backend.jax.numpy.tanh", jnp.tanh):  # Keras on JAX rounds that of float64 to float32
            answer, _ = layer.stateless_call(parameters, rest, frames(xs, 1)[None], initial_state=before)
        leaves = [leaf[0] for leaf in jax.tree.leaves(answer)]
        outputs = 2 if getattr(layer, "merge_mode", "") is None else 1
        ys = [channels(y, 1) for y in leaves[:outputs]]
        last = jax.tree.unflatten(jax.tree.structure(state), [channels(leaf, 0) for leaf in leaves[outputs:]])
        return last, ys[0] if outputs == 1 else Directions(*ys)

    def frames(array: Any, leading: int) -> Any:
        """Channels last."""
        return jnp.moveaxis(array, leading, -1) if len(shape) > 1 else array

    def channels(array: Any, leading: int) -> Any:
        """Channels first."""
        return jnp.moveaxis(array, -1, leading) if len(shape) > 1 else array

    def network(parameters: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(layer.trainable_variables, parameters, strict=True))):
            return convert.from_keras(layer)

    there_and_back = lambda network: convert.from_keras(convert.to_keras(network, return_state=True))  # noqa: E731
    parameters = draw([variable.value for variable in layer.trainable_variables], seed=1)
    assert all(parameter.dtype == dtype for parameter in parameters)
    return Original(parameters, network, apply, there_and_back)


def keras_cases() -> Iterator[Case]:
    def case(name: str, make: Callable[..., Any], shape: tuple[int, ...] = (I,)) -> Case:
        def build(dtype: str) -> Original:
            options = {"return_sequences": True, "return_state": True, "dtype": dtype}
            return keras(lambda layers: make(layers, **options), dtype, shape)

        return Case("keras", name, build)

    for activation in ("tanh", "relu", "sigmoid", "linear"):
        yield case(f"SimpleRNN {activation}", lambda k, a=activation, **o: k.SimpleRNN(H, activation=a, **o))
    yield case("LSTM", lambda k, **o: k.LSTM(H, **o))
    yield case("GRU, reset after", lambda k, **o: k.GRU(H, **o))
    yield case("GRU, reset before", lambda k, **o: k.GRU(H, reset_after=False, **o))
    yield case("SimpleRNN, no bias", lambda k, **o: k.SimpleRNN(H, use_bias=False, **o))
    yield case("LSTM, no bias", lambda k, **o: k.LSTM(H, use_bias=False, **o))
    yield case("GRU, reset after, no bias", lambda k, **o: k.GRU(H, use_bias=False, **o))
    yield case("GRU, reset before, no bias", lambda k, **o: k.GRU(H, use_bias=False, reset_after=False, **o))
    for merge in ("concat", "sum", "ave", "mul", None):
        yield case(f"Bidirectional GRU, {merge}", partial(bidirectional, "GRU", merge))
    yield case("Bidirectional LSTM", partial(bidirectional, "LSTM", "concat"))
    yield case(
        "StackedRNNCells",
        lambda k, dtype, **o: k.RNN(
            k.StackedRNNCells(
                [
                    k.LSTMCell(H, dtype=dtype),
                    k.GRUCell(4, dtype=dtype),
                    k.SimpleRNNCell(2, activation="relu", dtype=dtype),
                ],
                dtype=dtype,
            ),
            dtype=dtype,
            **o,
        ),
    )
    yield case("ConvLSTM1D", lambda k, **o: k.ConvLSTM1D(H, 3, padding="same", **o), (4, I))
    yield case("ConvLSTM2D", lambda k, **o: k.ConvLSTM2D(H, (3, 1), padding="same", use_bias=False, **o), (*SPACE, I))
    yield case("ConvLSTM2D", lambda k, **o: k.ConvLSTM2D(H, 3, padding="same", **o), (*SPACE, I))
    yield case("ConvLSTM1D, valid, dilated", lambda k, **o: k.ConvLSTM1D(H, 3, dilation_rate=2, **o), (6, I))
    yield case(
        "ConvLSTM2D, valid, strides",
        lambda k, **o: k.ConvLSTM2D(H, 3, strides=(1, 2), use_bias=False, **o),
        (*WIDE_SPACE, I),
    )
    yield case(
        "ConvLSTM2D, same, strides", lambda k, **o: k.ConvLSTM2D(H, 3, strides=2, padding="same", **o), (*WIDE_SPACE, I)
    )
    yield case("ConvLSTM3D, valid", lambda k, **o: k.ConvLSTM3D(H, (1, 3, 3), **o), (2, *WIDE_SPACE, I))


def bidirectional(kind: str, merge: str | None, layers: Any, **options: Any) -> Any:
    """A `Bidirectional` of Keras, whose own dtype is that of its layers."""
    return layers.Bidirectional(getattr(layers, kind)(H, **options), merge_mode=merge, dtype=options["dtype"])


def cases() -> Iterator[Case]:
    """Every library, cell, direction and option."""
    for library, build in (("linen", linen), ("nnx", nnx)):
        for cell in ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell"):
            for both in (False, True):
                name = f"{library} {cell}{', bidirectional' if both else ''}"
                yield Case("flax", name, partial(build, cell, both))
        relu = partial(build, "SimpleCell", False, activation_fn=jax.nn.relu)
        yield Case("flax", f"{library} SimpleCell relu", relu)
    for cell in ("VanillaRNN", "LSTM", "GRU"):
        yield Case("haiku", cell, partial(haiku, cell))
    yield Case("haiku", "VanillaRNN, one bias", partial(haiku, "VanillaRNN", double_bias=False))
    for cell in ("LSTMCell", "GRUCell"):
        for bias in (True, False):
            name = cell if bias else f"{cell}, no bias"
            yield Case("equinox", name, partial(equinox, cell, use_bias=bias))
    yield from keras_cases()


class Differences(NamedTuple):
    """The largest ones between an original and its counterpart."""

    values: float  # of outputs and last states
    gradients: float  # in parameters, states and inputs


def differences(original: Original) -> Differences:
    """Those of a batch of random sequences from random states, by one program."""
    network = original.network(original.parameters)
    state = draw(jax.eval_shape(network.initial), B, seed=2)
    xs = draw(network.input_type(), B, T, seed=3)

    def ours(parameters: Any, state: Any, xs: Any) -> Any:
        made = original.network(parameters)
        return jax.vmap(lambda state, xs: rnnjax.unroll(made, state, xs, engine=rnnjax.Scan()))(state, xs)

    def theirs(parameters: Any, state: Any, xs: Any) -> Any:
        return jax.vmap(lambda state, xs: original.apply(parameters, state, xs))(state, xs)

    arguments = original.parameters, state, xs
    cotangent = draw(jax.eval_shape(ours, *arguments), seed=4)

    @jax.jit
    def both(arguments: Any, cotangent: Any) -> Any:
        values, gradients = zip(*map(with_gradient(arguments, cotangent), (ours, theirs)), strict=True)
        return largest(*values), largest(*gradients)

    return Differences(*map(float, both(arguments, cotangent)))


def with_gradient(arguments: Any, cotangent: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function's values and its gradient for this cotangent."""

    def run(function: Callable[..., Any]) -> Any:
        values, transpose = jax.vjp(function, *arguments)
        return values, transpose(cotangent)

    return run


def largest(tree: Any, other: Any) -> Any:
    """The largest difference of two trees of one structure, in float64; NaN if there is one."""
    gaps = jax.tree.map(lambda a, b: jnp.abs(a.astype("float64") - b.astype("float64")).max(), tree, other)
    return jnp.stack(jax.tree.leaves(gaps)).max()


def same_bits(tree: Any, other: Any) -> bool:
    """Whether two networks have one structure and the same bits."""
    leaves, structure = jax.tree.flatten(tree)
    others, other_structure = jax.tree.flatten(other)
    bits = lambda leaf: (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())  # noqa: E731
    return structure == other_structure and list(map(bits, leaves)) == list(map(bits, others))


def main() -> None:
    """Print the table."""
    print(f"{'library':8} {'layer':40} {'dtype':8} {'values':>9} {'gradients':>9}  round trip")
    for case in cases():
        for dtype in ("float32", "float64") if case.installed else ():
            with jax.enable_x64(dtype == "float64"):  # with it Keras's GRU without a bias mixes float32 and float64
                print_row(case, dtype)


def print_row(case: Case, dtype: str) -> None:
    original = case.build(dtype)
    found, network = differences(original), original.network(original.parameters)
    trip = "same bits" if same_bits(original.there_and_back(network), network) else "rounded"
    print(f"{case.library:8} {case.name:40} {dtype:8} {found.values:9.1e} {found.gradients:9.1e}  {trip}", flush=True)


if __name__ == "__main__":
    main()
