"""Sums, character by character: an LSTM reads "535+61", another writes "596".

    python examples/addition.py
    python examples/addition.py --digits 2 --epochs 55

Sequence to sequence with the encoder's last state alone (Sutskever et al. 2014, arXiv:1409.3215), as in Keras'
`addition_rnn`: 128 units each, and 50,000 sums of two numbers of up to three digits, read backwards; a tenth of them is
the test set.
"""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import LOSSES, SEED, command_line, epochs_option, main, option
from common.training import fit
from jaxtyping import Array

import rnnjax

B, UNITS, LEARNING_RATE = 128, 128, 3e-3
CHARACTERS = "0123456789+ $^"  # the last two end and start an answer
END, START = len(CHARACTERS) - 2, len(CHARACTERS) - 1
COUNTS = {2: 5_000, 3: 50_000, 4: 400_000, 5: 550_000}  # sums, by the digits of what is added
PUBLISHED = {2: "99 after 55 epochs", 3: "99 after 100 epochs", 4: "99 after 20 epochs", 5: "99 after 30 epochs"}


class Judged(NamedTuple):
    """The accuracy over characters and over whole answers."""

    characters: float
    answers: float


parse = command_line(
    __doc__,
    option("--digits", type=int, choices=COUNTS, default=3, help="of each number (%(default)s)"),
    epochs_option(50),
    SEED,
    LOSSES,
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a network, after its last epoch."""
    pairs = draw(options.digits, COUNTS[options.digits])
    spared = len(pairs.source) // 10
    training, held_out = (
        rnnjax.models.Pairs(*(leaf[part] for leaf in pairs)) for part in (slice(spared, None), slice(spared))
    )
    keys = jax.random.split(jax.random.key(options.seed))
    epoch = max(1, len(training.source) // B)
    steps = options.epochs * epoch
    rule = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    fitted = fit(
        build(keys[0]),
        rnnjax.models.seq2seq_loss,
        rnnjax.training.minibatches(training, min(B, len(training.source)), seed=options.seed),
        optax.chain(optax.clip_by_global_norm(1.0), rule),
        steps=steps,
        key=keys[1],
        picture=options.picture,
    )
    judged = judge(fitted.model, held_out)
    show(fitted.model, held_out, options.digits)
    name = f"addition of {options.digits} digits"
    print(
        f"{name}: {100 * judged.characters:.2f} % of the characters, {100 * judged.answers:.2f} % of the sums held out"
    )
    print(f"published, of the characters: {PUBLISHED[options.digits]} (Keras)")
    record = {"task": name, "seed": options.seed, "test": float(judged.characters), "answers": float(judged.answers)}
    yield record | {"epochs": options.epochs, "weights": rnnjax.diagnose.count(fitted.model)}


def build(key: Array) -> rnnjax.models.Seq2Seq:
    """The last state of one LSTM is the initial state of another, and part of its input at every step."""
    keys = jax.random.split(key, 3)
    size = len(CHARACTERS)
    encoder = rnnjax.LSTM(size, UNITS, key=keys[0])
    decoder = rnnjax.models.ContextDecoder(rnnjax.LSTM(size + UNITS, UNITS, key=keys[1]))
    return rnnjax.models.Seq2Seq(size, size, encoder, decoder, bridge=eqx.nn.Identity(), key=keys[2])


def draw(digits: int, count: int) -> rnnjax.models.Pairs:
    """Different sums in random order, independent of the network's seed: the question backwards, and the answer."""
    random = np.random.default_rng(0)
    asked: dict[tuple[int, int], None] = {}
    while len(asked) < count:
        first, second = sorted(int(random.integers(10 ** random.integers(1, digits + 1))) for _ in range(2))
        asked[first, second] = None  # a + b is b + a
    length = 2 * digits + 1
    shuffled = random.permutation(list(asked)).tolist()  # short sums are soon all drawn, and would come first
    sums = [numbers[:: int(random.choice([-1, 1]))] for numbers in shuffled]
    source = np.array([encode(f"{a}+{b}".ljust(length)[::-1]) for a, b in sums])
    answers = [f"{a + b}" for a, b in sums]
    target = np.array([encode(f"^{answer}$".ljust(digits + 3, "$")) for answer in answers])
    lengths = np.array([len(answer) + 2 for answer in answers])
    return rnnjax.models.Pairs(source, np.full(len(sums), length), target, lengths)


def encode(text: str) -> list[int]:
    return [CHARACTERS.index(character) for character in text]


@eqx.filter_jit
def answer(model: rnnjax.models.Seq2Seq, source: Array, longest: int) -> rnnjax.models.Hypothesis:
    """The model's greedy answer to each sum."""

    def one(source: Array) -> rnnjax.models.Hypothesis:
        step, state, _ = model.decoding(source)
        return rnnjax.models.greedy(step, state, start=START, end=END, max_length=longest)

    return jax.vmap(one)(source)


def judge(model: rnnjax.models.Seq2Seq, pairs: rnnjax.models.Pairs) -> Judged:
    """The accuracy of the answers, including the end character, without padding."""
    asked = pairs.target[:, 1:]
    said = np.asarray(answer(model, jnp.asarray(pairs.source), asked.shape[1]).tokens)
    valid = np.arange(asked.shape[1]) < pairs.target_length[:, None] - 1
    right = (said == asked) & valid
    return Judged(right.sum() / valid.sum(), (right.sum(1) == valid.sum(1)).mean())


def show(model: rnnjax.models.Seq2Seq, pairs: rnnjax.models.Pairs, digits: int) -> None:
    """Five sums and the model's answers."""
    few = rnnjax.models.Pairs(*(leaf[:5] for leaf in pairs))
    said = np.asarray(answer(model, jnp.asarray(few.source), digits + 2).tokens)
    for source, target, tokens in zip(few.source, few.target, said, strict=True):
        question, wanted, got = (
            "".join(CHARACTERS[token] for token in part).strip(" $") for part in (source[::-1], target[1:], tokens)
        )
        print(f"{question} = {got}{'' if got == wanted else f', not {wanted}'}")


if __name__ == "__main__":
    main(parse, run)
