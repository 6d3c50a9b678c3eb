"""Speaker recognition: nine men say two vowels, sequences of twelve features, read by a bidirectional LSTM.

    RNNJAX_DATA=folder python examples/speaker_recognition.py
    python examples/speaker_recognition.py                   on speakers made up here, each around a sound of his own

Japanese Vowels (Kudo, Toyama & Shimbo 1999), a set of sequences of 7 to 29 steps. RNNJAX_DATA is a folder that holds
japanese_vowels/JapaneseVowels_TRAIN.ts and ..._TEST.ts, from https://timeseriesclassification.com.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from common import data
from common.command_line import LOSSES, SEED, command_line, epochs_option, main
from common.training import fit

import rnnjax

B, UNITS, SPEAKERS, FEATURES, T, LEARNING_RATE = 27, 100, 9, 12, 29, 1e-3


parse = command_line(
    __doc__,
    epochs_option(100),
    SEED,
    LOSSES,
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a classifier."""
    name, training, test = read()
    keys = jax.random.split(jax.random.key(options.seed), 4)
    network = rnnjax.Bidirectional(*(rnnjax.LSTM(FEATURES, UNITS, key=key) for key in keys[:2]))
    model = rnnjax.models.Classifier(
        network, eqx.nn.Linear(2 * UNITS, SPEAKERS, key=keys[2]), pooling=rnnjax.models.ends
    )
    fitted = fit(
        model,
        rnnjax.models.classifier_loss,
        rnnjax.training.minibatches(training, B, seed=options.seed),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE)),
        steps=options.epochs * (len(training.targets) // B),
        key=keys[3],
        picture=options.picture,
    )
    share = rnnjax.training.accuracy(fitted.model, test)
    print(f"{name}: {100 * share:.2f} % of {len(test.targets)} test sequences")
    if name == "Japanese Vowels":
        print("published, of a bidirectional LSTM: 95.4 %")
    yield {"task": name, "seed": options.seed, "test": share}


def read() -> tuple[str, rnnjax.models.Sequences, rnnjax.models.Sequences]:
    """The name of the data, what to train on and what to test on."""
    folder = data.find("japanese_vowels", "speakers made up here stand in")
    if folder is None:
        random = np.random.default_rng(0)
        sounds = random.normal(size=(SPEAKERS, FEATURES))
        return "made-up speakers", speak(random, sounds, 270), speak(random, sounds, 370)
    training, test = (read_file(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    return "Japanese Vowels", training, test


def read_file(path: Path) -> rnnjax.models.Sequences:
    """Sequences of a .ts file: one a line, features between colons, the class at the end."""
    lines = path.read_text().partition("@data\n")[2].split()
    fields = [line.split(":") for line in lines]
    sequences = [np.array([feature.split(",") for feature in line[:-1]], np.float32).T for line in fields]
    return as_sequences(sequences, [int(line[-1]) - 1 for line in fields])


def speak(random: np.random.Generator, sounds: np.ndarray, count: int) -> rnnjax.models.Sequences:
    """Random sequences around a random mean for each speaker."""
    labels, sequences = random.integers(SPEAKERS, size=count).tolist(), []
    for label in labels:
        x, steps = np.zeros(FEATURES), []
        for _ in range(random.integers(7, T + 1)):
            x = 0.8 * x + 0.2 * sounds[label] + 0.5 * random.normal(size=FEATURES)
            steps.append(x)
        sequences.append(np.array(steps, np.float32))
    return as_sequences(sequences, labels)


def as_sequences(sequences: Sequence[np.ndarray], labels: Sequence[int]) -> rnnjax.models.Sequences:
    """A batch of T steps each."""
    rnnjax.models.check_labels(labels, SPEAKERS)
    xs, lengths = rnnjax.training.pad(sequences, length=T)
    return rnnjax.models.Sequences(xs, np.array(labels), lengths)


if __name__ == "__main__":
    main(parse, run)
