"""A text as tokens, and what is known of it without a network: entropies and compressors."""

import bz2
import lzma
import math
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from common import data

BLOCK = 4_000  # of every ten blocks of at most so many characters, one is held out
SHAKESPEARE = "Tiny Shakespeare"
COMPRESSORS = {
    "bz2": lambda content: bz2.compress(content, 9),
    "lzma": lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
}


class TextError(ValueError):
    """A text that cannot be learned from."""


class Corpus:
    """Characters as numbers, nine blocks in ten to train on and one held out.

    Held-out blocks lie throughout the text, so that they are of its every part; what fills no block is left out.
    """

    def __init__(self, text: str, vocabulary: str | None = None):
        self.vocabulary = "".join(sorted(set(text))) if vocabulary is None else vocabulary
        tokens = self.encode(text, self.vocabulary)
        pieces = -(-len(tokens) // (10 * BLOCK))
        block = len(tokens) // (10 * pieces)
        blocks = tokens[: 10 * pieces * block].reshape(-1, 10, block)
        self.held_out = blocks[:, 5].reshape(-1)
        self.training = np.delete(blocks, 5, axis=1).reshape(-1)

    @staticmethod
    def encode(text: str, vocabulary: str) -> np.ndarray:
        """Characters to numbers."""
        numbers = {character: number for number, character in enumerate(vocabulary)}
        unknown = sorted(set(text) - set(numbers))
        if unknown:
            raise TextError(f"text: expected only characters the model was trained on, got also {unknown[:10]}")
        return np.fromiter((numbers[character] for character in text), np.int32, len(text))

    def decode(self, tokens: np.ndarray) -> str:
        """Numbers to characters."""
        return "".join(self.vocabulary[token] for token in tokens)


def read_text(path: str | None) -> str:
    """The file, or without one the manual that comes with Python; at least enough of it to learn from."""
    if path is None:
        return "\n\n".join(topics.values())
    if not Path(path).is_file():
        raise TextError(f"--text: expected a file, found none at {path}")
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"--text: expected text in UTF-8, got bytes that are not, at {error.start} of {path}"
        ) from error
    if "\0" in text:
        raise TextError(f"--text: expected text, got a NUL at {text.index(chr(0))} of {path}: this is a binary file")
    if len(text) < 20_000:
        raise TextError(
            f"--text: expected at least 20,000 characters to train on and hold out, got {len(text)} in {path}"
        )
    return text


def read_corpus() -> tuple[str, str]:
    """The text, and what it is called."""
    path = data.find("tinyshakespeare/input.txt", "the manual that comes with Python stands in for Shakespeare")
    if path is None:
        return read_text(None), "the manual of Python"
    return read_text(str(path)), SHAKESPEARE


def entropy_bits(corpus: Corpus, order: int) -> float:
    """Bits per held-out character under counts of the training text, given the `order` characters before.

    Counts are smoothed by one part in ten of the vocabulary, so that what was never seen costs much but not all.
    """
    contexts: Counter[tuple] = Counter()
    seen: Counter[tuple] = Counter()
    training, held_out = corpus.training.tolist(), corpus.held_out.tolist()
    for place in range(order, len(training)):
        contexts[tuple(training[place - order : place])] += 1
        seen[tuple(training[place - order : place + 1])] += 1
    smoothing, size = 0.1, len(corpus.vocabulary)
    bits = 0.0
    for place in range(order, len(held_out)):
        context, with_next = tuple(held_out[place - order : place]), tuple(held_out[place - order : place + 1])
        bits -= math.log2((seen[with_next] + smoothing) / (contexts[context] + smoothing * size))
    return bits / (len(held_out) - order)


def compressed_bits(name: str, text: str) -> float:
    """Bits per character that a compressor needs for `text` alone."""
    return 8 * len(COMPRESSORS[name](text.encode())) / len(text)


def primed_bits(name: str, before: str, text: str) -> float:
    """Bits per character that `text` adds to what a compressor needs for the text before it."""
    compress = COMPRESSORS[name]
    return 8 * (len(compress((before + text).encode())) - len(compress(before.encode()))) / len(text)
