"""Sequence to sequence: an encoder reads the source, a decoder generates the target."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from .. import check, random
from ..arrays import AnyArray, IntegerLike, PyTree, State, widen
from ..checked import Checked
from ..compiled import compiled
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..marks import valid_steps
from ..named import as_module
from ..network import Layer
from ..unroll import unroll
from .attention import check_mask
from .bridge import Bridge
from .decoder import AbstractDecoder, Encoded
from .embedding import Embedding, OutputLayer
from .forms import embedded_form, encoded_form, features_form
from .search import Decoding


class Seq2Seq(eqx.Module):
    """The distribution of the next target token, given the source and the target so far.

        last, ys = encoder(source_embedding(source))                     memory = decoder.remember(last, ys)
        s_t, f_t, a_t = decoder.step(memory, s_{t-1}, target_embedding(token_t))            s_0 = bridge(last)
        logits_t = output(f_t)

    Sutskever et al. 2014 (arXiv:1409.3215) and Cho et al. 2014 with a `ContextDecoder`, Bahdanau et al. 2015 and Luong
    et al. 2015 with the decoders of these names. Every method takes one sequence: use `jax.vmap` for a batch.
    """

    encoder: Layer
    decoder: AbstractDecoder
    bridge: Callable[[State], State] = eqx.field(converter=as_module)
    source_embedding: Embedding  # [V, E]
    target_embedding: Embedding  # [W, D]
    output: OutputLayer  # [W, F]
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        source_vocabulary_size: int,
        target_vocabulary_size: int,
        encoder: Layer,
        decoder: AbstractDecoder,
        *,
        key: PRNGKeyArray,
        bridge: Checked[Callable[[State], State] | None] = None,
        dropout: float = 0.0,
    ):
        """Draw embeddings and output weights, with the sizes and dtypes of the encoder and the decoder.

        bridge    from the encoder's last state to the initial state of the decoder's recurrence; None: draws a `Bridge`
        dropout   the probability of dropping a feature of an embedded token, in source and target, if there is a key

        Raises ValueError for parts that do not fit together.
        """
        check.sizes(source_vocabulary_size=source_vocabulary_size, target_vocabulary_size=target_vocabulary_size)
        keys = random.split(key, 4)
        self.encoder = encoder
        self.decoder = decoder
        self.dropout = check.probability("dropout", dropout)
        encoded = encoded_form(encoder)
        expected = jax.eval_shape(decoder.recurrence.initial)
        self.bridge = Bridge(encoded.last, expected, key=keys[0]) if bridge is None else bridge
        dtype = encoded.ys.dtype
        embedded = embedded_form(decoder, encoded)
        features = features_form(decoder, self.bridge, encoded, embedded)
        step = encoder.input_type()
        self.source_embedding = Embedding(source_vocabulary_size, *step.shape, key=keys[1], dtype=step.dtype)
        self.target_embedding = Embedding(target_vocabulary_size, *embedded.shape, key=keys[2], dtype=dtype)
        self.output = OutputLayer(target_vocabulary_size, *features.shape, key=keys[3], dtype=dtype)

    def encode(
        self,
        source: Checked[AnyArray],
        *,
        length: Checked[IntegerLike | None] = None,
        mask: Checked[AnyArray | None] = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[PyTree[Array], State, Array]:
        """The decoder's memory of `source`, its initial state, and the mask of the attention, [S].

        source    [S], the tokens of one sequence
        length    as in `unroll`: tokens from there on are ignored, whatever they are. With a length of 0 the context is
                  zero, and the encoder's last state is its initial one
        mask      [S] booleans: false where the attention has a weight of zero. The encoder still reads those steps
        engine    how the encoder runs along time
        key       for dropout; None: nothing is dropped
        """
        keys = (None, None) if key is None else jax.random.split(key)
        S = jnp.shape(source)[0] if jnp.ndim(source) else 0
        length = check.length(length, S)
        valid = jnp.ones(S, bool) if length is None else valid_steps(length, S)
        xs = self._drop(self.source_embedding(source, name="source", valid=valid), keys[0])
        last, ys = unroll(self.encoder, None, xs, length=length, engine=engine, key=keys[1])
        visible = valid if mask is None else valid & check_mask(mask, S)
        memory = self.decoder.remember(Encoded(last, self.encoder.hidden(last), ys, visible))
        return memory, self.decoder.initial(self.bridge(last)), visible

    def logits(
        self,
        source: Checked[AnyArray],
        target: Checked[AnyArray],
        *,
        length: Checked[IntegerLike | None] = None,
        mask: Checked[AnyArray | None] = None,
        teacher_forcing: Checked[float | Array] = 1.0,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "T W"], Float[Array, "T S"] | None]:
        """The logits of the token after each of `target`, in float32 or wider, and the alignments.

        source, length, mask, engine, key   as in `encode`; a `ContextDecoder` runs by the engine, too
        target             [T], the tokens fed to the decoder, beginning with the start token
        teacher_forcing    at each step, the probability of feeding the token of `target`; otherwise the model's most
                           likely token is fed: scheduled sampling (Bengio et al. 2015, arXiv:1506.03099), by argmax,
                           through which no gradient passes. Needs a `key` unless it is 0 or 1; may be traced

        Alignments are [T, S], zeros where masked; None for a decoder without attention.
        """
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        memory, state, _ = self.encode(source, length=length, mask=mask, engine=engine, key=keys[0])
        tokens = self.target_embedding.check(target, name="target")
        _check_probability(teacher_forcing, key)
        if isinstance(teacher_forcing, int | float) and teacher_forcing == 1:
            embedded = self._drop(self.target_embedding.rows(tokens), keys[1])
            _, features, alignments = self.decoder.run(memory, state, embedded, engine=engine, key=keys[2])
            return self.output(features), alignments
        return self._scheduled(memory, state, tokens, teacher_forcing, keys[1])

    def step(
        self, memory: PyTree[Array], state: State, token: Integer[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> tuple[State, Float[Array, " W"], Float[Array, " S"] | None]:
        """The decoder's state after one target token, the logits of the next, and the alignment."""
        (token,) = self.target_embedding.check(jnp.asarray(token)[None], name="token")
        return self._step(memory, state, token, key=key)

    def decoding(
        self,
        source: Checked[AnyArray],
        *,
        length: Checked[IntegerLike | None] = None,
        mask: Checked[AnyArray | None] = None,
        engine: AbstractEngine = Auto(),
    ) -> Decoding:
        """The arguments of `greedy`, `sample_sequence` and `beam_search`, for `source`. Arguments as in `encode`."""
        memory, state, visible = self.encode(source, length=length, mask=mask, engine=engine)
        return Decoding(lambda state, token: self._step(memory, state, token), state, visible)

    def _step(
        self, memory: PyTree[Array], state: State, token: Integer[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> tuple[State, Float[Array, " W"], Float[Array, " S"] | None]:
        """`step`, for a token that is known to be in the vocabulary."""
        keys = (None, None) if key is None else jax.random.split(key)
        embedded = self._drop(self.target_embedding.rows(token), keys[0])
        state, features, alignment = self.decoder.step(memory, state, embedded, key=keys[1])
        return state, self.output(features), alignment

    def _scheduled(
        self, memory: PyTree[Array], state: State, tokens: Array, teacher_forcing: Any, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "T W"], Float[Array, "T S"] | None]:
        """`logits` with scheduled sampling, step by step, since each input may depend on the output before."""
        T = tokens.shape[0]
        coin, dropping = (None, None) if key is None else jax.random.split(key)
        forced = jnp.zeros(T, bool) if coin is None else jax.random.bernoulli(coin, teacher_forcing, (T,))
        keys = None if dropping is None else jax.random.split(dropping, T)
        return _run_scheduled(self, memory, state, (tokens, forced | (jnp.arange(T) == 0), keys))

    def _drop(self, embedded: Array, key: PRNGKeyArray | None) -> Array:
        return eqx.nn.Dropout(self.dropout, inference=key is None)(embedded, key=key)


@compiled
def _run_scheduled(
    model: Seq2Seq, memory: PyTree[Array], state: State, inputs: tuple[Array, Array, Array | None]
) -> tuple[Float[Array, "T W"], Float[Array, "T S"] | None]:
    """The logits and the alignments; `inputs` are the tokens, whether each is forced, and the keys."""
    wide, narrow = widen((model, memory))

    def one(carry: tuple[State, Array], inputs: tuple[Array, Array, PRNGKeyArray | None]) -> tuple[Any, Any]:
        (state, predicted), (token, forced, key) = carry, inputs
        model, memory = narrow(wide)
        fed = jnp.where(forced, token, predicted)
        state, logits, alignment = model._step(memory, state, fed, key=key)
        return (state, jnp.argmax(logits).astype(int)), (logits, alignment)

    predicted = jnp.zeros((), inputs[0].dtype)  # not used: the first step is always forced
    return jax.lax.scan(one, (state, predicted), inputs)[1]


def _check_probability(teacher_forcing: Any, key: PRNGKeyArray | None) -> None:
    known = isinstance(teacher_forcing, int | float)
    if known and not 0 <= teacher_forcing <= 1:
        raise ValueError(
            f"teacher_forcing: expected a probability from 0 to 1, got {teacher_forcing!r}. "
            "Pass 1 to feed the token of the target at each step, and 0 to feed the model's own"
        )
    if key is None and not (known and teacher_forcing in (0, 1)):
        raise ValueError(
            "key: expected one to draw by, since teacher_forcing is neither 0 nor 1, got None. "
            "Pass key=jax.random.key(0)"
        )
