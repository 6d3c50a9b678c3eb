"""AWD-LSTM: the regularised language model of Merity, Keskar & Socher."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check
from ..arrays import AnyArray, State
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..regularise.masks import drop
from ..regularise.penalties import activation_penalty, temporal_activation_penalty
from ..regularise.weights import drop_embedding, drop_weights
from .batches import CHUNK, batch_parts
from .language import LanguageModel
from .objectives import cross_entropy


def awd_loss(
    model: LanguageModel,
    state: State,
    batch: Checked[tuple[AnyArray, AnyArray, AnyArray]],
    key: PRNGKeyArray | None,
    *,
    weight_dropout: Checked[float] = 0.5,
    embedding_dropout: Checked[float] = 0.1,
    output_dropout: Checked[float] = 0.4,
    activation: Checked[float] = 2.0,
    temporal: Checked[float] = 1.0,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], State]:
    """`language_loss` regularised as by Merity et al. 2018 (arXiv:1708.02182), with their rates: a loss for `fit`.

        cross-entropy + activation mean (m * y)^2 + temporal mean (y_{t+1} - y_t)^2

    weight_dropout      the probability of dropping an entry of R, in every gated cell, once for the batch
    embedding_dropout   of dropping a word of the input, once for the batch; output weights stay, even if tied
    output_dropout      of dropping an output y of the network, for all steps of a stream: the mask m
    activation          the weight of `activation_penalty`, of the outputs after dropout
    temporal            the weight of `temporal_activation_penalty`, of the outputs before dropout
    key                 None: nothing is dropped, but the penalties remain

    Dropout of embedded words and between layers belongs to the network:

        VariationalDropout(LSTM(400, 1150, key=a), inputs=0.4, outputs=0.3)              # the first layer, and so on
        LanguageModel(10_000, Stack([first, second, LSTM(1150, 400, key=c)]), key=key, tied=True)

    Averaging the weights belongs to the optimiser, and chunks of random length to the batches. Evaluate the model by
    `language_loss`, without a key.
    """
    inputs, targets, resets = batch_parts(batch, CHUNK, inputs=2, targets=2, resets=2)
    weight_dropout = check.probability("weight_dropout", weight_dropout)
    embedding_dropout = check.probability("embedding_dropout", embedding_dropout)
    output_dropout = check.probability("output_dropout", output_dropout)
    alpha, beta = (
        check.nonnegative(name, value, "the weight of a penalty", "penalty")
        for name, value in (("activation", activation), ("temporal", temporal))
    )
    keys = None
    if key is not None:
        weights_key, words_key, streams_key = jax.random.split(key, 3)
        keys = jax.random.split(streams_key, inputs.shape[0])
        model = drop_weights(model, weight_dropout, key=weights_key) if weight_dropout > 0 else model
        model = _drop_words(model, embedding_dropout, words_key)

    def one(
        state: State, tokens: Array, targets: Array, resets: Array, key: PRNGKeyArray | None
    ) -> tuple[State, Array]:
        network_key, outputs_key = (None, None) if key is None else jax.random.split(key)
        state, ys = model.outputs(state, tokens, resets=resets, engine=engine, key=network_key)
        left = ys if outputs_key is None else drop("output_dropout", outputs_key, output_dropout, ys)
        targets = model.embedding.check(targets, name="targets")
        loss = cross_entropy(model.classify(left), targets).mean()
        return state, loss + alpha * activation_penalty(left) + beta * temporal_activation_penalty(ys)

    state, losses = jax.vmap(one)(state, inputs, targets, resets, keys)
    return losses.mean(), state


def _drop_words(model: LanguageModel, rate: float, key: PRNGKeyArray) -> LanguageModel:
    """`model` with embedding dropout; tied weights become two arrays, so that output weights are not dropped."""
    embedding, weight = model.embedding.weight, model.output.weight
    parts = lambda model: (model.embedding.weight, model.output.weight)  # noqa: E731
    dropped = drop_embedding(embedding, rate, key=key), embedding if weight is None else weight
    return eqx.tree_at(parts, model, dropped, is_leaf=lambda leaf: leaf is None)
