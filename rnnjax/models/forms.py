"""Checks, by shapes and dtypes alone, that an encoder, a bridge and a decoder fit together."""

from collections.abc import Callable

import jax
from jaxtyping import Array

from .. import check
from ..arrays import State
from ..network import Layer
from ..unroll import unroll
from .bridge import check_bridge
from .decoder import AbstractDecoder, Encoded


def encoded_form(encoder: Layer) -> Encoded:
    """The shapes and dtypes of an encoder's results for a source of one step."""
    step = encoder.input_type()
    if jax.tree.structure(step) != jax.tree.structure(0) or len(step.shape) != 1:
        raise ValueError(
            f"encoder: expected one that takes vectors [E], got one of {check.show(step)}. "
            "Use a cell of vectors, such as LSTM, or a network that begins with one"
        )
    one = jax.ShapeDtypeStruct((1, *step.shape), step.dtype)
    last, ys = jax.eval_shape(lambda xs: unroll(encoder, None, xs), one)
    if jax.tree.structure(ys) != jax.tree.structure(0) or ys.ndim != 2:
        raise ValueError(
            f"encoder: expected outputs [S, M], got {check.show(ys)}. "
            "Use a cell or network that puts out one vector for each step, such as LSTM"
        )
    return Encoded(last, jax.eval_shape(encoder.hidden, last), ys, jax.ShapeDtypeStruct((1,), bool))


def embedded_form(decoder: AbstractDecoder, encoded: Encoded) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an embedded target token: the recurrence's input less the features that the decoder feeds."""
    (taken,), dtype = decoder.recurrence.input_type().shape, decoder.recurrence.input_type().dtype
    fed = decoder.fed_size(encoded)
    if taken <= fed:
        raise ValueError(
            f"decoder: expected a recurrence of more than {fed} inputs, those it is fed beside the embedded token, "
            f"got {taken}. "
            f"Build it with input_size={fed} + E, where E is the size of the embedding"
        )
    if dtype != encoded.ys.dtype:
        raise ValueError(
            f"decoder: expected a recurrence of {encoded.ys.dtype}, as the encoder is, got {dtype}. "
            f"Build both with dtype=jnp.{encoded.ys.dtype}"
        )
    return jax.ShapeDtypeStruct((taken - fed,), dtype)


def features_form(
    decoder: AbstractDecoder, bridge: Callable[[State], State], encoded: Encoded, embedded: jax.ShapeDtypeStruct
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the features of the next token. Raises unless the bridge fits."""
    state, expected = jax.eval_shape(bridge, encoded.last), jax.eval_shape(decoder.recurrence.initial)
    check_bridge(state, expected, "the decoder's recurrence")

    def features(encoded: Encoded, state: State, embedded: Array) -> Array:
        return decoder.step(decoder.remember(encoded), decoder.initial(state), embedded, key=None)[1]

    return jax.eval_shape(features, encoded, state, embedded)
