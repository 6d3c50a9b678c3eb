"""Language models: embedding, network, softmax; and sampling from them."""

from functools import partial
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray

from .. import check, random
from ..arrays import AnyArray, State
from ..cell import AbstractCell
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..network import AbstractNetwork
from ..unroll import unroll
from .embedding import Embedding, OutputLayer
from .objectives import cross_entropy
from .search import Decoding, known_token


class LanguageModel(eqx.Module):
    """The next token's distribution, by a recurrent network over the tokens so far (Mikolov et al. 2010).

        xs = embedding[tokens]        ys = network(xs)        logits = ys V^T + b

    A token outside the vocabulary is an error, as an input and as a target: see `Embedding`. There are no masks: the
    input is a stream, in which a reset may begin the next text.

    With `tied` weights V is the embedding itself (Press & Wolf 2017, arXiv:1608.05859), and the network must put out
    what it takes in.

    Dropout is the network's. That of Zaremba et al. 2014 (arXiv:1409.2329), of embeddings, between layers and of
    outputs, afresh at each step, is a `Stack` with a layer that does nothing at either end, as it drops between layers:

        same = TimeDistributed(jax.nn.identity, 650)
        Stack([same, LSTM(650, 650, key=a), LSTM(650, 650, key=b), same], dropout=0.5)

    The recipe of Merity et al. 2018 is `awd_loss`.
    """

    embedding: Embedding
    network: AbstractCell | AbstractNetwork
    output: OutputLayer

    def __init__(
        self, vocabulary_size: int, network: AbstractCell | AbstractNetwork, *, key: PRNGKeyArray, tied: bool = False
    ):
        """Draw the embedding and the output weights, of the sizes and dtype of the network's input and output."""
        check.flags(tied=tied)
        step = network.input_type()
        one = jax.ShapeDtypeStruct((1, *step.shape), step.dtype)
        (output_size,) = jax.eval_shape(lambda xs: unroll(network, None, xs)[1], one).shape[1:]
        (input_size,) = step.shape
        if tied and output_size != input_size:
            raise ValueError(
                f"tied: expected an output size that is the input size {input_size}, got {output_size}. "
                f"Pass tied=False, or a network of {input_size} outputs"
            )
        keys = random.split(key, 2)
        self.embedding = Embedding(vocabulary_size, input_size, key=keys[0], dtype=step.dtype)
        self.network = network
        self.output = OutputLayer(vocabulary_size, output_size, key=keys[1], dtype=step.dtype, tied=tied)

    def initial(self) -> State:
        """The network's state before the first token."""
        return self.network.initial()

    def logits(
        self,
        state: State,
        tokens: Integer[Array, " T"],
        *,
        resets: Bool[Array, " T"] | None = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, Float[Array, "T V"]]:
        """The state after `tokens`, and after each of them the logits of the next, in float32 or wider."""
        state, ys = self.outputs(state, tokens, resets=resets, engine=engine, key=key)
        return state, self.classify(ys)

    def outputs(
        self,
        state: State,
        tokens: Integer[Array, " T"],
        *,
        resets: Bool[Array, " T"] | None = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, Float[Array, "T O"]]:
        """The state after `tokens`, and what the network puts out after each, which `classify` takes."""
        xs = self.embedding(tokens)
        return unroll(self.network, state, xs, resets=resets, engine=engine, key=key)

    def classify(self, ys: Float[Array, "T O"]) -> Float[Array, "T V"]:
        """The logits by the network's outputs, in float32 or wider."""
        return self.output(ys, tied=self.embedding.weight)

    def decoding(self, state: State | None = None) -> Decoding:
        """The arguments of `greedy`, `sample_sequence` and `beam_search`. Nothing is aligned."""

        def step(state: State, token: Array) -> tuple[State, Float[Array, " V"], None]:
            state, ys = unroll(self.network, state, self.embedding.rows(token[None]))
            return state, self.classify(ys)[0], None

        return Decoding(step, self.initial() if state is None else state, jnp.zeros(0, bool))


def language_loss(
    model: LanguageModel,
    state: State,
    batch: Checked[tuple[AnyArray, AnyArray, AnyArray]],
    key: PRNGKeyArray | None,
    *,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], State]:
    """Mean cross-entropy of the next token in nats, and the states after the chunk: a loss for `fit`.

    batch     (inputs, targets, resets), each [B, T]: a `Chunk` of `rnnjax.training.streams`
    state     B states, a leading axis on each leaf; see `batch_of_states`
    key       for dropout in the network, drawn anew for each of the B streams; None: nothing is dropped
    """
    inputs, targets, resets = cast("tuple[Array, Array, Array]", batch)
    keys = None if key is None else jax.random.split(key, inputs.shape[0])

    def one(state: State, tokens: Array, resets: Array, key: PRNGKeyArray | None) -> tuple[State, Array]:
        return model.logits(state, tokens, resets=resets, engine=engine, key=key)

    state, logits = jax.vmap(one)(state, inputs, resets, keys)
    targets = jax.vmap(partial(model.embedding.check, name="targets"))(targets)
    return cross_entropy(logits, targets).mean(), state


def batch_of_states(model: LanguageModel, size: int) -> State:
    """`size` initial states."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), model.initial())


def sample(
    model: LanguageModel,
    prompt: Integer[Array, " P"],
    steps: int,
    *,
    key: PRNGKeyArray,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int[Array, " steps"]:
    """`steps` tokens that follow `prompt`, drawn one by one, the state carried from each to the next; jitted.

    temperature   divides the logits: below 1 the likely becomes likelier; 0 takes the likeliest
    top_k         draws from the k likeliest tokens only

    Tokens are -1 from where the logits are NaN, as after weights that are NaN.
    """
    vocabulary_size = model.embedding.vocabulary_size
    prompt = model.embedding.check(prompt, name="prompt")
    if prompt.shape[0] == 0:
        raise ValueError(
            "prompt: expected at least one token, [P], got [0]. "
            "Pass the token that begins a sequence if there is no text to go on from"
        )
    if not check.number("temperature", temperature) >= 0:
        raise ValueError(
            f"temperature: expected 0 or more, got {temperature}. "
            "Pass 0 for the most likely token at each step, and 1 for the model's own distribution"
        )
    check.count("steps", steps, least=0)
    if top_k is not None:
        check.count("top_k", top_k)
    if top_k is not None and not top_k <= vocabulary_size:
        raise ValueError(
            f"top_k: expected from 1 to the vocabulary's {vocabulary_size}, got {top_k}. "
            "Pass None to draw from all tokens"
        )
    return _sample(model, prompt, steps, key, temperature, top_k)


@eqx.filter_jit
def _sample(
    model: LanguageModel, prompt: Array, steps: int, key: PRNGKeyArray, temperature: float, top_k: int | None
) -> Array:
    def step(carry: tuple[State, Array], key: PRNGKeyArray) -> tuple[tuple[State, Array], Array]:
        state, logits = carry
        token = draw(key, logits)
        state, logits, _ = next_step(state, token)
        return (state, logits), token

    draw = partial(_draw, temperature=temperature, top_k=top_k)
    next_step = model.decoding().step
    state, logits = model.logits(model.initial(), prompt)
    _, tokens = jax.lax.scan(step, (state, logits[-1]), jax.random.split(key, steps))
    return tokens.astype(int)


def _draw(key: PRNGKeyArray, logits: Array, *, temperature: float, top_k: int | None) -> Array:
    if temperature == 0:
        return known_token(logits, jnp.argmax(logits))
    if top_k is None:
        return known_token(logits, jax.random.categorical(key, logits / temperature))
    likely, tokens = jax.lax.top_k(logits, top_k)  # k of them even where some are equally likely
    return known_token(logits, tokens[jax.random.categorical(key, likely / temperature)])
