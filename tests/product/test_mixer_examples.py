"""The examples of mixers: questions and answers are right by other formulas, seeds are independent, mixers train."""

from functools import partial, reduce

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recall
import state_tracking
from common import formal_languages, mixers, questions

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
        assert len(word) == len(answers) + 1 == length
        assert word[0] == formal_languages.BEGIN
        for t, answer in enumerate(answers):
            product = reduce(lambda before, token: matrices[token] @ before, word[1 : t + 2], np.eye(3, dtype=int))
            np.testing.assert_array_equal(product, matrices[answer])


@pytest.mark.parametrize("name", formal_languages.LANGUAGES)
def test_answers_are_spread_over_their_classes(name):
    """No answer is much more frequent than chance, for which scaled accuracy would reward a constant."""
    language = formal_languages.LANGUAGES[name]
    answers = np.concatenate([answers for _, answers in words_of(name, np.full(2000, 40), 40)])
    shares = np.bincount(answers, minlength=language.classes) / len(answers)
    assert len(shares) == language.classes
    assert abs(shares - 1 / language.classes).max() < 0.05


def test_lengths_are_all_of_those_named():
    drawn = state_tracking.draw(formal_languages.LANGUAGES["parity"], (3, 5), 8, 400, False, np.random.default_rng(0))
    assert drawn.tokens.shape == (400, 8)
    np.testing.assert_array_equal(drawn.asked.sum(1), 1)
    assert set(drawn.asked.argmax(1)) == {2, 3, 4}


def test_each_symbol_may_ask_for_the_value_so_far():
    """The value of what is read is that of the word that ends there."""
    language = formal_languages.LANGUAGES["arithmetic"]
    drawn = state_tracking.draw(language, (6, 9), 10, 50, True, np.random.default_rng(0))
    for row, answers, asked in zip(*drawn, strict=True):
        text = "".join("01234+-*="[token] for token in row[asked])
        assert text.index("=") == len(text) - 1
        assert len(text) in (6, 8)
        assert (np.diff(asked.astype(int)) <= 0).all()
        before = [eval(text[: t // 2 * 2 + 1]) % 5 for t in range(len(text))]
        assert before == list(answers[asked])


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


# Models of several seeds


def build(name):
    return partial(mixers.build_language_model, 2, WIDTH, HEADS, [name], perceptrons=True)


def draw_short(generator):
    return formal_languages.parity(generator, generator.integers(3, 8, 5), 8)


def test_no_batch_is_drawn_like_the_test():
    """NumPy pads seeds with zeros: 0 would be (0, 0), that of the first batch."""
    draws = {
        tuple(np.random.default_rng(seed).integers(0, 1000, 9)) for seed in [questions.TEST, (0, 0), (0, 1), (1, 0)]
    }
    assert len(draws) == 4


@pytest.mark.slow
def test_seeds_do_not_depend_on_each_other():
    """Weights, batches, losses and updates of seed 4 are the same beside another seed as alone."""
    rule = questions.optimiser(0.1, 10, 0.1)

    @eqx.filter_jit
    def second_update(models, batch):
        """The rate of the first one is zero."""
        losses = lambda models: questions.loss(models, None, batch, None)[::2]  # noqa: E731
        (total, measured), slope = eqx.filter_value_and_grad(losses, has_aux=True)(models)
        weights = eqx.filter(models, eqx.is_inexact_array)
        _, state = rule.update(slope, rule.init(weights), weights)
        return total, measured["cross_entropy"], rule.update(slope, state, weights)[0]

    def of(seeds):
        batch = questions.batches(draw_short, seeds)(6)
        return second_update(questions.build_each(build("elman"), seeds), jax.tree.map(jnp.asarray, batch))

    total, mean, alone = of([4])
    total_of_both, mean_of_both, together = of([2, 4])
    assert total == pytest.approx(mean) != total_of_both == pytest.approx(2 * mean_of_both)
    for one, two in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert np.any(one[0])
        np.testing.assert_allclose(one[0], two[1], rtol=1e-4, atol=1e-6)


def test_only_the_answers_that_are_asked_for_count():
    """By hand from the logits of one word after the other; the other answers may be anything."""
    model = jax.tree.map(
        lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, questions.build_each(build("elman"), [0])
    )
    asked = draw_short(np.random.default_rng(0))
    spoilt = asked._replace(answers=np.where(asked.asked, asked.answers, 1 - asked.answers))
    judge = eqx.filter_jit(questions.judge)
    logits = np.asarray(eqx.filter_jit(jax.vmap(lambda row: model.logits(model.initial(), row)[1]))(asked.tokens))
    chosen, answers = logits[asked.asked], asked.answers[asked.asked]
    expected = np.log(np.exp(chosen).sum(1)) - chosen[np.arange(len(answers)), answers]
    for batch in (asked, spoilt):
        loss, share = judge(model, jax.tree.map(jnp.asarray, batch))
        np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
        np.testing.assert_allclose(share, (chosen.argmax(1) == answers).mean(), rtol=1e-6)


QUICK = ("deltaproduct", "mamba2", "slstm")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in mixers.MIXERS]
)
def test_every_mixer_can_be_asked(name):
    """Traced, not compiled: the layer fits the width, and one of the engines runs it."""
    batch = jax.tree.map(jnp.asarray, draw_short(np.random.default_rng(0)))
    judged = eqx.filter_eval_shape(lambda key: questions.judge(build(name)(key), batch), jax.random.key(0))
    assert [(each.shape, each.dtype) for each in judged] == [((), np.float32)] * 2


# The examples


def shrink(monkeypatch):
    for example in (state_tracking, recall):
        monkeypatch.setattr(example, "TESTED", 100)


@pytest.mark.slow
def test_state_tracking_reports_each_seed(monkeypatch, capsys):
    shrink(monkeypatch)
    words = [
        "--task",
        "s3",
        "--lengths",
        "2",
        "4",
        "8",
        "--mixers",
        "gru",
        "--steps",
        "200",
        "--learning-rate",
        "0.03",
        "--seed",
        "3",
        "--seeds",
        "2",
    ]
    records = run(state_tracking, *words)
    assert [(record["mixer"], record["seed"]) for record in records] == [("gru", 3), ("gru", 4)]
    assert all(record["short"] > 0.9 for record in records)
    assert records[0]["test"] != records[1]["test"]
    assert "s3, gru: " in capsys.readouterr().out


@pytest.mark.slow
def test_recall_learns_what_a_state_can_hold(monkeypatch, capsys):
    shrink(monkeypatch)
    sizes = ["--vocabulary", "8", "--length", "8", "--pairs", "2", "--width", "16"]
    (record,) = run(recall, *sizes, "--mixers", "gated_deltanet", "--steps", "300", "--learning-rate", "0.02")
    assert record["test"] > 0.9  # of four values
    assert "2 pairs in 8 steps" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--length", "62"], ["--length", "65"], ["--vocabulary", "32"]])
def test_pairs_that_do_not_fit(words, capsys):
    with pytest.raises(SystemExit):
        recall.parse(words)
    assert f"{words[0]}: expected" in capsys.readouterr().err


@pytest.mark.parametrize("lengths", [(1, 4, 5), (5, 4, 5), (3, 5, 4)])
def test_lengths_out_of_order(lengths, capsys):
    with pytest.raises(SystemExit):
        state_tracking.parse(["--lengths", *map(str, lengths)])
    assert "--lengths: expected 2 <= A <= B <= C, got" in capsys.readouterr().err
