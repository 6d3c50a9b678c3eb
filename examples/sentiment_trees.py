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
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import data
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from learning import add_picture, fit

import rnnjax

B, WIDTH, EMBEDDING, UNITS = 25, 16, 300, 150
LEARNING_RATE, EMBEDDING_RATE, WEIGHT_DECAY, DROPOUT = 0.05, 0.1, 1e-4, 0.5
PUBLISHED = {
    "fine": 43.9,
    "binary": 82.0,
}  # per cent of the test roots, Tai et al., as others quote it for such vectors
CLASSES = {"fine": 5, "binary": 2}
BINARY = (0, 0, None, 1, 1)  # of the five classes, from very negative to very positive
UNKNOWN = 0  # the token of words that are not in the training trees
BLANK = rnnjax.trees.Tree([[]], [None])  # what fills the last batch
OPERATORS: tuple[Callable[[int, int], int], ...] = (int.__and__, int.__or__, int.__xor__)  # tokens 2, 3, 4


class Task(NamedTuple):
    """Trees to train on, to choose the epoch by, and to test on."""

    name: str
    training: list[rnnjax.trees.Tree]
    held_out: list[rnnjax.trees.Tree]
    test: list[rnnjax.trees.Tree]
    vocabulary_size: int
    classes: int
    published: float | None


def main() -> None:
    """Train, and print the accuracy after each epoch."""
    for _ in run(parse()):
        pass


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or these words in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=CLASSES, default="fine", help="of the treebank (default fine)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    add_picture(parser)
    return parser.parse_args(words)


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
    model = rnnjax.models.TreeClassifier(task.vocabulary_size, cell, task.classes, key=keys[1], dropout=DROPOUT)
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
        return eqx.tree_at(lambda model: model.embedding, jax.tree.map(lambda _: "rest", weights), "embedding")

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


def read_task(kind: str) -> Task:
    """The treebank where it is, else Boolean expressions."""
    treebank = data.find("sst", "Boolean expressions stand in for the treebank")
    if treebank is None:
        return expressions(np.random.default_rng(0))
    words: dict[str, int] = {}
    training = read_trees(treebank / "train.txt", lambda word: words.setdefault(word, len(words) + 1))
    held_out, test = (
        read_trees(treebank / f"{name}.txt", lambda word: words.get(word, UNKNOWN)) for name in ("dev", "test")
    )
    if kind == "binary":
        training, held_out, test = map(leave_out_neutral, (training, held_out, test))
    return Task(f"SST, {kind}", training, held_out, test, len(words) + 1, CLASSES[kind], PUBLISHED[kind])


def read_trees(path: Path, token: Callable[[str], int]) -> list[rnnjax.trees.Tree]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [rnnjax.trees.parse_tree(line, token) for line in lines if line.strip()]


def leave_out_neutral(trees: Sequence[rnnjax.trees.Tree]) -> list[rnnjax.trees.Tree]:
    """Trees whose root is not neutral, with two classes, and no label on phrases that are neutral."""
    labels = [[None if label is None else BINARY[label] for label in tree.labels or ()] for tree in trees]
    binary = [tree._replace(labels=signs) for tree, signs in zip(trees, labels, strict=True)]
    return [tree for tree, signs in zip(binary, labels, strict=True) if signs[0] is not None]  # the root comes first


def expressions(random: np.random.Generator) -> Task:
    """Boolean expressions of up to thirty-one nodes, each labelled with its value; an inner one reads its operator."""
    trees = [expression(random, int(random.integers(16))) for _ in range(2500)]
    return Task("Boolean expressions", trees[:2000], trees[2000:2250], trees[2250:], 5, 2, None)


def expression(random: np.random.Generator, operators: int) -> rnnjax.trees.Tree:
    tree = rnnjax.trees.Tree(children := [], tokens := [], labels := [])

    def write(operators: int) -> int:
        """The number of a node that is an expression of so many operators."""
        node = len(children)
        children.append([])
        tokens.append(int(random.integers(2)) if operators == 0 else int(random.integers(2, 5)))
        labels.append(tokens[node])
        if operators:
            left = int(random.integers(operators))
            children[node] = [write(left), write(operators - 1 - left)]
            labels[node] = OPERATORS[tokens[node] - 2](*(labels[child] for child in children[node]))
        return node

    write(operators)
    return tree


if __name__ == "__main__":
    main()
