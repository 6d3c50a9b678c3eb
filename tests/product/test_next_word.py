"""The example of the next word: it splits and counts as it says, and each recipe trains."""

import equinox as eqx
import jax
import next_word
import numpy as np
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("as_it_comes")


def test_a_text_is_split_into_words_and_blocks(monkeypatch):
    monkeypatch.setattr(next_word, "BLOCK", 3)
    words = next_word.split("A dog's a-b ====== 2nd. " * 10 + "Once")  # 11 words each, 110 and one more: 90 fill blocks
    assert words.vocabulary == [next_word.RARE, "-", ".", "2", "=", "a", "b", "dog's", "nd"]
    said = [words.vocabulary[token] for token in words.training[:12]]
    assert said == ["a", "dog's", "a", "-", "b", "=", "=", "=", "2", "nd", ".", "a"]
    assert [len(part) for part in words[1:]] == [72, 9, 9]


def test_perplexities_of_what_is_known():
    """By hand of two words, and of a cycle."""
    vocabulary, nothing = [next_word.RARE, "a", "b"], np.zeros(0, int)
    words = next_word.Words(vocabulary, np.array([1, 1, 2, 1]), nothing, np.array([1, 1, 2]))
    assert next_word.word_perplexity(words) == pytest.approx((4 / 7 * 2 / 7) ** -0.5)
    # n(a, a) = n(a, b) = n(b, a) = 1, so that q is 1/6, 3/6 and 2/6, and of a two kinds follow, of two
    of_a = np.array([0, 0.25, 0.25]) / 2 + 0.75 * 2 / 2 * np.array([1, 3, 2]) / 6
    assert of_a.sum() == pytest.approx(1)
    assert next_word.pair_perplexity(words) == pytest.approx((of_a[1] * of_a[2]) ** -0.5)
    cycle = next_word.Words(vocabulary, np.tile([0, 1, 2], 3000), nothing, np.tile([0, 1, 2], 20))
    assert next_word.pair_perplexity(cycle) == pytest.approx(1.0, abs=1e-3)
    assert next_word.word_perplexity(cycle) == pytest.approx(3.0, abs=1e-3)


def scale_down(monkeypatch):
    same = rnnjax.TimeDistributed(jax.nn.identity, 16)
    sizes = {"SIZE": 16, "SAME": same, "B": 8, "T": 8, "EVALUATIONS": 2, "BLOCK": 100, "LEARNING_RATE": 2e-2}
    for name, value in sizes.items():
        monkeypatch.setattr(next_word, name, value)
    monkeypatch.setattr(next_word, "read_corpus", lambda: ("the cat sat on the mat . " * 600, "the mat"))


@pytest.mark.parametrize("recipe", next_word.RECIPES)
def test_each_recipe_is_judged_and_trained_by_a_loss_that_fits(monkeypatch, recipe):
    """By form alone: what `fit` is asked to do is not done."""
    scale_down(monkeypatch)
    judged = []

    def asked(model, loss, batches, _, *, key, carry, validate, **options):
        value, after = eqx.filter_eval_shape(loss, model, carry, batches(0), key)
        assert (value.shape, options["steps"], options["every"]) == ((), 60, 30)
        assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, carry)
        judged.append(validate(model))
        return rnnjax.training.Fitted(model, carry, 60)

    monkeypatch.setattr(next_word, "fit", asked)
    judge = next_word._judge
    monkeypatch.setattr(next_word, "_judge", lambda *of: eqx.filter_eval_shape(judge, *of).size)
    words = next_word.split(next_word.read_corpus()[0])
    model = next_word.train(next_word.RECIPES[recipe], words, next_word.parse(["--steps", "60"]))
    assert judged == [1]
    assert (model.output.weight is None) == (recipe == "awd")
    assert sum(isinstance(layer, rnnjax.regularise.VariationalDropout) for layer in model.network.layers) == (
        recipe == "awd"
    )
    assert model.network.dropout == (0.2 if recipe == "zaremba" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", next_word.RECIPES)
def test_each_recipe_learns(monkeypatch, capsys, recipe):
    scale_down(monkeypatch)
    (record,) = next_word.run(next_word.parse(["--recipe", recipe, "--steps", "60"]))
    assert record["task"] == f"words of the mat, {recipe}"
    assert record["test"] < 4  # of six words
    assert "pairs, counted" in capsys.readouterr().out
