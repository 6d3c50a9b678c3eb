"""Sequences with questions at some of their steps, and language models of several seeds that learn to answer them."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

import rnnjax
from common.command_line import Option, option

JUDGED_AT_ONCE, REPORTS = 64, 20
SEEDS: Option = option(
    "--seeds", type=int, default=1, metavar="N", help="N seeds from --seed on, at once (%(default)s)"
)
TEST = (0, 0, 1)  # the seed of test data, which no batch has: a batch has (seed, step)
Model = rnnjax.models.LanguageModel


class Questions(NamedTuple):
    """B sequences of T tokens, the answer after each token, and whether it is asked for: [B, T] each."""

    tokens: np.ndarray
    answers: np.ndarray
    asked: np.ndarray


def build_each(build: Callable[[PRNGKeyArray], Model], seeds: Sequence[int]) -> Model:
    """The models that `build` draws from the keys of `seeds`, stacked: each weight has a leading axis of models."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    return eqx.filter_jit(eqx.filter_vmap(build))(keys)


def batches(draw: Callable[[np.random.Generator], Questions], seeds: Sequence[int]) -> Callable[[int], Questions]:
    """A batch of its own for each seed, [models, B, T], which does not depend on the other seeds."""

    def batch(step: int) -> Questions:
        return Questions(
            *map(np.stack, zip(*(draw(np.random.default_rng((seed, step))) for seed in seeds), strict=True))
        )

    return batch


def loss(models: Model, carry: None, batch: Questions, key: PRNGKeyArray) -> tuple[Array, None, dict[str, Array]]:
    """The sum over models of the mean cross-entropy of their answers, so that the gradient of each is its own."""
    del key
    losses, shares = eqx.filter_vmap(judge)(models, batch)
    return losses.sum(), carry, {"cross_entropy": losses.mean(), "accuracy": shares.mean()}


def judge(model: Model, questions: Questions) -> tuple[Array, Array]:
    """The mean cross-entropy of the answers that are asked for, and the share of those that are right."""
    logits = jax.vmap(lambda tokens: model.logits(model.initial(), tokens)[1])(questions.tokens)
    losses = rnnjax.models.cross_entropy(logits, questions.answers)
    right = logits.argmax(-1) == questions.answers
    average = lambda values: values.mean(where=questions.asked)  # noqa: E731
    return average(losses), average(right.astype(losses.dtype))


@eqx.filter_jit
def judge_each(models: Model, questions: Questions) -> Array:
    """The share of right answers of each model, all of which are asked the same."""
    return eqx.filter_vmap(judge, in_axes=(eqx.if_array(0), None))(models, questions)[1]


def accuracies(models: Model, questions: Questions) -> np.ndarray:
    """The same, of many questions."""
    starts = range(0, len(questions.tokens), JUDGED_AT_ONCE)
    parts = [Questions(*(leaf[at : at + JUDGED_AT_ONCE] for leaf in questions)) for at in starts]
    shares = [np.asarray(judge_each(models, jax.tree.map(jnp.asarray, part))) for part in parts]
    return np.average(shares, 0, weights=[part.asked.sum() for part in parts])


def optimiser(learning_rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    """AdamW for each of the stacked models: a tenth of the steps to warm up, then a cosine; matrices alone decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps)
    is_matrix = lambda weights: jax.tree.map(lambda leaf: leaf.ndim > 1, weights)  # noqa: E731
    adamw = optax.adamw(schedule, weight_decay=weight_decay, mask=is_matrix)
    of_one = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    return optax.GradientTransformation(jax.vmap(of_one.init), jax.vmap(of_one.update))


def spread(figures: Sequence[float]) -> str:
    """The mean of the seeds, and the least and the most."""
    mean = f"{np.mean(figures):.3f}"
    return mean if len(figures) == 1 else f"{mean} ({min(figures):.3f} to {max(figures):.3f})"


def train_and_test(
    build: Callable[[PRNGKeyArray], Model],
    draw: Callable[[np.random.Generator], Questions],
    tests: dict[str, Questions],
    seeds: Sequence[int],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """A record of each seed: its share of right answers in each of the tests, and what training took."""
    begun, models = time.perf_counter(), build_each(build, seeds)
    fitted = rnnjax.training.fit(
        models,
        loss,
        batches(draw, seeds),
        optimiser(learning_rate, steps, weight_decay),
        steps=steps,
        key=jax.random.key(0),  # which nothing draws from
        every=-(-steps // REPORTS),
    )
    shares = {name: accuracies(fitted.model, questions) for name, questions in tests.items()}
    weights = rnnjax.diagnose.count(models) // len(seeds)
    shared = {"steps": steps, "weights": weights, "seconds": time.perf_counter() - begun}
    return [
        {"seed": seed, **{name: float(share[place]) for name, share in shares.items()}, **shared}
        for place, seed in enumerate(seeds)
    ]
