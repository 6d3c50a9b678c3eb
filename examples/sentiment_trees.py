"""Sentiment, phrase by phrase: a Tree-LSTM on the parses of the Stanford Sentiment Treebank.

    RNNJAX_DATA=folder python examples/sentiment_trees.py                  five classes
    RNNJAX_DATA=folder python examples/sentiment_trees.py --task binary    positive or negative, neutral left out
    python examples/sentiment_trees.py                                     on Boolean expressions, made up here

The constituency Tree-LSTM of Tai et al. 2015, arXiv:1503.00075, with word vectors that begin at random, by its authors'
recipe. RNNJAX_DATA is a folder that holds sst/train.txt, sst/dev.txt and sst/test.txt, the trees in brackets of
https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip.
"""

import argparse
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import command_line, main
from common.training import fit
from common.treebank import OPTIONS, Task, read_task
from jaxtyping import Array

import rnnjax

B, WIDTH, EMBEDDING, UNITS = 25, 16, 300, 150
LEARNING_RATE, EMBEDDING_RATE, WEIGHT_DECAY, DROPOUT = 0.05, 0.1, 1e-4, 0.5
BLANK = rnnjax.trees.Tree([[]], [None])  # what fills the last batch


parse = command_line(__doc__, *OPTIONS)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a classifier that was trained for some epochs."""
    task = read_task(options.task)
    print(f"{task.name}: {len(task.training):,} trees to train on, {len(task.held_out):,} to choose by")
    begun = time.perf_counter()
    model, curve = train(task, options)
    seconds = time.perf_counter() - begun
    share = accuracy(model, pack_all(task, task.test))
    beside = "" if task.published is None else f"; published, Tai et al. 2015: {task.published} %"
    print(
        f"{task.name}: {100 * share:.2f} % of the test roots, by the weights that were best on those held out{beside}"
    )
    record = {"task": task.name, "seed": options.seed, "B": B, "units": UNITS, "embedding": EMBEDDING}
    yield record | {"curve": curve, "seconds": seconds, "test": share, "published": task.published}


def train(task: Task, options: argparse.Namespace) -> tuple[rnnjax.models.TreeClassifier, list[tuple[float, ...]]]:
    """The best classifier; and after each epoch: the share of the held-out roots that is right, and seconds."""
    keys = jax.random.split(jax.random.key(options.seed), 3)
    cell = rnnjax.trees.NaryTreeLSTM(EMBEDDING, UNITS, key=keys[0])
    model = rnnjax.models.TreeClassifier(task.vocabulary_size, task.classes, cell, key=keys[1], dropout=DROPOUT)
    drawn = rnnjax.training.minibatches(np.arange(len(task.training)), B, seed=options.seed)
    held_out, curve, begun = pack_all(task, task.held_out), [], time.perf_counter()

    def judge(model: rnnjax.models.TreeClassifier) -> float:
        share = accuracy(model, held_out)
        curve.append((share, round(time.perf_counter() - begun, 1)))
        print(f"\nepoch {len(curve)}: {100 * share:.2f} % of the held-out roots", flush=True)
        return 1 - share

    epoch = len(task.training) // B
    fitted = fit(
        model,
        loss,
        lambda step: pack(task, [task.training[number] for number in drawn(step)]),
        optimiser(),
        steps=options.epochs * epoch,
        key=keys[2],
        validate=judge,
        every=epoch,
        picture=options.picture,
    )
    return fitted.model, curve


def loss(model: rnnjax.models.TreeClassifier, carry: None, trees: rnnjax.trees.Trees, key: Any) -> tuple[Array, None]:
    """The recipe's: the sum over the nodes of a tree, the mean over the trees."""
    mean, carry = rnnjax.models.tree_loss(model, carry, trees, key)
    return mean * (jnp.asarray(trees.labels) >= 0).sum() / B, carry


def optimiser() -> optax.GradientTransformation:
    """Adagrad and weight decay, but plain descent of the word vectors."""
    adagrad = optax.adagrad(LEARNING_RATE, initial_accumulator_value=0.0, eps=1e-10)
    parts: dict[Hashable, optax.GradientTransformation] = {
        "embedding": optax.sgd(EMBEDDING_RATE),
        "rest": optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), adagrad),
    }

    def part_of_each(weights: rnnjax.models.TreeClassifier) -> Any:
        return eqx.tree_at(lambda model: model.embedding.weight, jax.tree.map(lambda _: "rest", weights), "embedding")

    return optax.multi_transform(parts, part_of_each)


def pack(task: Task, trees: Sequence[rnnjax.trees.Tree]) -> rnnjax.trees.Trees:
    return rnnjax.trees.pack_trees(trees, vocabulary_size=task.vocabulary_size, classes=task.classes, width=WIDTH)


def pack_all(task: Task, trees: Sequence[rnnjax.trees.Tree]) -> list[rnnjax.trees.Trees]:
    """All trees, in batches of one size."""
    groups = [trees[at : at + B] for at in range(0, len(trees), B)]
    return [pack(task, [*group, *[BLANK] * (B - len(group))]) for group in groups]


def accuracy(model: rnnjax.models.TreeClassifier, batches: Sequence[rnnjax.trees.Trees]) -> float:
    """The share of the roots that is classified right."""
    counts = np.array([judge_batch(model, trees) for trees in batches]).sum(0)
    return float(counts[0] / counts[1])


@eqx.filter_jit
def judge_batch(model: rnnjax.models.TreeClassifier, trees: rnnjax.trees.Trees) -> tuple[Array, Array]:
    """How many roots are right, of how many."""
    return rnnjax.models.count_right_roots(model.logits(trees), trees)


if __name__ == "__main__":
    main(parse, run)
