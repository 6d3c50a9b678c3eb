"""Words of formal languages and what they evaluate to: parity, arithmetic modulo 5, products of permutations.

The lengths of words count the symbols that are read. What follows a word is never asked about.
"""

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import numpy as np

from common.questions import Questions

MODULUS = 5
PLUS, MINUS, TIMES, EQUALS = range(MODULUS, MODULUS + 4)  # the tokens below are the digits
S3 = tuple(permutations(range(3)))
BEGIN = len(S3)


class Language(NamedTuple):
    """`draw(generator, lengths, T)` makes a word of each length, in arrays of T steps; answers are below `classes`."""

    vocabulary: int
    classes: int
    draw: Callable[[np.random.Generator, np.ndarray, int], Questions]


def parity(generator: np.random.Generator, lengths: np.ndarray, T: int) -> Questions:
    """Bits, and after the last one whether the number of ones is odd."""
    bits = generator.integers(0, 2, (len(lengths), T))
    return Questions(bits, bits.cumsum(1) % 2, _is_last(lengths, T))


def arithmetic(generator: np.random.Generator, lengths: np.ndarray, T: int) -> Questions:
    """Digits with +, - and * between them, then =, and the value modulo 5; * binds tighter.

    Such a word has an even length of two or more: odd lengths are rounded down.
    """
    tokens = generator.integers(0, MODULUS, (len(lengths), T))
    tokens[:, 1::2] = generator.integers(PLUS, TIMES + 1, (len(lengths), T // 2))
    total, product = np.zeros(len(lengths), int), tokens[:, 0]
    answers = np.repeat(product[:, None], T, 1)
    for t in range(2, T, 2):
        operator, digit = tokens[:, t - 1], tokens[:, t]
        total = np.where(operator == TIMES, total, total + product) % MODULUS
        product = np.select([operator == TIMES, operator == MINUS], [product * digit, -digit], digit) % MODULUS
        answers[:, t:] = ((total + product) % MODULUS)[:, None]
    last = _is_last(lengths // 2 * 2, T)
    tokens[last] = EQUALS
    return Questions(tokens, answers, last)


def s3_words(generator: np.random.Generator, lengths: np.ndarray, T: int) -> Questions:
    """BEGIN, then permutations of three things, and after each the product so far: the last one is applied last.

    The token at the beginning, which counts as a symbol, is that of the DeltaProduct paper's program.
    """
    tokens = generator.integers(0, len(S3), (len(lengths), T))
    table = np.array([[S3.index(tuple(second[i] for i in first)) for second in S3] for first in S3])
    tokens[:, 0] = BEGIN
    answers = np.zeros_like(tokens)  # of the identity
    for t in range(1, T):
        answers[:, t] = table[answers[:, t - 1], tokens[:, t]]
    places = np.arange(T)
    return Questions(tokens, answers, (places > 0) & (places < lengths[:, None]))


def _is_last(lengths: np.ndarray, T: int) -> np.ndarray:
    """[B, T]: true at the last step of each word."""
    return np.arange(T) == lengths[:, None] - 1


LANGUAGES = {
    "parity": Language(2, 2, parity),
    "arithmetic": Language(MODULUS + 4, MODULUS, arithmetic),
    "s3": Language(len(S3) + 1, len(S3), s3_words),
}
