"""Translation of German into English: a bidirectional GRU reads, a GRU with attention writes; alignments are plotted.

    RNNJAX_DATA=folder python examples/translation.py --picture alignments.png
    python examples/translation.py --epochs 4                  on numbers in words, made up here

Multi30k (Elliott et al. 2016), 29,000 pairs of sentences, by the model of Bahdanau et al. 2015 (arXiv:1409.0473).
RNNJAX_DATA is a folder that holds multi30k/train.lc.norm.tok.de and its companions .en, val... and test_2016_flickr...,
from https://github.com/multi30k/dataset, data/task1/tok. BLEU is of lower-cased tokens, by sacrebleu.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sacrebleu
from common import data
from common.command_line import SEED, command_line, epochs_option, main, option, picture_option
from common.numbers_in_words import number_pairs
from common.pictures import save
from jaxtyping import Array
from matplotlib.figure import Figure

import rnnjax
from rnnjax.diagnose.plot import draw_alignment

B, LEARNING_RATE, DROPOUT = 128, 2e-3, 0.3
BOUNDS = (12, 16, 20, 26, 46)  # batches are padded to one of these
BEAM, LONGEST, LENGTH_PENALTY = 5, 46, 0.6
START, END, UNKNOWN = range(3)
PUBLISHED = (
    "published, of 512 units, half of the words its own: perplexity after its own words 25.6, BLEU 28.3 greedily"
)


class Corpus(NamedTuple):
    """Sentences and their translations, word by word."""

    source: list[list[str]]
    target: list[list[str]]


class Vocabulary(NamedTuple):
    """Words by number, and numbers by word: what was seen at least twice, and three that are none."""

    words: list[str]
    number: dict[str, int]

    def encode(self, sentence: Sequence[str]) -> list[int]:
        return [START, *(self.number.get(word, UNKNOWN) for word in sentence), END]

    def decode(self, tokens: Any) -> list[str]:
        return [self.words[token] for token in tokens if token != END]


class Languages(NamedTuple):
    """The vocabularies of both."""

    source: Vocabulary
    target: Vocabulary


parse = command_line(
    __doc__,
    epochs_option(10),
    option("--units", type=int, default=256, help="of each direction of the encoder, and of the decoder (%(default)s)"),
    option(
        "--teacher-forcing",
        type=float,
        default=1.0,
        help="probability of feeding the true word in training (%(default)s)",
    ),
    SEED,
    picture_option("alignments"),
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a model, the best by the perplexity of the sentences held out."""
    name, (training, held_out, test) = read()
    languages = Languages(vocabulary(training.source), vocabulary(training.target))
    pairs = encode(languages, held_out)
    model = train(options, languages, encode(languages, training), pairs)
    tested = encode(languages, test)
    perplexity, free = (float(np.exp(loss_of(model, tested, forcing))) for forcing in (1.0, 0.0))
    greedy, beam = (bleu(translate(model, languages, tested, search), test.target) for search in (say, search_widely))
    print(f"{name}: perplexity {perplexity:.2f}, fed with its own words {free:.2f}")
    print(f"BLEU {beam:.2f} by a beam of {BEAM}, {greedy:.2f} greedily")
    if name == "Multi30k":
        print(PUBLISHED)
    if options.picture:
        draw(options.picture, model, languages, test)
    record = {"task": name, "seed": options.seed, "test": beam, "greedy": greedy, "perplexity": perplexity}
    yield record | {"perplexity_of_own_words": free, "units": options.units, "weights": rnnjax.diagnose.count(model)}


def build(languages: Languages, units: int, key: Array) -> rnnjax.models.Seq2Seq:
    """Embeddings, encoder, attention and decoder, all of `units`."""
    keys = jax.random.split(key, 6)
    encoder = rnnjax.Bidirectional(*(rnnjax.GRU(units, units, key=key) for key in keys[:2]))
    decoder = rnnjax.models.BahdanauDecoder(
        rnnjax.GRU(3 * units, units, key=keys[2]),
        rnnjax.models.Additive(units, 2 * units, units, key=keys[3]),
        eqx.nn.Sequential([eqx.nn.Linear(4 * units, units, key=keys[5]), eqx.nn.Lambda(jnp.tanh)]),
    )
    source_size, target_size = (len(language.words) for language in languages)
    dropped = rnnjax.regularise.VariationalDropout(encoder, outputs=DROPOUT)
    return rnnjax.models.Seq2Seq(source_size, target_size, dropped, decoder, dropout=DROPOUT, key=keys[4])


def train(
    options: argparse.Namespace, languages: Languages, training: rnnjax.models.Pairs, held_out: rnnjax.models.Pairs
) -> rnnjax.models.Seq2Seq:
    """The best model of as many epochs; after each of them it is judged, by its own words if it is trained on them."""
    lengths = np.maximum(training.source_length, training.target_length)
    batch = rnnjax.training.Buckets(lengths, min(B, len(lengths)), BOUNDS, seed=options.seed)
    keys = jax.random.split(jax.random.key(options.seed))
    steps = options.epochs * batch.per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, min(200, steps // 10), steps)
    fitted = rnnjax.training.fit(
        build(languages, options.units, keys[0]),
        partial(rnnjax.models.seq2seq_loss, teacher_forcing=options.teacher_forcing),
        lambda step: cut(training, *batch(step)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        steps=steps,
        key=keys[1],
        validate=lambda model: loss_of(model, held_out, float(options.teacher_forcing == 1)),
        every=batch.per_epoch,
    )
    return fitted.model


def cut(pairs: rnnjax.models.Pairs, chosen: np.ndarray, length: int) -> rnnjax.models.Pairs:
    """Some of the pairs, padded to no more than `length`."""
    source, source_length, target, target_length = (leaf[chosen] for leaf in pairs)
    return rnnjax.models.Pairs(source[:, :length], source_length, target[:, :length], target_length)


def parts(pairs: rnnjax.models.Pairs) -> Iterator[rnnjax.models.Pairs]:
    """All pairs in their order, up to a hundred at a time."""
    for at in range(0, len(pairs.source), 100):
        yield rnnjax.models.Pairs(*(leaf[at : at + 100] for leaf in pairs))


@eqx.filter_jit
def _loss(model: rnnjax.models.Seq2Seq, pairs: rnnjax.models.Pairs, forcing: float) -> Array:
    return rnnjax.models.seq2seq_loss(model, None, pairs, None, teacher_forcing=forcing)[0]


def loss_of(model: rnnjax.models.Seq2Seq, pairs: rnnjax.models.Pairs, forcing: float) -> float:
    """Nats a word, nothing dropped; fed with the words of the target, or where `forcing` is 0 with its own."""
    losses, words = zip(
        *((_loss(model, part, forcing), (part.target_length - 1).sum()) for part in parts(pairs)), strict=True
    )
    return float(np.average(losses, weights=words))


@eqx.filter_jit
def say(model: rnnjax.models.Seq2Seq, source: Array, length: Array) -> rnnjax.models.Hypothesis:
    """The likeliest word after each word, for every source."""

    def one(source: Array, length: Array) -> rnnjax.models.Hypothesis:
        step, state, _ = model.decoding(source, length=length)
        return rnnjax.models.greedy(step, state, start=START, end=END, max_length=LONGEST)

    return jax.vmap(one)(source, length)


@eqx.filter_jit
def search_widely(model: rnnjax.models.Seq2Seq, source: Array, length: Array) -> rnnjax.models.Hypothesis:
    """The best of a beam, for every source."""
    width = min(BEAM, model.target_embedding.vocabulary_size)

    def one(source: Array, length: Array) -> rnnjax.models.Hypothesis:
        step, state, mask = model.decoding(source, length=length)
        limits: dict[str, Any] = {"start": START, "end": END, "max_length": LONGEST}
        return rnnjax.models.beam_search(step, state, width=width, length_penalty=LENGTH_PENALTY, mask=mask, **limits)

    return jax.vmap(one)(source, length)


def translate(
    model: rnnjax.models.Seq2Seq,
    languages: Languages,
    pairs: rnnjax.models.Pairs,
    search: Callable[..., rnnjax.models.Hypothesis],
) -> list[list[str]]:
    """What is said of each source, in words."""
    said = [np.asarray(search(model, part.source, part.source_length).tokens) for part in parts(pairs)]
    return [languages.target.decode(tokens) for tokens in np.concatenate(said)]


def bleu(said: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """BLEU of sentences that are words already."""
    joined = [[" ".join(sentence) for sentence in sentences] for sentences in (said, references)]
    return sacrebleu.corpus_bleu(joined[0], [joined[1]], tokenize="none", force=True).score


def read() -> tuple[str, list[Corpus]]:
    """The name of the data; what to train on, to choose by, and to test on."""
    folder = data.find("multi30k", "numbers in words stand in for sentences")
    if folder is None:
        pairs = number_pairs(4400)
        cuts = slice(400, None), slice(200), slice(200, 400)
        return "numbers in words", [Corpus(*(side[cut] for side in pairs)) for cut in cuts]
    return "Multi30k", [read_corpus(folder, part) for part in ("train", "val", "test_2016_flickr")]


def read_corpus(folder: Path, part: str) -> Corpus:
    """The sentences of two files, line by line."""
    files = [(folder / f"{part}.lc.norm.tok.{language}").read_text(encoding="utf-8") for language in ("de", "en")]
    source, target = ([line.split() for line in text.strip().split("\n")] for text in files)
    if len(source) != len(target):
        raise ValueError(f"{part}: expected as many German as English sentences, got {len(source)} and {len(target)}")
    return Corpus(source, target)


def vocabulary(sentences: Sequence[Sequence[str]]) -> Vocabulary:
    """The words that occur at least twice, after the three that are none."""
    counts = Counter(word for sentence in sentences for word in sentence)
    words = ["<start>", "<end>", "<unknown>", *(word for word, count in counts.most_common() if count > 1)]
    return Vocabulary(words, {word: number for number, word in enumerate(words)})


def encode(languages: Languages, corpus: Corpus) -> rnnjax.models.Pairs:
    """All sentences as one padded batch; one that is too long for that is cut."""
    sides = [
        rnnjax.training.pad([language.encode(sentence)[: BOUNDS[-1]] for sentence in sentences], value=END)
        for language, sentences in zip(languages, corpus, strict=True)
    ]
    return rnnjax.models.Pairs(*sides[0], *sides[1])


def draw(path: Path, model: rnnjax.models.Seq2Seq, languages: Languages, test: Corpus) -> None:
    """What each word of four translations looked at, the brighter the more."""
    few = Corpus(test.source[:4], test.target[:4])
    pairs = encode(languages, few)
    said = jax.tree.map(np.asarray, say(model, jnp.asarray(pairs.source), jnp.asarray(pairs.source_length)))
    figure = Figure(figsize=(11, 10))
    for axes, sentence, tokens, length, weights in zip(
        figure.subplots(2, 2).flat, few.source, said.tokens, said.length, said.alignments, strict=False
    ):
        sources = ["<start>", *sentence, "<end>"][: weights.shape[1]]
        targets = [languages.target.words[token] for token in tokens[:length]]
        draw_alignment(axes, weights[:length, : len(sources)], sources=sources, targets=targets)
    figure.tight_layout()
    save(figure, path, dpi=110)


if __name__ == "__main__":
    main(parse, run)
