"""The examples of mixers: words and questions are right by other formulas, seeds are independent, and each mixer trains."""

from functools import lru_cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recall
import state_tracking
from common import formal_languages, mixers, questions

import rnnjax
from benchmarks import published

pytestmark = pytest.mark.usefixtures("as_it_comes")

WIDTH, HEADS = 8, 2
LENGTHS = np.array([2, 3, 7, 12, 12, 9])


def run(example, *words):
    return list(example.run(example.parse(words)))


def words_of(name, lengths=LENGTHS, T=12):
    """Each word, and its answers where they are asked for."""
    drawn = formal_languages.LANGUAGES[name].draw(np.random.default_rng(3), lengths, T)
    assert all(part.shape == (len(lengths), T) for part in drawn)
    return [(row[: asked.nonzero()[0].max() + 1], answers[asked]) for row, answers, asked in zip(*drawn, strict=True)]


# Data


def test_parity_is_asked_for_after_the_last_bit():
    for length, (word, answers) in zip(LENGTHS, words_of("parity"), strict=True):
        assert len(word) == length
        assert answers == [bin(int("".join(map(str, word)), 2)).count("1") % 2]


def test_arithmetic_is_that_of_python():
    symbols = "01234+-*="
    seen = set()
    for length, (word, answers) in zip(LENGTHS, words_of("arithmetic"), strict=True):
        text = "".join(symbols[token] for token in word)
        assert len(text) == length // 2 * 2
        assert text[-1] == "="
        assert answers == [eval(text[:-1]) % formal_languages.MODULUS]
        seen |= set(text)
    assert seen == set(symbols)


def test_words_of_permutations_are_products_of_matrices():
    """The matrix of a permutation p maps e_i to e_p(i); the last one read stands on the left."""
    matrices = [np.eye(3, dtype=int)[list(p)].T for p in formal_languages.S3]
    for length, (word, answers) in zip(LENGTHS, words_of("s3"), strict=True):
        assert len(word) == len(answers) == length
        for t, answer in enumerate(answers):
            product = reduce(lambda before, token: matrices[token] @ before, word[: t + 1], np.eye(3, dtype=int))
            np.testing.assert_array_equal(product, matrices[answer])


@pytest.mark.parametrize("name", formal_languages.LANGUAGES)
def test_answers_are_spread_over_their_classes(name):
    """No answer is much more frequent than chance, or scaled accuracy would reward a constant; zero is so in products."""
    language = formal_languages.LANGUAGES[name]
    answers = np.concatenate([answers for _, answers in words_of(name, np.full(2000, 40), 40)])
    shares = np.bincount(answers, minlength=language.classes) / len(answers)
    assert len(shares) == language.classes
    assert abs(shares - 1 / language.classes).max() < 0.05


def test_lengths_are_all_of_those_named():
    drawn = state_tracking.draw(formal_languages.LANGUAGES["parity"], (3, 5), 8, 400, np.random.default_rng(0))
    assert drawn.tokens.shape == (400, 8)
    np.testing.assert_array_equal(drawn.asked.sum(1), 1)
    assert set(drawn.asked.argmax(1)) == {2, 3, 4}


def test_guessing_scales_to_zero():
    np.testing.assert_allclose([state_tracking.scaled(share, 5) for share in (0.2, 0.6, 1.0)], [0, 0.5, 1], atol=1e-12)


def test_each_key_is_asked_for_once_and_its_value_is_the_one_that_followed_it():
    tokens, answers, asked = recall.draw(np.random.default_rng(0), 50, 32, 24, 5)
    for row, answer, is_asked in zip(tokens, answers, asked, strict=True):
        pairs = dict(row[:10].reshape(5, 2))
        assert len(pairs) == 5
        assert all(0 < key < 16 <= value < 32 for key, value in pairs.items())
        assert sorted(row[is_asked]) == sorted(pairs)
        assert not is_asked[:10].any()
        np.testing.assert_array_equal([pairs[key] for key in row[is_asked]], answer[is_asked])
        np.testing.assert_array_equal(row[10:][~is_asked[10:]], recall.BLANK)
    assert set(asked.nonzero()[1]) == set(range(10, 24, 2))


def test_keys_are_drawn_by_their_weights_without_putting_back():
    """Of weights 4, 2 and 1: the first with 4/7, 2/7, 1/7; and 4 then 2 with 4/7 * 2/3."""
    order = recall._distinct(np.random.default_rng(0), np.broadcast_to([4.0, 2.0, 1.0], (20_000, 3)), 2)
    assert (order[:, 0] != order[:, 1]).all()
    np.testing.assert_allclose(np.bincount(order[:, 0]) / len(order), [4 / 7, 2 / 7, 1 / 7], atol=0.015)
    assert abs(((order[:, 0] == 0) & (order[:, 1] == 1)).mean() - 8 / 21) < 0.015
