"""Language models: embedding, network, softmax."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from .. import check, random
from ..arrays import AnyArray, IntegerLike, State
from ..cell import AbstractCell
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..marks import valid_steps
from ..network import AbstractNetwork
from ..unroll import unroll
from .batches import CHUNK, batch_parts
from .embedding import Embedding, OutputLayer
from .objectives import cross_entropy
from .search import Decoding


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
        length: Checked[IntegerLike | None] = None,
        resets: Bool[Array, " T"] | None = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, Float[Array, "T V"]]:
        """The state after `tokens`, and after each of them the logits of the next, in float32 or wider.

        `length`, `resets`, `engine` and `key` are as in `unroll`. What stands from `length` on may be anything.
        """
        state, ys = self.outputs(state, tokens, length=length, resets=resets, engine=engine, key=key)
        return state, self.classify(ys)

    def outputs(
        self,
        state: State,
        tokens: Integer[Array, " T"],
        *,
        length: Checked[IntegerLike | None] = None,
        resets: Bool[Array, " T"] | None = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, Float[Array, "T O"]]:
        """The state after `tokens`, and what the network puts out after each, which `classify` takes."""
        T = next(iter(jnp.shape(tokens)), 0)
        length = check.length(length, T)
        xs = self.embedding(tokens, valid=None if length is None else valid_steps(length, T))
        return unroll(self.network, state, xs, length=length, resets=resets, engine=engine, key=key)

    def classify(self, ys: Float[Array, "T O"]) -> Float[Array, "T V"]:
        """The logits by the network's outputs, in float32 or wider."""
        return self.output(ys, tied=self.embedding.weight)

    def step(self, state: State, token: Checked[IntegerLike]) -> tuple[State, Float[Array, " V"]]:
        """The state after one token, and the logits of the next, in float32 or wider: for serving.

        Many users at once, each with a state of their own, are one batch:

            states, logits = jax.jit(jax.vmap(model.step))(states, tokens)  # [B, ...], [B] to [B, ...], [B, V]

        `models.batch_of_states` makes the first states. `jax.jit` of a function that closes over the model, as here,
        dispatches faster than one that takes it as an argument.
        """
        state, logits = self.logits(state, jnp.asarray(token)[None])
        return state, logits[0]

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
    inputs, targets, resets = batch_parts(batch, CHUNK, inputs=2, targets=2, resets=2)
    keys = None if key is None else jax.random.split(key, inputs.shape[0])

    def one(state: State, tokens: Array, resets: Array, key: PRNGKeyArray | None) -> tuple[State, Array]:
        return model.logits(state, tokens, resets=resets, engine=engine, key=key)

    state, logits = jax.vmap(one)(state, inputs, resets, keys)
    targets = jax.vmap(partial(model.embedding.check, name="targets"))(targets)
    return cross_entropy(logits, targets).mean(), state


def batch_of_states(model: LanguageModel, size: int) -> State:
    """`size` initial states."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), model.initial())
