"""Sequence to sequence on data: numbers in words, files of sentences, sums; and the figures that are said of them."""

import addition
import equinox as eqx
import jax
import numpy as np
import pytest
import translation
from common.numbers_in_words import english, german, number_pairs

import rnnjax

pytestmark = pytest.mark.usefixtures("as_it_comes")


def run(example, *words):
    (record,) = example.run(example.parse(words))
    return record


@pytest.mark.parametrize(
    ("number", "in_german", "in_english"),
    [
        (1, "eins", "one"),
        (21, "ein und zwanzig", "twenty one"),
        (30, "dreißig", "thirty"),
        (101, "ein hundert eins", "one hundred one"),
        (1_012, "ein tausend zwölf", "one thousand twelve"),
        (42_130, "zwei und vierzig tausend ein hundert dreißig", "forty two thousand one hundred thirty"),
        (701_000, "sieben hundert ein tausend", "seven hundred one thousand"),
    ],
)
def test_numbers_are_said(number, in_german, in_english):
    assert " ".join(german(number)) == in_german
    assert " ".join(english(number)) == in_english


def test_no_two_numbers_sound_alike():
    numbers = [*range(1, 2000), 999_999]
    for say in (german, english):
        assert len({tuple(say(number)) for number in numbers}) == len(numbers)
    for side in number_pairs(300):
        assert len({tuple(words) for words in side}) == 300


@pytest.mark.slow
def test_numbers_are_translated_and_drawn(monkeypatch, tmp_path, capsys):
    scale_down(monkeypatch, (64, 4, 4))
    picture = tmp_path / "runs" / "alignments.png"
    record = run(translation, "--epochs", "12", "--units", "16", "--picture", str(picture))
    assert record["perplexity"] < 12  # of 30 words
    assert picture.stat().st_size > 0
    assert "BLEU" in capsys.readouterr().out


def scale_down(monkeypatch, counts):
    """A few pairs of numbers to translate, and small batches of them."""
    few = [translation.Corpus(*number_pairs(count)) for count in counts]
    monkeypatch.setattr(translation, "read", lambda: ("numbers in words", few))
    for name, value in {"B": 16, "LEARNING_RATE": 0.02, "BOUNDS": (24,), "LONGEST": 6}.items():
        monkeypatch.setattr(translation, name, value)


def test_training_on_its_own_words_is_judged_by_them(monkeypatch):
    """By form alone: what `fit` is asked to do is not done."""
    scale_down(monkeypatch, (32, 5, 3))
    fed, judged = [], []

    def asked(model, loss, batches, _, *, key, validate, **options):
        value, _ = eqx.filter_eval_shape(loss, model, None, batches(0), key)
        assert (value.shape, options["steps"], options["every"]) == ((), 2, 2)
        fed.append(loss.keywords)
        assert validate(model) == np.log(2)
        return rnnjax.training.Fitted(model, None, 2)

    monkeypatch.setattr(rnnjax.training, "fit", asked)
    monkeypatch.setattr(translation, "loss_of", lambda *of: judged.append(of[2]) or np.log(2))
    monkeypatch.setattr(translation, "translate", lambda *_: [["one"], ["two"], ["three"]])
    record = run(translation, "--epochs", "1", "--units", "4", "--teacher-forcing", "0.5")
    assert fed == [{"teacher_forcing": 0.5}]
    assert judged == [0.0, 1.0, 0.0]  # once for the epoch; and both of the test
    np.testing.assert_allclose([record["perplexity"], record["perplexity_of_own_words"]], 2)


def test_the_loss_of_parts_is_their_mean_word_by_word(monkeypatch):
    """Of a loss that is known of each word: the length of its target."""
    lengths = np.arange(2, 252)
    sums = lambda part, of: (of * (part.target_length - 1)).sum()  # noqa: E731
    monkeypatch.setattr(
        translation, "_loss", lambda _, part, forcing: sums(part, forcing * part.target_length) / sums(part, 1)
    )
    pairs = rnnjax.models.Pairs(np.zeros((250, 1), int), lengths, np.zeros((250, 1), int), lengths)
    expected = 3.0 * (lengths * (lengths - 1)).sum() / (lengths - 1).sum()
    assert translation.loss_of(None, pairs, 3.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_the_loss_of_parts_is_that_of_all():
    corpus = translation.Corpus([["a"]] * 120, [["b"] * (1 if place < 100 else 9) for place in range(120)])
    languages = translation.Languages(*(translation.vocabulary(side) for side in corpus))
    pairs, model = translation.encode(languages, corpus), translation.build(languages, 4, jax.random.key(0))
    whole = jax.jit(lambda pairs: rnnjax.models.seq2seq_loss(model, None, pairs, None)[0])(pairs)
    assert translation.loss_of(model, pairs, 1.0) == pytest.approx(float(whole), rel=1e-5)


def write_corpus(folder, part, german_text, english_text):
    (folder / "multi30k").mkdir(exist_ok=True)
    for language, text in (("de", german_text), ("en", english_text)):
        (folder / "multi30k" / f"{part}.lc.norm.tok.{language}").write_text(text, encoding="utf-8")


def test_sentences_are_read_line_by_line(monkeypatch, tmp_path):
    for part in ("train", "val", "test_2016_flickr"):
        write_corpus(tmp_path, part, "ein hund .\nzwei hunde .\n", "a dog .\ntwo dogs .\n")
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    name, (training, _, _) = translation.read()
    assert name == "Multi30k"
    assert training.target == [["a", "dog", "."], ["two", "dogs", "."]]
    language = translation.vocabulary(training.source)
    assert language.words == ["<start>", "<end>", "<unknown>", "."]  # the rest is there but once
    assert language.encode(["ein", "."]) == [0, 2, 3, 1]
    assert language.decode(np.array([2, 3, 1, 1])) == ["<unknown>", "."]


def test_files_of_unlike_lengths_are_refused(tmp_path):
    write_corpus(tmp_path, "val", "ein hund .\nzwei hunde .\n", "a dog .\n")
    with pytest.raises(ValueError, match="val: expected as many German as English sentences, got 2 and 1"):
        translation.read_corpus(tmp_path / "multi30k", "val")


def test_bleu_is_that_of_the_words():
    reference = [["a", "dog", "runs", "over", "grass"]]
    assert translation.bleu(reference, reference) == pytest.approx(100)
    said = [["a", "dog", "runs", "on", "grass"]]  # 4/5, 2/4 and 1/3 of the n-grams; of the 2 fours, smoothed, 1/4
    assert translation.bleu(said, reference) == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25)


def test_sums_are_what_they_say():
    pairs = addition.draw(2, 50)
    assert len({tuple(row) for row in pairs.source}) == 50
    for source, target, length in zip(pairs.source, pairs.target, pairs.target_length, strict=True):
        question = "".join(addition.CHARACTERS[token] for token in source[::-1])
        first, second = question.split("+")
        answer = "".join(addition.CHARACTERS[token] for token in target[:length])
        assert answer == f"^{int(first) + int(second)}$"


def test_sums_come_in_any_order():
    """Or what is held out, the first of them, would be the short ones."""
    lengths = addition.draw(3, 5000).target_length
    np.testing.assert_allclose(lengths[:500].mean(), lengths[500:].mean(), atol=0.1)


def test_right_characters_and_answers_are_counted(monkeypatch):
    end, start = addition.END, addition.START
    target = np.array([[start, 1, 2, end], [start, 3, end, end]])
    pairs = rnnjax.models.Pairs(np.zeros((2, 5), int), np.array([5, 5]), target, np.array([4, 3]))
    said = np.array([[1, 7, end], [3, end, end]])  # what stands after the end does not count
    monkeypatch.setattr(addition, "answer", lambda *_: rnnjax.models.Hypothesis(said, None, None, None))
    assert addition.judge(None, pairs) == (4 / 5, 1 / 2)


def test_addition_is_trained(monkeypatch, capsys):
    few = rnnjax.models.Pairs(*(np.tile(leaf, (5, 1)[: leaf.ndim]) for leaf in addition.draw(2, 10)))
    monkeypatch.setattr(
        addition, "draw", lambda *_: few
    )  # ten sums, which are trained on; and half of them are held out
    monkeypatch.setattr(addition, "UNITS", 16)
    monkeypatch.setattr(addition, "LEARNING_RATE", 0.02)
    record = run(addition, "--digits", "2", "--epochs", "150")
    assert record["test"] > 0.8
    assert capsys.readouterr().out.count(" = ") >= 4
