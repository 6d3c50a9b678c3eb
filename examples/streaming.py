"""A character language model that writes one character at a time, its weights prepared once: float32, bfloat16, int8.

python examples/streaming.py                       trains a small model first, for half a minute on two cores
python examples/streaming.py --folder runs/language_model-1   the model of a run of language_model.py
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import language_model
from common.command_line import command_line, option, steps_option
from common.text import Corpus, read_text
from jaxtyping import Array, PRNGKeyArray

import rnnjax

STORED = {"float32": None, "bfloat16": jnp.bfloat16, "int8": jnp.int8}
PROMPT, TEMPERATURE = "The ", 0.7


class Row(NamedTuple):
    """How fast a model writes, and how well it predicts."""

    characters_per_second: float
    bits_per_character: float


def main() -> None:
    """Print what each model writes, and a table of them."""
    arguments = parse()
    try:
        model, corpus = trained(arguments)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    rows = compare(model, corpus, arguments.length)
    print(f"\n{'weights':<12}{'characters/s':>14}{'bits/character':>16}{'change':>10}")
    for name, row in rows.items():
        change = row.bits_per_character - rows["float32"].bits_per_character
        print(f"{name:<12}{row.characters_per_second:>14,.0f}{row.bits_per_character:>16.4f}{change:>+10.4f}")


parse = command_line(
    __doc__,
    option("--folder", type=Path, help="a run of language_model.py; without it a model is trained first"),
    option("--length", type=int, default=300, help="characters to write (%(default)s)"),
    steps_option(600),
)


def trained(arguments: argparse.Namespace) -> tuple[rnnjax.models.LanguageModel, Corpus]:
    """The model of a run, or a new one, and its text."""
    if arguments.folder is not None:
        plan = language_model.read_plan(arguments.folder)
        corpus = Corpus(read_text(plan.text), plan.vocabulary)
        return language_model.restore(plan, arguments.folder), corpus
    corpus = Corpus(read_text(None))
    return language_model.fit(language_model.Plan(corpus.vocabulary, steps=arguments.steps), corpus), corpus


def compare(model: rnnjax.models.LanguageModel, corpus: Corpus, length: int) -> dict[str, Row]:
    """A row for each dtype of the weights."""
    rows = {}
    for name, dtype in STORED.items():
        prepared = rnnjax.prepare(model, dtype)
        print(f"\n{name}: {PROMPT}", end="", flush=True)
        speed = write(prepared, corpus, length)
        rows[name] = Row(speed, language_model.bits_per_character(prepared, corpus.held_out))
    return rows


def write(model: rnnjax.models.LanguageModel, corpus: Corpus, length: int) -> float:
    """Print `length` characters, each as soon as it is drawn; returns how many there are in a second."""
    tokens, keys = Corpus.encode(PROMPT, corpus.vocabulary), list(jax.random.split(jax.random.key(2), length))
    state, logits = jax.jit(rnnjax.models.LanguageModel.logits)(model, model.initial(), jnp.asarray(tokens))
    token = jnp.argmax(logits[-1])
    jax.block_until_ready(next_token(model, state, token, keys[0]))  # compiles
    begun = time.perf_counter()
    for key in keys:
        print(corpus.vocabulary[int(token)], end="", flush=True)
        state, token = next_token(model, state, token, key)
    return length / (time.perf_counter() - begun)


@jax.jit
def next_token(model: rnnjax.models.LanguageModel, state: Any, token: Array, key: PRNGKeyArray) -> tuple[Any, Array]:
    """The state after a token, and the token after it: a sequence of one step."""
    state, logits = model.logits(state, token[None])
    return state, jax.random.categorical(key, logits[0] / TEMPERATURE)


if __name__ == "__main__":
    main()
