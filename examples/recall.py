"""Multi-query associative recall: keys and values are read, and then each key asks for its value.

    python examples/recall.py
    python examples/recall.py --mixers gated_deltanet mamba2 --steps 4000 --seeds 5
    python examples/recall.py --vocabulary 8192 --length 256 --pairs 64 --width 64 --mixers gated_deltanet

The task is MQAR of "Zoology" (Arora et al. 2024, arXiv:2312.04927): pairs of distinct keys and values, and then each of
the keys once, in any order and with blanks between, more often soon than late. Only the answers to the keys are judged. A
state of fixed size has to hold all pairs, so the way in which it is written decides: a delta rule replaces what stood
under a key, and a sum of outer products with a decay only fades it.

Prints for each mixer the share of right answers on new sequences, over the seeds, beside that of guessing a value.
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from common.command_line import SEED, command_line, main, option, steps_option
from common.mixers import ENGINE, MIXERS, build_language_model
from common.questions import Questions, accuracies, batches, build_each, loss, rule

import rnnjax

BLANK = 0
B, TESTED = 64, 1000
POWER = 0.01  # of the law by which a key is asked for soon
LEARNING_RATE, DECAY = 3e-3, 0.1


def draw(generator: np.random.Generator, size: int, vocabulary: int, T: int, pairs: int) -> Questions:
    """`size` sequences: keys are tokens of the lower half of the vocabulary, but for the blank, values of the upper."""
    half, places = vocabulary // 2, T // 2 - pairs
    keys = _distinct(generator, np.ones((size, half - 1)), pairs) + 1
    values = _distinct(generator, np.ones((size, vocabulary - half)), pairs) + half
    soon = np.arange(1.0, places + 1) ** (POWER - 1)
    where = 2 * (pairs + _distinct(generator, np.broadcast_to(soon, (size, places)), pairs))
    tokens = np.full((size, T), BLANK)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    answers, asked = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    np.put_along_axis(tokens, where, keys, 1)
    np.put_along_axis(answers, where, values, 1)
    np.put_along_axis(asked, where, True, 1)
    return Questions(tokens, answers, asked)


def _distinct(generator: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """`count` places of each row, one after the other without putting back, each by its weight among those left.

    The smallest of exponential waiting times of these rates come in just this order.
    """
    return np.argsort(generator.exponential(1 / weights), 1)[:, :count]
