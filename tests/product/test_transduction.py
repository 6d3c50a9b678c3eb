"""Transduction: likelihoods against all alignments, searches against all transcripts, streams against the whole."""

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import chain, combinations, groupby, product
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.models import LanguageModel
from rnnjax.models.transduction import (
    CTC,
    Transducer,
    Utterances,
    ctc_beam_search,
    ctc_greedy,
    ctc_log_likelihood,
    ctc_loss,
    transducer_beam_search,
    transducer_greedy,
    transducer_log_likelihood,
    transducer_loss,
)

T, U, V, I = 6, 3, 4, 2  # noqa: E741
LENGTHS = np.array([6, 5, 4, 3, 1, 0, 0, 2])
TARGETS = np.array([[1, 2, 3], [2, 2, 1], [1, 3, 9], [3, -4, 0], [0, 0, 0], [0, 7, 0], [3, 0, 0], [2, 2, 0]])
TARGET_LENGTHS = np.array([3, 3, 2, 1, 0, 0, 1, 2])
IMPOSSIBLE = {"ctc": [6, 7], "transducer": [6]}  # a label and no step; two equal labels in two steps


class Case(NamedTuple):
    """One sequence: logarithms of probabilities without padding, and what is to be said."""

    log_p: np.ndarray
    target: tuple[int, ...]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def ctc_paths(case: Case) -> Iterator[list[tuple[int, ...]]]:
    """The places in `log_p` of every alignment of the target."""
    steps, classes = case.log_p.shape
    for path in product(range(classes), repeat=steps):
        if tuple(label for label, _ in groupby(path) if label) == case.target:
            yield list(enumerate(path))


def transducer_paths(case: Case) -> Iterator[list[tuple[int, ...]]]:
    """The same: which of the arcs are labels, the last being a blank."""
    steps, labels = case.log_p.shape[0], len(case.target)
    for places in combinations(range(steps + labels - 1), labels) if steps else ():
        t, u, path = 0, 0, []
        for arc in range(steps + labels):
            path.append((t, u, case.target[u] if arc in places else 0))
            t, u = (t, u + 1) if arc in places else (t + 1, u)
        yield path
    if not steps and not labels:
        yield []


PATHS = {"ctc": ctc_paths, "transducer": transducer_paths}
SHAPES = {"ctc": (T, V), "transducer": (T, U + 1, V)}
LIKELIHOODS = {"ctc": ctc_log_likelihood, "transducer": transducer_log_likelihood}


@lru_cache
def all_logits(kind: str) -> np.ndarray:
    """Of all cases, padding included."""
    return 2 * np.random.default_rng(5).normal(size=(len(LENGTHS), *SHAPES[kind]))


def cases(kind: str) -> list[Case]:
    cuts = [(slice(length), slice(labels + 1)) for length, labels in zip(LENGTHS, TARGET_LENGTHS, strict=True)]
    valid = [logits[cut[: logits.ndim - 1]] for logits, cut in zip(all_logits(kind), cuts, strict=True)]
    targets = [tuple(target[:n].tolist()) for target, n in zip(TARGETS, TARGET_LENGTHS, strict=True)]
    return [Case(log_softmax(logits), target) for logits, target in zip(valid, targets, strict=True)]


def by_brute_force(kind: str, case: Case) -> tuple[float, np.ndarray]:
    """The log likelihood, summed over all alignments, and its derivative by the logits."""
    paths = list(PATHS[kind](case))
    if not paths:
        return -np.inf, np.zeros_like(case.log_p)
    scores = [sum(case.log_p[place] for place in path) for path in paths]
    total = np.logaddexp.reduce(scores)
    visits = np.zeros_like(case.log_p)
    for path, score in zip(paths, scores, strict=True):
        for place in path:
            visits[place] += np.exp(score - total)
    return total, visits - visits.sum(-1, keepdims=True) * np.exp(case.log_p)


def batched(kind: str):
    """The likelihoods of a batch, and the derivative of the sum of those that are finite."""

    def total(logits, targets, lengths, target_lengths):
        one = lambda logits, target, length, labels: LIKELIHOODS[kind](  # noqa: E731
            logits, target, length=length, target_length=labels
        )
        found = jax.vmap(one)(logits, targets, lengths, target_lengths)
        return jnp.where(jnp.isfinite(found), found, jnp.zeros_like(found)).sum(), found

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@lru_cache
def padded(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The likelihoods of all cases by the library, and the derivatives; all that is padding is NaN."""
    logits = np.full((len(LENGTHS), *SHAPES[kind]), np.nan)
    for row, length, labels, given in zip(logits, LENGTHS, TARGET_LENGTHS, all_logits(kind), strict=True):
        cut = (slice(length), slice(labels + 1))[: row.ndim - 1]
        row[cut] = given[cut]
    (_, found), slopes = batched(kind)(logits, TARGETS, LENGTHS, TARGET_LENGTHS)
    return np.asarray(found), np.asarray(slopes)


@pytest.mark.parametrize("kind", PATHS)
def test_likelihoods_and_gradients_are_those_of_all_alignments(kind):
    found, slopes = padded(kind)
    for number, case in enumerate(cases(kind)):
        total, slope = by_brute_force(kind, case)
        np.testing.assert_allclose(found[number], total, rtol=1e-10, atol=1e-10)
        expected = np.zeros(SHAPES[kind])
        expected[(slice(LENGTHS[number]), slice(TARGET_LENGTHS[number] + 1))[: slope.ndim - 1]] = slope
        np.testing.assert_allclose(slopes[number], expected, rtol=1e-10, atol=1e-10)
    assert np.flatnonzero(found == -np.inf).tolist() == IMPOSSIBLE[kind]


@pytest.mark.parametrize("kind", PATHS)
def test_extreme_logits(kind):
    """Certain blanks, classes that are excluded, and logits far apart: the right number, infinity, never NaN."""
    logits = np.zeros((len(LENGTHS), *SHAPES[kind]))
    logits[0, ..., 0] = 1e6  # all blank: three labels cost 3e6, since CTC and transducers need each of them once
    logits[1, ..., 1:] = -np.inf
    logits[2, ..., 0] = -np.inf
    logits[3, ..., 2] = 700.0
    lengths = np.array([6, 6, 6, 6, 6, 6, 6, 6])
    targets = np.array([[1, 2, 3]] * 8)
    labels = np.array([3, 3, 3, 0, 0, 0, 0, 0])
    (_, found), slopes = batched(kind)(logits, targets, lengths, labels)
    assert np.isfinite(np.asarray(slopes)).all()
    paths = {"ctc": 6 * 5 * 4 / 6, "transducer": 8 * 7 * 6 / 6}[kind]  # ways to place three labels once each
    lost = {"ctc": 3e6, "transducer": 3e6}[kind]
    np.testing.assert_allclose(found[0], np.log(paths) - lost, rtol=1e-12)
    assert found[1] == -np.inf
    assert (found[2] == -np.inf) == (kind == "transducer")  # which leaves each step by a blank
    np.testing.assert_allclose(found[3], -6 * 700.0, rtol=1e-3)


# Models


class Said(NamedTuple):
    """Sequences and transcripts of a batch."""

    xs: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    target_lengths: np.ndarray


@lru_cache
def batch() -> Utterances:
    xs = np.random.default_rng(2).normal(size=(3, T, I))
    lengths, target_lengths = np.array([6, 4, 5]), np.array([3, 0, 2])
    xs[np.arange(T) >= lengths[:, None]] = np.nan
    return Utterances(xs, lengths, TARGETS[:3], target_lengths)


@grid.once
def ctc_model() -> CTC:
    cells = [rnnjax.GRU(I, 3, key=key, dtype=jnp.float64) for key in jax.random.split(grid.KEY)]
    return CTC(V, rnnjax.Bidirectional(*cells), key=grid.KEY)


@grid.once
def transducer() -> Transducer:
    keys = jax.random.split(grid.KEY, 3)
    encoder, prediction = (
        rnnjax.GRU(size, 3, key=key, dtype=jnp.float64) for size, key in zip((I, 2), keys[:2], strict=True)
    )
    model = Transducer(V, encoder, prediction, joint_size=4, key=keys[2])
    return jax.tree.map(lambda leaf: 2.5 * leaf, model)


@lru_cache
def losses_of_the_transducer() -> Any:
    """The loss of a batch and its gradient, and the same by the logits of all nodes at once."""
    model, (xs, lengths, targets, labels) = transducer(), batch()

    def at_once(model):
        def one(xs, length, target, number):
            _, heard = model.encode(None, xs, length=length)
            gs = model.predict(jnp.where(jnp.arange(U) < number, target, 0))
            logits = jax.vmap(jax.vmap(model.joiner, (None, 0)), (0, None))(heard, gs)
            return transducer_log_likelihood(logits, target, length=length, target_length=number)

        return -jax.vmap(one)(xs, lengths, targets, labels).mean()

    by_steps = lambda model: transducer_loss(model, None, batch(), None)[0]  # noqa: E731
    program = eqx.filter_jit(lambda model: [eqx.filter_value_and_grad(loss)(model) for loss in (by_steps, at_once)])
    return program(model)


def test_the_loss_of_a_transducer_is_that_of_all_its_logits():
    by_steps, at_once = losses_of_the_transducer()
    grid.assert_close(by_steps, at_once)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(by_steps))
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(by_steps))


def test_the_loss_of_ctc_ignores_padding():
    def both(model, batches):
        return [eqx.filter_value_and_grad(lambda model, batch: ctc_loss(model, None, batch, None)[0])(model, batch)
                for batch in batches]  # fmt: skip

    given = batch()
    other = given._replace(xs=np.nan_to_num(given.xs, nan=3.0), target=np.where(given.target == 9, 1, given.target))
    first, second = eqx.filter_jit(both)(ctc_model(), [given, other])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
    jax.tree.map(np.testing.assert_array_equal, first, second)


# Searches


def every_text(labels: int, length: int) -> list[tuple[int, ...]]:
    return [text for n in range(length + 1) for text in product(range(1, labels), repeat=n)]


@grid.once
def language() -> LanguageModel:
    cell = rnnjax.Elman(2, 3, key=grid.KEY, dtype=jnp.float64)
    return jax.tree.map(lambda leaf: 3 * leaf, LanguageModel(3, cell, key=grid.KEY))


SHORT = 4
TEXTS = every_text(3, SHORT)
WEIGHT = 0.8


@lru_cache
def beams() -> Any:
    """Of a batch of logits: what a beam finds alone and with a language model, and that model's scores of all texts."""
    logits = 1.5 * np.random.default_rng(8).normal(size=(6, SHORT, 3))
    lengths = np.array([4, 4, 4, 3, 1, 0])
    given = np.where(np.arange(SHORT)[:, None] < lengths[:, None, None], logits, np.nan)
    tokens = np.zeros((len(TEXTS), SHORT + 2), int)
    for row, text in zip(tokens, TEXTS, strict=True):
        row[1 : 1 + len(text)] = text

    @eqx.filter_jit
    def program(model, logits, lengths):
        plain = partial(ctc_beam_search, width=len(TEXTS))
        fused = partial(plain, language=model.decoding(), language_weight=WEIGHT)
        narrow = partial(ctc_beam_search, width=3, max_length=2)
        found = [jax.vmap(lambda logits, length, search=search: search(logits, length=length))(logits, lengths)
                 for search in (plain, fused, narrow, ctc_greedy)]  # fmt: skip
        log_p = jax.nn.log_softmax(jax.vmap(lambda tokens: model.logits(None, tokens)[1])(tokens))
        return found, log_p

    found, log_p = program(language(), given, lengths)
    texts = [
        sum(row[place, token] for place, token in enumerate([*text, 0]))
        for row, text in zip(np.asarray(log_p), TEXTS, strict=True)
    ]
    return logits, lengths, jax.tree.map(np.asarray, found), np.array(texts)


def check_found(found: Any, number: int, text: tuple[int, ...], score: float) -> None:
    assert found.tokens[number].tolist() == [*text] + [0] * (found.tokens.shape[1] - len(text))
    assert found.length[number] == len(text)
    np.testing.assert_allclose(found.score[number], score, rtol=1e-10)


def test_a_wide_beam_of_ctc_finds_the_best_of_all_transcripts():
    logits, lengths, (plain, fused, narrow, _), texts = beams()
    other = 0
    for number, length in enumerate(lengths):
        log_p = log_softmax(logits[number, :length])
        scores = np.array([by_brute_force("ctc", Case(log_p, text))[0] for text in TEXTS])
        check_found(plain, number, TEXTS[scores.argmax()], scores.max())
        both = scores + WEIGHT * texts
        check_found(fused, number, TEXTS[both.argmax()], both.max())
        other += both.argmax() != scores.argmax()
        assert narrow.score[number] <= scores.max() + 1e-12
        assert narrow.length[number] <= 2
    assert other > 0  # or nothing would be known of the language model


def test_greedy_ctc_collapses_the_best_class_of_each_step():
    logits, lengths, (*_, greedy), _ = beams()
    for number, length in enumerate(lengths):
        log_p = log_softmax(logits[number, :length])
        text = tuple(int(label) for label, _ in groupby(log_p.argmax(-1)) if label)
        check_found(greedy, number, text, log_p.max(-1).sum())


LONGEST, FRAMES = 2, 5
PREFIXES = every_text(V, LONGEST)


@lru_cache
def streams() -> Any:
    """A sequence searched whole, with padding, and in chunks; and the likelihoods of all short transcripts."""
    xs = np.random.default_rng(4).normal(size=(FRAMES, I))
    targets = np.array([[*text, 0, 0][:LONGEST] for text in PREFIXES])
    numbers = np.array([len(text) for text in PREFIXES])
    beam = partial(transducer_beam_search, width=len(PREFIXES), max_length=LONGEST, max_symbols=LONGEST)
    greedy = partial(transducer_greedy, max_symbols=2)
    padding = np.full((2, I), np.nan)

    @eqx.filter_jit
    def program(model):
        results = {}
        for name, search in {"beam": beam, "greedy": greedy}.items():
            state, parts = None, []
            for chunk in (xs[:2], xs[2:2], xs[2:]):
                state, found = search(model, state, chunk)
                parts.append(found)
            padded = search(model, None, np.concatenate([xs, padding]), length=FRAMES)
            results[name] = search(model, None, xs), padded, (state, parts)
        likelihood = lambda target, number: model.log_likelihood(xs, target, target_length=number)  # noqa: E731
        times = model.align(xs, targets[-1])
        return results, jax.vmap(likelihood)(targets, numbers), times

    return jax.tree.map(np.asarray, program(transducer()))


def test_a_wide_beam_of_a_transducer_finds_the_best_of_all_transcripts():
    results, scores, _ = streams()
    _, found = results["beam"][0]
    best = scores.argmax()
    assert len(PREFIXES[best]) > 0
    assert found.tokens[: found.length].tolist() == [*PREFIXES[best]]
    np.testing.assert_allclose(found.score, scores.max(), rtol=1e-10)


@pytest.mark.parametrize("name", ["beam", "greedy"])
def test_streams_and_padding_change_nothing(name):
    results, *_ = streams()
    (state, whole), (padded_state, padded), (last, parts) = results[name]
    jax.tree.map(np.testing.assert_array_equal, state, padded_state)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), state, last)
    spoken = lambda found: found.tokens[: found.length].tolist()  # noqa: E731
    assert spoken(whole) == spoken(padded)
    assert whole.score == padded.score
    if name == "beam":
        assert spoken(parts[-1]) == spoken(whole)
    else:
        assert [*chain.from_iterable(map(spoken, parts))] == spoken(whole)
        assert len(spoken(whole)) > 1
        np.testing.assert_allclose(sum(part.score for part in parts), whole.score, rtol=1e-12)


def test_alignments_sum_to_one_for_each_label():
    times = streams()[2]
    assert times.shape == (FRAMES, LONGEST)
    np.testing.assert_allclose(times.sum(0), 1, rtol=1e-12)
    assert (times > 0).all()
    assert (times.cumsum(0)[:, 0] >= times.cumsum(0)[:, 1]).all()  # the first label comes first


# Beside other libraries


@pytest.mark.slow
@pytest.mark.usefixtures("promoting")
def test_ctc_is_that_of_optax_and_of_torch():
    torch = pytest.importorskip("torch")
    possible = [number for number in range(len(LENGTHS)) if number not in IMPOSSIBLE["ctc"] and LENGTHS[number]]
    logits, found, slopes = all_logits("ctc")[possible], *(leaf[possible] for leaf in padded("ctc"))
    lengths, labels = LENGTHS[possible], TARGET_LENGTHS[possible]
    targets = np.clip(TARGETS[possible], 1, V - 1)
    given = torch.tensor(logits, requires_grad=True)
    log_p = given.log_softmax(-1).transpose(0, 1)
    numbers = torch.tensor(targets), torch.tensor(lengths), torch.tensor(labels)
    loss = torch.nn.functional.ctc_loss(log_p, *numbers, reduction="none")
    loss.sum().backward()
    np.testing.assert_allclose(-found, loss.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(-slopes, given.grad.numpy(), atol=1e-6)
    ignored = (np.arange(T) >= lengths[:, None]).astype(float)
    absent = (np.arange(U) >= labels[:, None]).astype(float)
    by_optax = jax.jit(optax.ctc_loss)(logits, ignored, targets, absent)
    np.testing.assert_allclose(-found, by_optax, rtol=1e-6)


# Errors


@pytest.mark.parametrize("length", [-1, 5])
def test_a_traced_length_out_of_range_is_an_error(length):
    likelihood = jax.jit(lambda length: ctc_log_likelihood(np.zeros((4, 3)), np.array([1]), length=length))
    with pytest.raises(
        RuntimeError, match=r"length: expected a value from 0 to T=4, got one outside\. Count the steps"
    ):
        jax.block_until_ready(likelihood(length))


def test_errors_say_what_to_do():
    model, logits = transducer(), np.zeros((T, V))
    xs = np.zeros((T, I))
    with pytest.raises(ValueError, match=r"target: expected labels from 1 to 3, of 4 classes .* got 0\. Number"):
        ctc_log_likelihood(jnp.asarray(logits), np.array([1, 0]))
    with pytest.raises(ValueError, match=r"target: expected labels from 1 to 3.* got 4\. Number"):
        model.log_likelihood(xs, np.array([4]))
    with pytest.raises(ValueError, match=r"target_length: expected a value from 0 to U=2, got 3\. Pad"):
        model.log_likelihood(xs, np.array([1, 2]), target_length=3)
    with pytest.raises(ValueError, match=r"target: expected the labels of one sequence, \[U\], got \[1, 2\]\. Batch"):
        model.log_likelihood(xs, np.array([[1, 2]]))
    with pytest.raises(ValueError, match=r"logits: expected \[T, 3, V\] for a target of U=2 .*Pass logits"):
        transducer_log_likelihood(jnp.zeros((T, U + 1, V)), np.array([1, 2]))
    with pytest.raises(ValueError, match=r"logits: expected real numbers \[T, V\].*Pass"):
        ctc_greedy(jnp.zeros((2, T, V)))
    with pytest.raises(ValueError, match=r"vocabulary_size: expected 2 or more.* got 1. Add one"):
        CTC(1, rnnjax.GRU(I, 3, key=grid.KEY), key=grid.KEY)
    with pytest.raises(ValueError, match=r"prediction: expected a network of float32.*Build both"):
        Transducer(V, rnnjax.GRU(I, 3, key=grid.KEY), model.prediction, joint_size=2, key=grid.KEY)
    search = partial(ctc_beam_search, jnp.asarray(logits), width=2)
    with pytest.raises(ValueError, match=r"language, language_weight: expected both or neither.*Pass language="):
        search(language_weight=0.5)
    with pytest.raises(ValueError, match=r"language: expected a model of 4 tokens.* got one of 3. Build"):
        search(language=language().decoding(), language_weight=0.5)
    with pytest.raises(TypeError, match=r"language: expected a Decoding.* Pass model.decoding\(\)"):
        search(language=language(), language_weight=0.5)  # type: ignore[arg-type]
    state, _ = eqx.filter_eval_shape(
        partial(transducer_beam_search, width=2, max_length=3, max_symbols=1), model, None, xs
    )
    with pytest.raises(ValueError, match=r"state: expected the beam of width=3 and max_length=3, got one of \[2, 3\]"):
        transducer_beam_search(model, state, xs, width=3, max_length=3, max_symbols=1)
