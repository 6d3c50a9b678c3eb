"""The noun *network*: cells combined, run by the same `unroll` as one cell."""

import abc
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .arrays import Flags, Length, PyTree, State, sole_vector
from .cell import AbstractCell
from .engine import AbstractEngine
from .marks import isolate


class Options(NamedTuple):
    """The options of `unroll`, which a network passes on to its layers."""

    length: Length | None
    resets: Flags | None
    engine: AbstractEngine
    key: PRNGKeyArray | None

    def split_key(self, number: int) -> tuple[PRNGKeyArray | None, PRNGKeyArray | None]:
        """Two keys for layer `number`; None if there is no key."""
        return split_key(self.key, number)

    def over_time(self, function: Callable[..., PyTree[Array]], *arrays: PyTree[Array]) -> PyTree[Array]:
        """`function` of arrays over time, which treats each step by itself; with resets, see `isolate`."""
        return function(*arrays) if self.resets is None else isolate(function, *arrays)


def split_key(key: PRNGKeyArray | None, number: int) -> tuple[PRNGKeyArray | None, PRNGKeyArray | None]:
    """Two keys for layer `number` of a network that was given `key`; None if there is no key."""
    if key is None:
        return None, None
    first, second = jax.random.split(jax.random.fold_in(key, number))
    return first, second


class AbstractNetwork(eqx.Module):
    """Sequence and state in, sequence and state out.

    Subclass requirements: `input_type` and `initial` as for a cell; `run`, which calls `unroll` on its layers and
    passes on its options, so that lengths, resets and engines mean the same at any depth. Its inputs are checked, have
    safe values in ignored steps, and are already reversed if they are to run in reverse.
    """

    @abc.abstractmethod
    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shape and dtype of the input of one step, to check `xs` by."""

    @abc.abstractmethod
    def initial(self) -> State:
        """The state before the first step, and after a reset."""

    @abc.abstractmethod
    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        """The last state and the outputs over time."""

    def hidden(self, state: State) -> Float[Array, " H"] | None:
        """The part of a state that attention and decoders read. By default its only array, if that is real."""
        return sole_vector(state)


Layer: TypeAlias = AbstractCell | AbstractNetwork
