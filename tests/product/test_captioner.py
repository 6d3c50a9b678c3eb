"""Captioner: an image's features start a language model; against its equations, and its loss against each caption."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import digit_captions
import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from pixel_digits import Digits

import rnnjax
from rnnjax import GRU, LSTM, Bridge, Captioner, Captions, LanguageModel, Stack, beam_search, caption_loss, greedy

V, E, H, F = 6, 3, 5, 4  # tokens, features of a token, units, features of the layer
KEY = jax.random.key(41)
F64 = jnp.float64
START, END = 1, 2
CAPTION = jnp.array([START, 5, 3, 0, 4])


class Look(eqx.Module):
    """Features of two kinds: a layer's of all pixels, and the pixels themselves."""

    layer: eqx.nn.Linear

    def __call__(self, image: Any) -> Any:
        return {"all": jnp.tanh(self.layer(image.reshape(-1))), "pixels": image}


def make(dropout: float = 0.0, dtype: Any = F64) -> Captioner:
    cells = [GRU(E, H, key=KEY, dtype=dtype), LSTM(H, H, key=KEY, dtype=dtype)]
    language = LanguageModel(V, Stack(cells, dropout=dropout), key=KEY)
    features = {"all": jnp.zeros(F, F64), "pixels": jnp.zeros((2, 3), F64)}
    return Captioner(Look(eqx.nn.Linear(6, F, key=KEY)), Bridge(features, language.initial(), key=KEY), language)


@lru_cache
def build(dropout: float = 0.0) -> Captioner:
    """A model, every weight of it a normal number."""
    random = np.random.default_rng(3)
    draw = lambda leaf: jnp.asarray(0.7 * random.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, eqx.filter_eval_shape(make, dropout))


IMAGES = jnp.asarray(np.random.default_rng(4).normal(size=(8, 2, 3)))
logits_of = jax.jit(lambda model, image, target: model.logits(image, target))


# The equations, in NumPy


def numpy_initial(model: Captioner, image: Any) -> list[Any]:
    """The state before the first token: of the GRU, and of the LSTM."""
    image, layer = np.asarray(image), model.encoder.layer
    pixels = image.reshape(-1)
    features = np.concatenate([np.tanh(np.asarray(layer.weight) @ pixels + layer.bias), pixels])
    made = [np.tanh(np.asarray(part.weight) @ features + part.bias) for part in model.bridge.layers]
    return [(made[0],), (made[1], made[2])]


def numpy_step(model: Captioner, states: list[Any], token: int) -> tuple[list[Any], np.ndarray]:
    language, after = model.language, []
    x = np.asarray(language.embedding)[token]
    for cell, state in zip(language.network.layers, states, strict=True):
        state, x = oracle.step(cell, state, x)
        after.append(state)
    return after, np.asarray(language.output_weight) @ x + language.output_bias


def numpy_logits(model: Captioner, image: Any, caption: Any) -> np.ndarray:
    states, rows = numpy_initial(model, image), []
    for token in np.asarray(caption):
        states, row = numpy_step(model, states, token)
        rows.append(row)
    return np.array(rows).reshape(-1, V)


def assert_close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_logits_are_those_of_the_equations():
    for image in IMAGES[:2]:
        assert_close(logits_of(build(), image, CAPTION), numpy_logits(build(), image, CAPTION))
    assert logits_of(build(), IMAGES[0], CAPTION[:0]).shape == (0, V)


def test_a_step_at_a_time_is_teacher_forcing():
    @jax.jit
    def stepped(model: Captioner, image: Any) -> Any:
        step, state, mask = model.decoding(image)
        assert mask.shape == (0,)
        return jax.lax.scan(lambda state, token: step(state, token)[:2], state, CAPTION)[1]

    assert_close(stepped(build(), IMAGES[0]), logits_of(build(), IMAGES[0], CAPTION))


def test_features_at_hand_need_no_encoder():
    language = LanguageModel(V, GRU(E, H, key=KEY), key=KEY)
    model = Captioner(eqx.nn.Identity(), eqx.nn.Lambda(lambda features: rnnjax.Hidden(features)), language)
    features = jnp.linspace(-1, 1, H, dtype=jnp.float32)
    by_hand = eqx.filter_jit(language.logits)(rnnjax.Hidden(features), CAPTION)[1]
    assert_close(eqx.filter_jit(model.logits)(features, CAPTION), by_hand)


# The loss

BATCH = Captions(
    IMAGES[:4],
    jnp.array([[START, 5, 3, END], [START, 4, END, 0], [START, END, 0, 0], [START, 0, 0, 0]]),
    jnp.array([4, 3, 2, 1]),
)


@jax.jit
def loss_and_gradient(model: Captioner, batch: Any) -> Any:
    return jax.value_and_grad(lambda model: caption_loss(model, None, batch, None)[0])(model)


def test_loss_and_gradient_are_those_of_the_captions_without_their_padding():
    losses = []
    for image, target, length in zip(*map(np.asarray, BATCH), strict=True):
        logits = numpy_logits(build(), image, target[: length - 1])
        normalised = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += [-row[token] for row, token in zip(normalised, target[1:length], strict=True)]
    assert len(losses) == 6

    def one_by_one(model: Captioner) -> Any:
        said = []
        for image, target, length in zip(*BATCH[:2], BATCH.target_length.tolist(), strict=True):
            logits = model.logits(image, target[: length - 1])
            said += [jax.nn.log_softmax(row)[token] for row, token in zip(logits, target[1:length], strict=True)]
        return -jnp.stack(said).mean()

    padding = np.arange(4) >= np.asarray(BATCH.target_length)[:, None]
    littered = BATCH._replace(target=jnp.where(padding, 77, BATCH.target))  # what is no token at all
    loss, gradient = loss_and_gradient(build(), littered)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-12)
    jax.tree.map(assert_close, gradient, jax.jit(jax.grad(one_by_one))(build()))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_loss_of_no_tokens_is_zero():
    loss, gradient = loss_and_gradient(build(), BATCH._replace(target_length=jnp.array([1, 0, 1, 0])))
    assert loss == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_dropout_differs_between_captions_and_ends_with_the_key():
    model, alike = build(0.5), jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 2, 0), BATCH)
    slope = jax.jit(jax.grad(lambda images, key: caption_loss(model, None, alike._replace(image=images), key)[0]))
    first, second = slope(alike.image, KEY)
    assert not np.isclose(first, second).any()
    np.testing.assert_array_equal(*slope(alike.image, None))


# Search

OPTIONS: dict[str, Any] = {"start": START, "end": END, "max_length": 6}


@jax.jit
def captions(model: Captioner, images: Any) -> Any:
    """What greedy says of each image, and beams of one and of three."""

    def one(image: Any) -> Any:
        step, state, mask = model.decoding(image)
        beams = [beam_search(step, state, width=width, mask=mask, **OPTIONS) for width in (1, 3)]
        return greedy(step, state, **OPTIONS), *beams

    return jax.vmap(one)(images)


def test_greedy_says_the_likeliest_and_a_beam_of_one_is_greedy():
    likeliest, narrow, wide = captions(build(), IMAGES)
    jax.tree.map(assert_close, narrow, likeliest)
    for image, tokens in zip(IMAGES, likeliest.tokens.tolist(), strict=True):
        states, token, said = numpy_initial(build(), image), START, []
        while len(said) < 6 and END not in said:
            states, row = numpy_step(build(), states, token)
            token = int(row.argmax())
            said.append(token)
        assert tokens == said + [END] * (6 - len(said))
    assert len({tuple(tokens) for tokens in likeliest.tokens.tolist()}) > 1
    assert (wide.score >= likeliest.score - 1e-12).mean() > 0.7


# Learning


@pytest.mark.usefixtures("promoting")
def test_bright_places_are_learned_and_named():
    """Of three places some are bright; their names are said from left to right."""
    places = np.array([[place >> bit & 1 for bit in range(3)] for place in range(8)])
    target = np.full((8, 5), END)
    target[:, 0] = START
    for row, bright in enumerate(places):
        names = 3 + np.flatnonzero(bright)
        target[row, 1 : 1 + len(names)] = names
    batch = Captions(places.astype(np.float32), target, places.sum(1) + 2)
    language = LanguageModel(V, GRU(8, 16, key=KEY), key=KEY)
    model = Captioner(eqx.nn.Identity(), Bridge(jnp.zeros(3, jnp.float32), language.initial(), key=KEY), language)
    options = {"steps": 150, "key": KEY, "progress": False}
    fitted = rnnjax.fit(model, caption_loss, lambda step: batch, optax.adam(0.03), **options).model  # noqa: ARG005
    likeliest, *_ = captions(fitted, jnp.asarray(batch.image))
    np.testing.assert_array_equal(likeliest.tokens[:, :4], target[:, 1:])


# Misuse


def say(image: Any = IMAGES[0], target: Any = CAPTION, **parts: Any) -> Any:
    model = build()
    return Captioner(**(vars(model) | parts)).logits(image, target)


def made_from(state: Any) -> dict[str, Callable]:
    return {"bridge": lambda features: state}  # noqa: ARG005


MISUSES = {
    "nan": (lambda: say(IMAGES[0].at[1, 2].set(jnp.nan)), ValueError, ["image", "finite", "encoder's weights"]),
    "infinity": (lambda: say(IMAGES[0].at[0, 0].set(-jnp.inf)), ValueError, ["image", "finite"]),
    "features": (lambda: say(encoder=jnp.ravel), ValueError, ["encoded", "10 numbers in all", "f64[6]"]),
    "batch": (lambda: say(IMAGES, encoder=jnp.ravel), ValueError, ["encoded", "f64[48]", "vmap"]),
    "state": (lambda: say(**made_from((jnp.zeros(H),))), ValueError, ["bridge", "language model", "LSTMState"]),
    "unknown": (lambda: say(target=CAPTION.at[1].set(V)), ValueError, ["target", "from 0 to 5", "got 6"]),
    "negative": (lambda: say(target=CAPTION.at[1].set(-1)), ValueError, ["target", "from 0 to 5", "got -1"]),
    "floating": (lambda: say(target=CAPTION.astype(F64)), TypeError, ["target", "integers"]),
    "captions": (lambda: say(target=CAPTION[None]), ValueError, ["target", "one sequence", "vmap"]),
}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(("call", "kind", "fragments"), MISUSES.values(), ids=MISUSES)
def test_error_names_what_was_expected_and_what_came(call, kind, fragments):
    grid.assert_error(call, kind, fragments)


def test_what_is_traced_is_an_error_when_run():
    lose = eqx.filter_jit(lambda batch: loss_and_gradient(build(), batch))
    with pytest.raises(Exception, match="image: expected features that are finite"):
        jax.block_until_ready(lose(BATCH._replace(image=IMAGES[:4].at[3].set(jnp.nan))))
    with pytest.raises(Exception, match="target: expected tokens from 0 to 5"):
        jax.block_until_ready(lose(BATCH._replace(target=BATCH.target.at[1, 1].set(V))))


def test_a_model_of_16_bits_scores_in_32():
    model = eqx.filter_jit(lambda: make(dtype=jnp.bfloat16))()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.language)} == {"bfloat16"}
    assert logits_of(model, IMAGES[0], CAPTION).dtype == jnp.float32


# The example


def test_digits_are_composed_and_spelled():
    xs = np.repeat(np.arange(10.0, dtype=np.float32), 4).reshape(10, 4, 1)  # of 2 x 2 pixels, each the digit itself
    made = digit_captions.compose(np.random.default_rng(0), Digits(xs, np.arange(10)), 50)
    assert made.image.shape == (50, 1, 2, 6)
    for image, target, length in zip(*made, strict=True):
        said = target[1 : length - 1]
        assert target.tolist() == [10, *said, *[11] * (4 - len(said))]
        np.testing.assert_array_equal(image[0], np.repeat([*said, *[0] * (3 - len(said))], 2) * np.ones((2, 1)))
    assert set(made.target_length.tolist()) == {3, 4, 5}
    assert digit_captions.spell(np.array([3, 7, 11, 11])) == "three seven"
    assert digit_captions.spell(np.array([0, 0, 10, 0])) == "zero zero ? zero"


@pytest.mark.usefixtures("promoting")
def test_digits_are_captioned(monkeypatch, tmp_path, capsys):
    for name, value in {"MOST": 1, "CHANNELS": 8, "TESTED": 100, "LEARNING_RATE": 8e-3}.items():
        monkeypatch.setattr(digit_captions, name, value)
    picture = tmp_path / "new" / "digits.png"
    with jax.enable_x64(False):
        words = ["--steps", "200", "--picture", str(picture)]
        (record,) = digit_captions.run(digit_captions.parse(words))
    assert record["task"] == "captions of 8 x 8 digits"
    assert min(record["test"], record["beam"]) > 0.4  # one in ten by chance
    assert picture.stat().st_size > 5_000
    assert "100 test images" in capsys.readouterr().out
