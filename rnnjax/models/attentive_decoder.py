"""Decoders with attention to the source."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise
from ..arrays import State, by_gate, widen
from ..compiled import compiled
from ..engine import AbstractEngine
from ..exporting import exportable
from ..gated_cell import AbstractAffineCell, affine
from ..map_steps import map_steps
from ..named import as_module
from ..network import Layer
from ..networks.layer import output_type
from .attention import AbstractScore, Memory, align, attend, remember, weigh
from .decoder import AbstractDecoder, Encoded, hidden, one_step


class BahdanauDecoder(AbstractDecoder):
    """Bahdanau et al. 2015, arXiv:1409.0473: the query of the attention is the state before the step.

        c_t, a_t = attend(score, h_{t-1}, memory)
        h_t = recurrence(h_{t-1}, [e_t; c_t])              features_t = readout([y_t; c_t; e_t])

    h_{t-1} is the recurrence's `hidden`: for a stack, that of the topmost layer. `readout`, a function of one vector
    such as `eqx.nn.MLP`, is the paper's deep output; there is none by default. The output layer multiplies all features
    by all words of the vocabulary: for a large vocabulary, let `readout` return few features.
    """

    recurrence: Layer
    score: AbstractScore
    readout: Callable[[Array], Array] = eqx.field(converter=as_module, default=eqx.nn.Identity())

    def fed_size(self, encoded: Encoded) -> int:
        return encoded.ys.shape[1]

    def remember(self, encoded: Encoded) -> Memory:
        return remember(self.score, encoded.ys, encoded.mask)

    def initial(self, state: State) -> State:
        return state

    def step(
        self, memory: Memory, state: State, embedded: Float[Array, " E"], *, key: PRNGKeyArray | None
    ) -> tuple[State, Float[Array, " F"], Float[Array, " S"]]:
        context, alignment = attend(self.score, hidden(self.recurrence, state), memory)
        state, y = one_step(self.recurrence, state, jnp.concatenate([embedded, context]), key)
        return state, self.readout(jnp.concatenate([y, context, embedded])), alignment

    def run(
        self,
        memory: Memory,
        state: State,
        embedded: Float[Array, "T E"],
        *,
        engine: AbstractEngine,
        key: PRNGKeyArray | None,
    ) -> tuple[State, Float[Array, "T F"], Float[Array, "T S"] | None]:
        cell = self.recurrence
        empty = 0 in (embedded.shape[0], memory.mask.shape[0])
        if not isinstance(cell, AbstractAffineCell) or not cell.emits_states or empty:
            return super().run(memory, state, embedded, engine=engine, key=key)
        state, features, alignments = _run_affine(cell, self.score, memory, state, embedded)
        return state, map_steps(self.readout, features), alignments


@compiled
def _run_affine(
    cell: AbstractAffineCell, score: AbstractScore, memory: Memory, state: State, embedded: Float[Array, "T E"]
) -> tuple[State, Float[Array, "T F"], Float[Array, "T S"]]:
    """`run` for a cell whose `u = W [e; c] + b` is linear in the context, and so in the values that are averaged.

    W e is one product for all tokens, and W c = sum_s a_s W m_s, where each W m_s is computed once: there is no product
    with W inside the loop.
    """
    size = embedded.shape[-1]
    of_embedded = affine(cell.input_weight[:size], cell.bias, embedded)
    of_memory = affine(cell.input_weight[size:], None, memory.values)

    wide, narrow = widen((cell, score, memory, of_memory))

    def one(state: State, u: Array) -> tuple[State, tuple[State, Array]]:
        cell, score, memory, of_memory = narrow(wide)
        alignment = align(score, hidden(cell, state), memory)
        u = by_gate(u + weigh(alignment, of_memory), len(cell.gates))
        state = cell.step(state, u)
        return state, (state, alignment)

    state, (states, alignments) = jax.lax.scan(one, state, of_embedded)
    contexts = weigh(alignments, memory.values)
    ys = cell.readout(states, jnp.concatenate([embedded, contexts], axis=-1))
    return state, jnp.concatenate([ys, contexts, embedded], axis=-1), alignments


@exportable
class InputFed(NamedTuple):
    """The state of a decoder with input feeding: that of its recurrence, and its last features."""

    recurrence: State
    attentional: Array


class LuongDecoder(AbstractDecoder):
    """Luong et al. 2015, arXiv:1508.04025, with input feeding: the query of the attention is the output of the step.

        h_t = recurrence(h_{t-1}, [e_t; a_{t-1}])
        c_t = attend(score, y_t, memory)
        a_t = tanh(W [c_t; y_t])                           features_t = a_t

    a, the attentional vector of A features, is zero before the first step.
    """

    recurrence: Layer
    score: AbstractScore
    attentional_weight: Float[Array, "M_plus_O A"]

    def __init__(
        self,
        recurrence: Layer,
        score: AbstractScore,
        *,
        memory_size: int,
        attentional_size: int,
        key: PRNGKeyArray,
    ):
        """Draw W. `memory_size` is M, the size of the encoder's outputs, and `attentional_size` is A."""
        check.sizes(memory_size=memory_size, attentional_size=attentional_size)
        output = output_type(recurrence)
        shape = memory_size + output.shape[0], attentional_size
        self.recurrence = recurrence
        self.score = score
        self.attentional_weight = initialise.glorot(key, shape, output.dtype)

    def fed_size(self, encoded: Encoded) -> int:
        del encoded
        return self.attentional_weight.shape[1]

    def remember(self, encoded: Encoded) -> Memory:
        memory = remember(self.score, encoded.ys, encoded.mask)
        size = self.attentional_weight.shape[0] - output_type(self.recurrence).shape[0]
        if encoded.ys.shape[1] != size:
            raise ValueError(
                f"memory_size: expected {encoded.ys.shape[1]}, that of the encoder's outputs, got {size}. "
                f"Build the decoder with memory_size={encoded.ys.shape[1]}"
            )
        return memory

    def initial(self, state: State) -> InputFed:
        return InputFed(state, jnp.zeros(self.attentional_weight.shape[1], self.attentional_weight.dtype))

    def step(
        self, memory: Memory, state: InputFed, embedded: Float[Array, " E"], *, key: PRNGKeyArray | None
    ) -> tuple[InputFed, Float[Array, " A"], Float[Array, " S"]]:
        fed = jnp.concatenate([embedded, state.attentional])
        recurrence, y = one_step(self.recurrence, state.recurrence, fed, key)
        context, alignment = attend(self.score, y, memory)
        attentional = jnp.tanh(jnp.concatenate([context, y]) @ self.attentional_weight)
        return InputFed(recurrence, attentional), attentional, alignment
