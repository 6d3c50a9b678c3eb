"""The next word: an LSTM over words, plain or regularised as by Zaremba et al. 2014 or Merity et al. 2018 (AWD-LSTM).

    python examples/next_word.py --recipe awd
    RNNJAX_DATA=folder python examples/next_word.py --recipe zaremba --steps 4000

The text is the manual that comes with Python, or Tiny Shakespeare: RNNJAX_DATA is as in shakespeare.py. All words that
are rare in training are one word. Of every ten blocks eight are for training, one for validation and one for testing.
The test perplexity is shown beside those of unigram and bigram counts (Kneser & Ney 1995). The dropout rates are lower
than the papers', for smaller networks and shorter training: after 2,000 steps on the manual all three are equally good.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import LOSSES, SEED, choice, command_line, main, steps_option
from common.text import read_corpus
from common.training import fit
from jaxtyping import Array

import rnnjax

RARE = "<rare>"
LEAST, BLOCK = 3, 500  # how often a word is to be seen, and how many of them are a block
B, T, SIZE, LEARNING_RATE, CLIP, EVALUATIONS = 20, 35, 128, 4e-3, 1.0, 10
JUDGED_STREAMS = 10
SAME = rnnjax.TimeDistributed(jax.nn.identity, SIZE)


class Recipe(NamedTuple):
    """The regularisation of the cells, whether the output weights are tied to the embedding, and the loss."""

    network: Callable[[list[rnnjax.LSTM]], rnnjax.Stack]
    tied: bool
    loss: Callable[..., Any]


def zaremba(cells: list[rnnjax.LSTM]) -> rnnjax.Stack:
    """Dropout before, between and after the layers, by layers that do nothing at both ends."""
    return rnnjax.Stack([SAME, *cells, SAME], dropout=0.2)


def awd(cells: list[rnnjax.LSTM]) -> rnnjax.Stack:
    """One mask for all steps; that of the outputs is the loss's."""
    first, second = cells
    return rnnjax.Stack([rnnjax.regularise.VariationalDropout(first, inputs=0.1, outputs=0.1), second])


RATES = {
    "weight_dropout": 0.2,
    "embedding_dropout": 0.05,
    "output_dropout": 0.2,
    "activation": 0.2,
    "temporal": 0.2,
}
RECIPES = {
    "plain": Recipe(rnnjax.Stack, False, rnnjax.models.language_loss),
    "zaremba": Recipe(zaremba, False, rnnjax.models.language_loss),
    "awd": Recipe(awd, True, partial(rnnjax.models.awd_loss, **RATES)),
}


class Words(NamedTuple):
    """The vocabulary, and the tokens to train on, to choose by and to test on."""

    vocabulary: list[str]
    training: np.ndarray
    chosen_by: np.ndarray
    test: np.ndarray


parse = command_line(
    __doc__,
    choice("--recipe", RECIPES, "awd"),
    steps_option(2000),
    SEED,
    LOSSES,
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a language model."""
    text, name = read_corpus()
    words = split(text)
    print(f"{name}: {len(words.training):,} words to train on, {len(words.vocabulary):,} different ones")
    model = train(RECIPES[options.recipe], words, options)
    rows = {
        "words, counted": word_perplexity(words),
        "pairs, counted": pair_perplexity(words),
        f"{options.recipe}, this run": math.exp(judge(model, words.test)),
    }
    print("\n" + write_on(model, words, options.seed) + f"\n\nperplexity on {len(words.test):,} held-out words")
    for row, perplexity in rows.items():
        print(f"  {row:<20} {perplexity:8.1f}")
    yield {"task": f"words of {name}, {options.recipe}", "seed": options.seed, "test": list(rows.values())[-1]}


def train(recipe: Recipe, words: Words, options: argparse.Namespace) -> rnnjax.models.LanguageModel:
    """The model that was best on the words to choose by."""
    keys = jax.random.split(jax.random.key(options.seed), 4)
    network = recipe.network([rnnjax.LSTM(SIZE, SIZE, key=key) for key in keys[:2]])
    model = rnnjax.models.LanguageModel(len(words.vocabulary), network, key=keys[2], tied=recipe.tied)
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, options.steps)
    return fit(
        model,
        recipe.loss,
        rnnjax.training.streams(words.training, B, T),
        optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(schedule)),
        steps=options.steps,
        key=keys[3],
        carry=rnnjax.models.batch_of_states(model, B),
        validate=lambda model: judge(model, words.chosen_by),
        every=-(-options.steps // EVALUATIONS),
        picture=options.picture,
    ).model


def judge(model: rnnjax.models.LanguageModel, tokens: np.ndarray) -> float:
    """Nats a word, of a text read as a few long streams."""
    return float(_judge(model, rnnjax.training.streams(tokens, JUDGED_STREAMS, (len(tokens) - 1) // JUDGED_STREAMS)(0)))


@eqx.filter_jit
def _judge(model: rnnjax.models.LanguageModel, chunk: rnnjax.training.Chunk) -> Array:
    return rnnjax.models.language_loss(model, rnnjax.models.batch_of_states(model, JUDGED_STREAMS), chunk, None)[0]


def split(text: str) -> Words:
    """Words, numbers and punctuation in lower case; a mark that is repeated is kept three times."""
    said = re.findall(r"[a-z_']+|\d+|[^\w\s]", re.sub(r"([^\w\s])\1{3,}", r"\1\1\1", text.lower()))
    blocks = np.array(said[: len(said) // (10 * BLOCK) * 10 * BLOCK], object).reshape(-1, 10, BLOCK)
    parts = [blocks[:, [0, 1, 2, 3, 5, 6, 7, 8]], blocks[:, 4], blocks[:, 9]]
    counts = Counter(parts[0].ravel())
    vocabulary = [RARE, *sorted(word for word, count in counts.items() if count >= LEAST)]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    return Words(vocabulary, *(np.array([numbers.get(word, 0) for word in part.ravel()], np.int32) for part in parts))


def word_perplexity(words: Words) -> float:
    """The unigram perplexity, with one added to every count."""
    counts = np.bincount(words.training, minlength=len(words.vocabulary)) + 1
    return float(np.exp(-np.log(counts[words.test[1:]] / counts.sum()).mean()))


def pair_perplexity(words: Words, discount: float = 0.75) -> float:
    """Of each word after the one before it: counts less a discount, which goes to words that follow many others.

    p(w | v) = max(n(v, w) - d, 0) / n(v) + d |{w: n(v, w) > 0}| / n(v) q(w)      q(w) ~ |{v: n(v, w) > 0}| + 1
    """
    V = len(words.vocabulary)
    counts = np.zeros((V, V))
    np.add.at(counts, (words.training[:-1], words.training[1:]), 1)
    follows = (counts > 0).sum(0) + 1
    before, after = words.test[:-1], words.test[1:]
    total, kinds = np.maximum(counts.sum(1), 1)[before], (counts > 0).sum(1)[before]
    q = (follows / follows.sum())[after]
    left = np.where(kinds > 0, discount * kinds / total, 1)
    return float(np.exp(-np.log(np.maximum(counts[before, after] - discount, 0) / total + left * q).mean()))


def write_on(model: rnnjax.models.LanguageModel, words: Words, seed: int) -> str:
    """The model's continuation of the first words of the test set."""
    prompt = words.test[:10]
    said = rnnjax.models.sample(model, jnp.asarray(prompt), 40, key=jax.random.key(seed), temperature=0.7)
    spell = lambda tokens: " ".join(words.vocabulary[token] for token in tokens)  # noqa: E731
    return f"{spell(prompt)} | {spell(np.asarray(said))}"


if __name__ == "__main__":
    main(parse, run)
