"""Resets of single parts of a state: of one array, or of one layer of a stack."""

from functools import reduce
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .. import check
from ..arrays import Flags, PyTree, State, States, select
from ..cell import AbstractCell, Shapes, describe
from ..checked import Checked
from ..network import Options
from ..unroll import unroll
from .layer import AbstractWrapper, Layer, check_layer
from .stack import Stack

Parts: TypeAlias = PyTree[bool]


class PartialResets(AbstractWrapper):
    """A layer whose inputs are pairs `(xs, flags)`: a flag resets one part of the state before that step.

        layer = PartialResets(LSTM(32, 64, key=key), LSTMState(h=True, c=False))
        state, ys = unroll(layer, None, (xs, LSTMState(h=flags, c=None)))           flags [T], booleans

    `parts` is a prefix of the layer's state: True for a part that has flags of its own, False for one that has none.
    The flags have the same form, with [T] booleans for True and None for False. Where a flag is true, all arrays of its
    part are set to their initial values. The `resets` of `unroll` still reset the whole state.

    In a `Stack`, `parts` has an entry for each layer: `(False, True)` resets the second one alone. Where one flag is
    for all of a layer's state, the layer runs on any engine, as with `resets`. Otherwise the layer must be a cell, and
    runs as a plain one, which `Fused` and `Associative` refuse.

    Flags are inputs: at an ignored step, one from `length` on or a masked one, they have no effect. If all arrays of a
    cell have flags, a step where all are true is a reset as `unroll` has it: an input before it that is not finite
    makes the steps in between NaN, and changes neither values nor gradients after it. A reset of some arrays alone
    leaves NaN in the others, and in the gradient.
    """

    layer: Layer
    parts: Parts = eqx.field(static=True)

    def __init__(self, layer: Checked[Layer], parts: Checked[Parts]):
        """Raises unless `parts` is a prefix of the state, with True for at least one part that can be reset alone."""
        check_layer("layer", layer)
        check_parts(layer, parts)
        if not any(jax.tree.leaves(parts)):
            raise ValueError(
                f"parts: expected True for at least one part of the state, got {parts!r}. "
                "Use the layer itself if no part of its state has flags of its own"
            )
        self.layer = layer
        self.parts = parts

    def input_type(self) -> tuple[PyTree[jax.ShapeDtypeStruct], PyTree[jax.ShapeDtypeStruct | None]]:
        return self.layer.input_type(), flag_types(self.parts)

    def run(self, state: State, xs: tuple[PyTree[Array], PyTree[Flags]], options: Options) -> tuple[State, PyTree]:
        return run_with_flags(self.layer, self.parts, state, *xs, options)


class ResettingCell(AbstractCell):
    """A cell whose inputs are pairs `(x, flags)`, and whose step first resets the parts of its state with a flag."""

    cell: AbstractCell
    parts: Parts = eqx.field(static=True)
    __name__: str = eqx.field(static=True)

    def input_type(self) -> tuple[PyTree[jax.ShapeDtypeStruct], PyTree[jax.ShapeDtypeStruct | None]]:
        return self.cell.input_type(), flag_types(self.parts)

    def initial(self) -> State:
        return self.cell.initial()

    def project(self, xs: tuple[PyTree[Array], PyTree[Flags]]) -> tuple[PyTree[Array], PyTree[Flags]]:
        return self.cell.project(xs[0]), xs[1]

    def step(self, state: State, u: tuple[PyTree[Array], PyTree[Bool[Array, ""]]]) -> State:
        return self.cell.step(self._reset(state, u[1]), u[0])

    @property
    def emits_states(self) -> bool:
        return self.cell.emits_states

    def emit(self, state: State, before: State, u: tuple[PyTree[Array], PyTree[Bool[Array, ""]]]) -> PyTree[Array]:
        return self.cell.emit(state, self._reset(before, u[1]), u[0])

    def _reset(self, state: State, flags: PyTree[Bool[Array, ""]]) -> State:
        reset = lambda own, flag, initial, before: select(flag, initial, before) if own else before  # noqa: E731
        return jax.tree.map(reset, self.parts, flags, self.cell.initial(), state)

    def readout(self, states: States, xs: tuple[PyTree[Array], PyTree[Flags]]) -> PyTree[Array]:
        return self.cell.readout(states, xs[0])

    def hidden(self, state: State) -> Array | None:
        return self.cell.hidden(state)

    @property
    def weight_shapes(self) -> Shapes:
        return {f"cell.{name}": shape for name, shape in self.cell.weight_shapes.items()}


def run_with_flags(
    layer: Layer, parts: Parts, state: State, xs: PyTree[Array], flags: PyTree[Flags], options: Options
) -> tuple[State, PyTree[Array]]:
    """Run the layer with flags for these parts of its state."""
    owns, given = jax.tree.leaves(parts), jax.tree.leaves(flags)
    is_whole = len(owns) == 1
    if isinstance(layer, Stack) and not is_whole:

        def run_layer(number: int, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
            return run_with_flags(layer.layers[number], parts[number], state, xs, flags[number], options)

        return layer.run_layers(run_layer, state, xs, options)
    if all(owns):  # then all of the state is reset where all flags are true
        given = [reduce(jnp.logical_and, given)]
        options = options._replace(resets=given[0] if options.resets is None else options.resets | given[0])
    if is_whole:
        return unroll(layer, state, xs, **options._asdict())
    assert isinstance(layer, AbstractCell)
    cell = ResettingCell(layer, parts, f"PartialResets of {describe(layer)}")
    return unroll(cell, state, (xs, flags), **options._asdict())


def flag_types(parts: Parts) -> PyTree[jax.ShapeDtypeStruct | None]:
    """The flags of one step."""
    return jax.tree.map(lambda own: jax.ShapeDtypeStruct((), jnp.bool_) if own else None, parts)


def check_parts(layer: Layer, parts: Checked[Parts], name: str = "parts") -> None:
    """Raise unless it is True or False, or has that for each part of the state of a cell or a stack."""
    if isinstance(parts, bool):
        return
    if isinstance(layer, Stack) and isinstance(parts, tuple) and len(parts) == len(layer.layers):
        for number, inner in enumerate(layer.layers):
            check_parts(inner, parts[number], f"{name}[{number}]")
        return
    state = jax.eval_shape(layer.initial)
    if isinstance(layer, AbstractCell) and _is_prefix(parts, state):
        return
    if not isinstance(layer, AbstractCell | Stack):
        raise ValueError(
            f"{name}: expected True or False for {describe(layer)}, which is neither a cell nor a Stack, "
            f"got {parts!r}. Pass True for flags that reset all of its state"
        )
    raise ValueError(
        f"{name}: expected True or False for each part of {check.show(state)}, the state of {describe(layer)}, "
        f"got {parts!r}. Write a state of True and False, such as LSTMState(h=True, c=False), or True for all of it"
    )


def _is_prefix(parts: Any, state: State) -> bool:
    """Whether `parts` has the form of the upper part of the state's tree, with True or False at its leaves."""
    leaves, form = jax.tree.flatten(parts)
    if not all(isinstance(leaf, bool) for leaf in leaves):
        return False
    try:
        form.flatten_up_to(state)
    except ValueError:
        return False
    return True
