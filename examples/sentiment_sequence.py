"""Sentiment, word by word: the sentences of the Stanford Sentiment Treebank as sequences, without their trees.

    RNNJAX_DATA=folder python examples/sentiment_sequence.py                  five classes
    RNNJAX_DATA=folder python examples/sentiment_sequence.py --task binary    positive or negative, neutral left out
    python examples/sentiment_sequence.py                                     on Boolean expressions, operators first

A bidirectional LSTM on the sentences of the Tree-LSTM in `sentiment_trees.py`, but without the parse trees, and without
the labels of phrases other than the whole sentence. RNNJAX_DATA is as there.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from common.command_line import command_line, main
from common.training import fit
from common.treebank import OPTIONS, Task, read_task
from jaxtyping import Array, PRNGKeyArray

import rnnjax

B, EMBEDDING, UNITS, DROPOUT, LEARNING_RATE = 25, 150, 100, 0.5, 1e-3
BOUNDS = (16, 28, 64)  # batches are padded to one of these
PUBLISHED = {"fine": 49.1, "binary": 87.5}  # per cent, Tai et al. 2015, with vectors of 840 billion words


class Reader(eqx.Module):
    """Word vectors, and a classifier that reads them."""

    embedding: Array
    classifier: rnnjax.models.Classifier

    def __init__(self, vocabulary_size: int, classes: int, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.embedding = 0.1 * jax.random.normal(keys[0], (vocabulary_size, EMBEDDING))
        both = rnnjax.Bidirectional(*(rnnjax.LSTM(EMBEDDING, UNITS, key=key) for key in keys[1:3]))
        network = rnnjax.regularise.VariationalDropout(both, inputs=DROPOUT, outputs=DROPOUT)
        head = eqx.nn.Linear(2 * UNITS, classes, key=keys[3])
        self.classifier = rnnjax.models.Classifier(network, head, pooling=rnnjax.models.mean)

    def __call__(self, tokens: Array, **options: Any) -> Array:
        return self.classifier(self.embedding[tokens], **options)


parse = command_line(__doc__, *OPTIONS)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a reader, the best by the sentences held out."""
    task = read_task(options.task)
    training, held_out, test = (read(trees) for trees in (task.training, task.held_out, task.test))
    model = train(task, training, held_out, options)
    share = rnnjax.training.accuracy(model, test)
    print(f"{task.name}, as sequences: {100 * share:.2f} % of {len(test.targets):,} test sentences")
    if task.published is not None:
        print(f"published, bidirectional, with GloVe's vectors: {PUBLISHED[options.task]} %")
    yield {"task": f"{task.name}, as sequences", "seed": options.seed, "test": share}


def read(trees: Sequence[rnnjax.trees.Tree]) -> rnnjax.models.Sequences:
    """The tokens of each tree in the order of its nodes, a node before its children, and the label of its root."""
    sentences = [np.array([token for token in tree.tokens if token is not None], np.int32) for tree in trees]
    tokens, lengths = rnnjax.training.pad(sentences, length=max(BOUNDS[-1], *map(len, sentences)))
    return rnnjax.models.Sequences(tokens, np.array([(tree.labels or [])[0] for tree in trees]), lengths)


def train(
    task: Task, training: rnnjax.models.Sequences, held_out: rnnjax.models.Sequences, options: argparse.Namespace
) -> Reader:
    """The reader that was best on the sentences held out, judged after each epoch."""
    rnnjax.models.check_labels(training.targets, task.classes)
    keys = jax.random.split(jax.random.key(options.seed))
    buckets = rnnjax.training.Buckets(training.lengths, B, BOUNDS, seed=options.seed)
    return fit(
        Reader(task.vocabulary_size, task.classes, keys[0]),
        rnnjax.models.classifier_loss,
        lambda step: cut(training, *buckets(step)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE)),
        steps=options.epochs * buckets.per_epoch,
        key=keys[1],
        validate=lambda model: 1 - rnnjax.training.accuracy(model, held_out),
        every=buckets.per_epoch,
        picture=options.picture,
    ).model


def cut(sequences: rnnjax.models.Sequences, chosen: np.ndarray, length: int) -> rnnjax.models.Sequences:
    """Some of the sentences, padded to `length`."""
    return rnnjax.models.Sequences(sequences.xs[chosen, :length], sequences.targets[chosen], sequences.lengths[chosen])


if __name__ == "__main__":
    main(parse, run)
