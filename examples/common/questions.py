"""Sequences with questions at some of their steps, and language models of several seeds that learn to answer at once."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

import rnnjax

B_OF_TEST = 64  # sequences that are judged at once, by each of the models


class Questions(NamedTuple):
    """B sequences of T tokens, the answer after each token, and whether it is asked for: [B, T] each."""

    tokens: np.ndarray
    answers: np.ndarray
    asked: np.ndarray


def build_each(build: Callable[[PRNGKeyArray], Any], seeds: Iterable[int]) -> Any:
    """The models that `build` draws from the keys of `seeds`, stacked: each weight has a leading axis of models."""
    return eqx.filter_vmap(build)(jnp.stack([jax.random.key(seed) for seed in seeds]))


def batches(draw: Callable[[np.random.Generator], Questions], seeds: Iterable[int]) -> Callable[[int], Questions]:
    """A batch of its own for each seed, [models, B, T], which does not depend on the other seeds."""
    seeds = list(seeds)

    def batch(step: int) -> Questions:
        return Questions(*map(np.stack, zip(*(draw(np.random.default_rng((seed, step))) for seed in seeds), strict=True)))

    return batch


def loss(
    models: rnnjax.models.LanguageModel, carry: None, batch: Questions, key: PRNGKeyArray, *, engine: Any
) -> tuple[Array, None, dict[str, Array]]:
    """The sum over models of the mean cross-entropy of their answers, so that the gradient of each is its own."""
    del key
    losses, shares = eqx.filter_vmap(partial(judge, engine=engine))(models, batch)
    return losses.sum(), carry, {"cross_entropy": losses.mean(), "accuracy": shares.mean()}


def judge(model: rnnjax.models.LanguageModel, questions: Questions, *, engine: Any) -> tuple[Array, Array]:
    """The mean cross-entropy of the answers that are asked for, and the share of those that are right."""
    logits = jax.vmap(lambda tokens: model.logits(model.initial(), tokens, engine=engine)[1])(questions.tokens)
    losses = rnnjax.models.cross_entropy(logits, questions.answers)
    right = logits.argmax(-1) == questions.answers
    average = lambda values: values.mean(where=questions.asked)  # noqa: E731
    return average(losses), average(right.astype(losses.dtype))


def accuracies(models: rnnjax.models.LanguageModel, questions: Questions, *, engine: Any) -> np.ndarray:
    """The share of right answers of each model, all of which are asked the same."""
    in_one = eqx.filter_jit(eqx.filter_vmap(partial(judge, engine=engine), in_axes=(eqx.if_array(0), None)))
    parts = [Questions(*(leaf[at : at + B_OF_TEST] for leaf in questions)) for at in range(0, len(questions[0]), B_OF_TEST)]
    shares = [np.asarray(in_one(models, Questions(*map(jnp.asarray, part)))[1]) for part in parts]
    return np.average(shares, 0, weights=[part.asked.sum() for part in parts])


def rule(learning_rate: float, steps: int, weight_decay: float, clip: float = 1.0) -> optax.GradientTransformation:
    """AdamW for each of the stacked models: a tenth of the steps to warm up, then a cosine; matrices alone decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps)
    is_matrix = lambda weights: jax.tree.map(lambda leaf: leaf.ndim > 1, weights)  # noqa: E731
    of_one = optax.chain(
        optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=weight_decay, mask=is_matrix)
    )
    return optax.GradientTransformation(jax.vmap(of_one.init), jax.vmap(of_one.update))
