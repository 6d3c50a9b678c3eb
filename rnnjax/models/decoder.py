"""Decoders: the features of the next token, from the memory of the source and the tokens so far.

S steps of the source, M features each; T target tokens, embedded in E features.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check
from ..arrays import PyTree, Shaped, State, widen
from ..compiled import compiled
from ..engine import AbstractEngine
from ..engines.unrolled import Unrolled
from ..exporting import exportable
from ..named import named
from ..network import Layer
from ..unroll import unroll


@exportable
class Encoded(NamedTuple):
    """The results of an encoder: its last state, the hidden part of it, outputs [S, M], and a mask [S] for attention.

    `hidden` is `encoder.hidden(last)`: None if the encoder has no hidden state of real numbers.
    """

    last: State
    hidden: Shaped | None
    ys: Shaped
    mask: Shaped


class AbstractDecoder(eqx.Module):
    """One step at a time: the memory, a state and an embedded token give the features of the next token.

    Subclass requirements: the field below, and five methods. `run` is teacher forcing, where all tokens are known. Its
    default calls `step` for one token after the other; override it if more can be done for all of time at once.
    """

    recurrence: eqx.AbstractVar[Layer]

    @abc.abstractmethod
    def fed_size(self, encoded: Encoded) -> int:
        """How many features are fed to the recurrence beside the embedded token, by the shapes of `encoded`."""

    @abc.abstractmethod
    def remember(self, encoded: Encoded) -> PyTree[Array]:
        """The memory: everything that is computed once for all steps."""

    @abc.abstractmethod
    def initial(self, state: State) -> State:
        """The decoder's state before the first token, from that of the recurrence."""

    @abc.abstractmethod
    def step(
        self, memory: PyTree[Array], state: State, embedded: Float[Array, " E"], *, key: PRNGKeyArray | None
    ) -> tuple[State, Float[Array, " F"], Float[Array, " S"] | None]:
        """The state after one token, the features of the next, and the alignment, or None without attention.

        `key` is of this step alone: the recurrence draws new dropout masks at each step, `VariationalDropout` too.
        """

    def run(
        self,
        memory: PyTree[Array],
        state: State,
        embedded: Float[Array, "T E"],
        *,
        engine: AbstractEngine,
        key: PRNGKeyArray | None,
    ) -> tuple[State, Float[Array, "T F"], Float[Array, "T S"] | None]:
        """`step` along all embedded tokens: the last state, and features and alignments over time."""
        del engine  # the input of a step depends on the step before
        return _run_steps(self, memory, state, embedded, key)


@compiled
def _run_steps(
    decoder: AbstractDecoder, memory: PyTree[Array], state: State, embedded: Array, key: PRNGKeyArray | None
) -> tuple[State, Float[Array, "T F"], Float[Array, "T S"] | None]:
    wide, narrow = widen((decoder, memory))

    def one(state: State, inputs: tuple[Array, PRNGKeyArray | None]) -> tuple[State, tuple[Array, Any]]:
        decoder, memory = narrow(wide)
        x, key = inputs
        state, features, alignment = decoder.step(memory, state, x, key=key)
        return state, (features, alignment)

    keys = None if key is None else jax.random.split(key, embedded.shape[0])
    state, (features, alignments) = jax.lax.scan(one, state, (embedded, keys))
    return state, features, alignments


class ContextDecoder(AbstractDecoder):
    """Cho et al. 2014, arXiv:1406.1078: no attention; every step gets the context c, a summary of the source.

        h_t = recurrence(h_{t-1}, [e_t; c])        features_t = [y_t; c; e_t]

    c is `summary(last state of the encoder)`; None, the default, takes the encoder's `hidden`. If all tokens are known
    only the recurrence is sequential, and any engine can run it, such as `Fused`. There are no alignments.
    """

    recurrence: Layer
    summary: Callable[[State], Array] | None = eqx.field(static=True, converter=named, default=None)

    def fed_size(self, encoded: Encoded) -> int:
        return jax.eval_shape(self.remember, encoded).shape[0]

    def remember(self, encoded: Encoded) -> Float[Array, " C"]:
        context: Any = encoded.hidden if self.summary is None else self.summary(encoded.last)
        if context is None:
            raise ValueError(
                f"encoder: expected a hidden state of real numbers, got the state {check.show(encoded.last)}. "
                f"Give ContextDecoder a `summary` of it"
            )
        return context.astype(encoded.ys.dtype)

    def initial(self, state: State) -> State:
        return state

    def step(
        self, memory: Float[Array, " C"], state: State, embedded: Float[Array, " E"], *, key: PRNGKeyArray | None
    ) -> tuple[State, Float[Array, " F"], None]:
        state, y = one_step(self.recurrence, state, jnp.concatenate([embedded, memory]), key)
        return state, jnp.concatenate([y, memory, embedded]), None

    def run(
        self,
        memory: Float[Array, " C"],
        state: State,
        embedded: Float[Array, "T E"],
        *,
        engine: AbstractEngine,
        key: PRNGKeyArray | None,
    ) -> tuple[State, Float[Array, "T F"], None]:
        contexts = jnp.broadcast_to(memory, (embedded.shape[0], *memory.shape))
        xs = jnp.concatenate([embedded, contexts], axis=-1)
        state, ys = unroll(self.recurrence, state, xs, engine=engine, key=key)
        return state, jnp.concatenate([ys, contexts, embedded], axis=-1), None


def hidden(recurrence: Layer, state: State) -> Float[Array, " H"]:
    """`recurrence.hidden(state)`. Raises ValueError if there is none."""
    h = recurrence.hidden(state)
    if h is None:
        raise ValueError(
            f"recurrence: expected a hidden state of real numbers, got the state {check.show(state)}. "
            f"Override the method `hidden` of {type(recurrence).__name__}"
        )
    return h


def one_step(recurrence: Layer, state: State, x: Array, key: PRNGKeyArray | None) -> tuple[State, Float[Array, " H"]]:
    """The state and the output of a cell or a network after one input."""
    state, ys = unroll(recurrence, state, x[None], engine=Unrolled(), key=key)
    return state, ys[0]
