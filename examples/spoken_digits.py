"""Spoken digits: strings of 3 to 7 of them, read by CTC, or by a transducer while they are spoken.

    RNNJAX_DATA=folder python examples/spoken_digits.py --picture alignments.png
    RNNJAX_DATA=folder python examples/spoken_digits.py --model transducer --steps 1500
    python examples/spoken_digits.py                         on pairs of tones, made up here

The strings are put together from clips of the Free Spoken Digit Dataset, 2,500 recordings of five speakers at 8 kHz.
Takes 0 to 4 of each digit and speaker are its test set. RNNJAX_DATA is a folder that holds fsdd/fsdd.npz; see
common/speech.py. The CTC network (Graves et al. 2006) is bidirectional; that of the transducer (Graves 2012,
arXiv:1211.3711) reads from the left alone, and its test strings arrive in chunks of 300 ms.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import speech
from common.command_line import SEED, choice, command_line, main, option, picture_option, steps_option
from common.pictures import save
from jaxtyping import Array
from matplotlib.figure import Figure

import rnnjax
from rnnjax.arrays import AnyArray
from rnnjax.diagnose.plot import draw_alignment
from rnnjax.models import transduction
from rnnjax.networks import layers

B, UNITS, EMBEDDED, DROPOUT, LEARNING_RATE = 32, 96, 32, 0.2, 2e-3
CLASSES, MULTIPLE = 11, 64  # the digit d is label d + 1; batches are padded to a multiple of 64 steps
CHUNK, BEAM = 10, 8  # steps of 30 ms; prefixes
LENGTHS = [3, 4, 5, 6, 7]  # digits of a string
TESTED = 120  # strings of each length
TRAINING = speech.Variation(gaps=(0.0, 0.3), speeds=(0.85, 1.15), decibels=(-6.0, 6.0))
TEST = speech.Variation()

parse = command_line(
    __doc__,
    choice("--model", ["ctc", "transducer"], "ctc"),
    steps_option(500),
    option("--held-out", metavar="SPEAKER", help="whose clips are not trained on; the test strings are this speaker's"),
    SEED,
    picture_option("alignments"),
)


class Recogniser(NamedTuple):
    """What to train, and how to transcribe and to align a batch by it."""

    build: Callable[[Array], Any]
    loss: Callable[..., Any]
    greedy: Callable[[Any, AnyArray, AnyArray], Array]
    beam: Callable[[Any, AnyArray, AnyArray], Array]
    align: Callable[[Any, AnyArray, AnyArray], Array]


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a model: its digit error rate."""
    name, clips = speech.read_clips()
    training, test = split(clips, options.held_out)
    generator = np.random.default_rng(0)
    scale = speech.scaler(speech.strings(generator, training, 40 * LENGTHS, TRAINING).features)
    tested = speech.strings(generator, test, TESTED * LENGTHS, TEST)
    recogniser = RECOGNISERS[options.model]
    model = train(options, recogniser, training, scale)
    record = {"task": name, "seed": options.seed, "model": options.model, "weights": rnnjax.diagnose.count(model)}
    greedy, beam = (error_rate(search, model, tested, scale) for search in (recogniser.greedy, recogniser.beam))
    print(f"{name}, {options.model}, a beam of {BEAM}: {100 * beam:.2f} % digit errors in {len(tested.digits)} strings")
    print(f"greedily: {100 * greedy:.2f} %")
    if options.picture:
        draw(options.picture, recogniser, model, tested, scale)
    yield record | {"test": beam, "greedy": greedy}


def split(clips: speech.Clips, held_out: str | None) -> tuple[speech.Clips, speech.Clips]:
    """Clips to train on, and to test on: the data set's own split, or all clips of the speaker that is held out."""
    if held_out is None:
        return clips.where(clips.take >= speech.TEST_TAKES), clips.where(clips.take < speech.TEST_TAKES)
    speakers = np.unique(clips.speaker).tolist()
    if held_out not in speakers:
        raise ValueError(f"--held-out: expected one of {speakers}, got {held_out!r}")
    return clips.where(clips.speaker != held_out), clips.where(clips.speaker == held_out)


def as_batch(strings: speech.Strings, scale: Callable[[np.ndarray], np.ndarray]) -> transduction.Utterances:
    """Scaled and padded; digits become labels from 1 on."""
    longest = max(map(len, strings.features))
    xs, lengths = rnnjax.training.pad(list(map(scale, strings.features)), length=-(-longest // MULTIPLE) * MULTIPLE)
    targets, numbers = rnnjax.training.pad([digits + 1 for digits in strings.digits], length=LENGTHS[-1])
    return transduction.Utterances(xs, lengths, targets, numbers)


def train(
    options: argparse.Namespace,
    recogniser: Recogniser,
    clips: speech.Clips,
    scale: Callable[[np.ndarray], np.ndarray],
) -> Any:
    """A model trained on strings that are put together anew for every batch."""

    def batch(step: int) -> transduction.Utterances:
        generator = np.random.default_rng((options.seed, step))
        lengths = B * [int(generator.choice(LENGTHS))]  # one for the batch, so that there is little padding
        return as_batch(speech.strings(generator, clips, lengths, TRAINING), scale)

    keys = jax.random.split(jax.random.key(options.seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, min(100, options.steps // 10), options.steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    model = recogniser.build(keys[0])
    return rnnjax.training.fit(model, recogniser.loss, batch, optimiser, steps=options.steps, key=keys[1]).model


def build_ctc(key: Array) -> transduction.CTC:
    keys = jax.random.split(key)
    network = layers(rnnjax.LSTM, speech.FEATURES, [UNITS, UNITS], bidirectional=True, dropout=DROPOUT, key=keys[0])
    return transduction.CTC(CLASSES, network, key=keys[1])


def build_transducer(key: Array) -> transduction.Transducer:
    keys = jax.random.split(key, 3)
    encoder = layers(rnnjax.LSTM, speech.FEATURES, [2 * UNITS, 2 * UNITS], dropout=DROPOUT, key=keys[0])
    prediction = rnnjax.GRU(EMBEDDED, EMBEDDED, key=keys[1])
    return transduction.Transducer(CLASSES, encoder, prediction, joint_size=UNITS, key=keys[2])


@eqx.filter_jit
def read(model: transduction.CTC, xs: AnyArray, lengths: AnyArray) -> Array:
    """The labels of each sequence, the most probable class at each step."""

    def one(xs: AnyArray, length: AnyArray) -> Array:
        _, logits = model.logits(None, xs, length=length)
        return transduction.ctc_greedy(logits, length=length).tokens

    return jax.vmap(one)(xs, lengths)


@eqx.filter_jit
def read_widely(model: transduction.CTC, xs: AnyArray, lengths: AnyArray) -> Array:
    """The labels of each sequence, by a beam."""

    def one(xs: AnyArray, length: AnyArray) -> Array:
        _, logits = model.logits(None, xs, length=length)
        return transduction.ctc_beam_search(logits, width=BEAM, length=length, max_length=2 * LENGTHS[-1]).tokens

    return jax.vmap(one)(xs, lengths)


@eqx.filter_jit
def hear(model: transduction.Transducer, states: Any, xs: AnyArray, lengths: AnyArray) -> tuple[Any, Array]:
    """The states after one more chunk of each sequence, and the labels said meanwhile, the most probable ones."""

    def one(state: Any, xs: AnyArray, length: AnyArray) -> tuple[Any, Array]:
        state, found = transduction.transducer_greedy(model, state, xs, max_symbols=1, length=length)
        return state, found.tokens

    return jax.vmap(one)(states, xs, lengths)


@eqx.filter_jit
def hear_widely(model: transduction.Transducer, states: Any, xs: AnyArray, lengths: AnyArray) -> tuple[Any, Array]:
    """The states after one more chunk of each sequence, and the best labels of a beam so far."""
    search = partial(transduction.transducer_beam_search, width=BEAM, max_length=2 * LENGTHS[-1], max_symbols=1)

    def one(state: Any, xs: AnyArray, length: AnyArray) -> tuple[Any, Array]:
        state, found = search(model, state, xs, length=length)
        return state, found.tokens

    return jax.vmap(one)(states, xs, lengths)


def in_chunks(hear: Callable[..., Any], model: Any, xs: AnyArray, lengths: AnyArray) -> list[Array]:
    """What `hear` makes of each sequence, which arrives chunk by chunk, after every chunk."""
    states, heard = None, []
    for start in range(0, xs.shape[1], CHUNK):
        chunk = np.zeros((len(xs), CHUNK, xs.shape[2]), np.float32)
        chunk[:, : xs.shape[1] - start] = xs[:, start : start + CHUNK]
        states, labels = hear(model, states, chunk, np.clip(lengths - start, 0, CHUNK))
        heard.append(labels)
    return heard


def listen(model: transduction.Transducer, xs: AnyArray, lengths: AnyArray) -> Array:
    """The labels of each sequence, the most probable ones while it arrives."""
    return jnp.concatenate(in_chunks(hear, model, xs, lengths), axis=1)


def listen_widely(model: transduction.Transducer, xs: AnyArray, lengths: AnyArray) -> Array:
    """The labels of each sequence, by a beam while it arrives."""
    return in_chunks(hear_widely, model, xs, lengths)[-1]


def error_rate(
    transcribe: Callable[[Any, AnyArray, AnyArray], Array],
    model: Any,
    strings: speech.Strings,
    scale: Callable[[np.ndarray], np.ndarray],
) -> float:
    """Edits per digit, over all strings, of which a hundred at a time are transcribed."""
    wrong = 0
    for at in range(0, len(strings.digits), 100):
        part = speech.Strings(*(leaf[at : at + 100] for leaf in strings))
        batch = as_batch(part, scale)
        labels = np.asarray(transcribe(model, batch.xs, batch.length))
        said = [(row[row > 0] - 1).tolist() for row in labels]
        wrong += sum(map(speech.edits, said, [digits.tolist() for digits in part.digits]))
    return wrong / sum(map(len, strings.digits))


def spoken_classes(model: transduction.CTC, xs: AnyArray, target: AnyArray) -> Array:
    """The probability of each label of the target at each step, [U, T]."""
    return jax.nn.softmax(model.logits(None, xs)[1])[:, target].T


def spoken_labels(model: transduction.Transducer, xs: AnyArray, target: AnyArray) -> Array:
    """The probability that each label of the target is said at each step, [U, T]."""
    return model.align(xs, target).T


RECOGNISERS = {
    "ctc": Recogniser(build_ctc, transduction.ctc_loss, read, read_widely, spoken_classes),
    "transducer": Recogniser(build_transducer, transduction.transducer_loss, listen, listen_widely, spoken_labels),
}


def draw(
    path: Path, recogniser: Recogniser, model: Any, tested: speech.Strings, scale: Callable[[np.ndarray], np.ndarray]
) -> None:
    """The spectra of two strings, and below each when its digits are recognised, the brighter the surer."""
    figure = Figure(figsize=(11, 6))
    align = eqx.filter_jit(recogniser.align)
    for column, (features, digits) in enumerate(zip(tested.features[:2], tested.digits[:2], strict=True)):
        above, below = (figure.add_subplot(2, 2, row + column) for row in (1, 3))
        spectra = features.reshape(-1, speech.MELS).T
        above.imshow(spectra, aspect="auto", origin="lower", interpolation="nearest")
        above.set(xlabel="frame of 10 ms", ylabel="mel band")
        weights = align(model, scale(features), digits + 1)
        draw_alignment(below, weights, targets=[str(digit) for digit in digits])
        below.set(xlabel="step of 30 ms", ylabel="digit")
    figure.tight_layout()
    save(figure, path)


if __name__ == "__main__":
    main(parse, run)
