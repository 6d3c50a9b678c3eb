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
from rnnjax import GRU, LSTM, Stack
from rnnjax.models import Bridge, Captioner, Captions, LanguageModel, beam_search, caption_loss, greedy

V, E, H, F = 6, 3, 5, 4  # tokens, features of a token, units, features of the layer
F64 = jnp.float64
START, END = 1, 2
CAPTION = np.array([START, 5, 3, 0, 4])
IMAGES = np.random.default_rng(4).normal(size=(8, 2, 3))


@lru_cache
def key() -> Any:
    with jax.ensure_compile_time_eval():  # kept beyond the program that may be the first to ask
        return jax.random.key(41)


class Look(eqx.Module):
    """Features of two kinds: a layer's of all pixels, and the pixels themselves."""

    layer: eqx.nn.Linear

    def __call__(self, image: Any) -> Any:
        return {"all": jnp.tanh(self.layer(image.reshape(-1))), "pixels": jnp.asarray(image)}


def make(dropout: float = 0.0, dtype: Any = F64) -> Captioner:
    cells = [GRU(E, H, key=key(), dtype=dtype), LSTM(H, H, key=key(), dtype=dtype)]
    language = LanguageModel(V, Stack(cells, dropout=dropout), key=key())
    features = {"all": jax.ShapeDtypeStruct((F,), F64), "pixels": jax.ShapeDtypeStruct((2, 3), F64)}
    return Captioner(Look(eqx.nn.Linear(6, F, key=key())), Bridge(features, language.initial(), key=key()), language)


def filled(model: Any) -> Any:
    """The model, or its form, with normal numbers for weights."""
    random = np.random.default_rng(3)
    draw = lambda leaf: grid.place((0.7 * random.normal(size=leaf.shape)).astype(leaf.dtype))  # noqa: E731
    with jax.ensure_compile_time_eval():
        return jax.tree.map(draw, model)


@lru_cache
def build(dropout: float = 0.0) -> Captioner:
    return filled(eqx.filter_eval_shape(make, dropout))


def by_form(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The forms of what comes out, whatever is known of what goes in."""
    return eqx.filter_eval_shape(lambda: function(*arguments, **options))


# The equations, in NumPy


def numpy_initial(model: Captioner, image: Any) -> list[Any]:
    """The state before the first token: of the GRU, and of the LSTM."""
    layer, pixels = model.encoder.layer, np.asarray(image).reshape(-1)
    affine = lambda layer, x: np.asarray(layer.weight) @ x + np.asarray(layer.bias)  # noqa: E731
    features = np.concatenate([np.tanh(affine(layer, pixels)), pixels])
    made = [np.tanh(affine(part, features)) for part in model.bridge.layers]
    return [(made[0],), (made[1], made[2])]


def numpy_step(model: Captioner, states: list[Any], token: int) -> tuple[list[Any], np.ndarray]:
    language, after = model.language, []
    x = np.asarray(language.embedding.weight)[token]
    for cell, state in zip(language.network.layers, states, strict=True):
        state, x = oracle.step(cell, state, x)
        after.append(state)
    return after, np.asarray(language.output.weight) @ x + np.asarray(language.output.bias)


def numpy_logits(model: Captioner, image: Any, caption: Any) -> np.ndarray:
    states, rows = numpy_initial(model, image), []
    for token in caption:
        states, row = numpy_step(model, states, token)
        rows.append(row)
    return np.array(rows).reshape(-1, V)


def assert_close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_logits_are_those_of_the_equations_and_so_are_those_of_a_step_at_a_time():
    @jax.jit
    @jax.vmap
    def both(image: Any) -> Any:
        step, state, mask = build().decoding(image)
        assert mask.shape == (0,)
        stepped = jax.lax.scan(lambda state, token: step(state, token)[:2], state, jnp.asarray(CAPTION))[1]
        return build().logits(image, CAPTION), stepped

    for image, logits, stepped in zip(IMAGES[:2], *map(np.asarray, both(IMAGES[:2])), strict=True):
        assert_close(logits, numpy_logits(build(), image, CAPTION))
        assert_close(stepped, logits)


def test_of_no_tokens_there_are_no_logits():
    assert by_form(build().logits, IMAGES[0], CAPTION[:0]).shape == (0, V)


def test_features_at_hand_need_no_encoder():
    language = LanguageModel(V, GRU(E, H, key=key()), key=key())
    model = Captioner(eqx.nn.Identity(), eqx.nn.Lambda(lambda features: rnnjax.Hidden(features)), language)
    features = np.linspace(-1, 1, H, dtype=np.float32)

    @jax.jit
    def both(features: Any) -> Any:
        return model.logits(features, CAPTION), language.logits(rnnjax.Hidden(features), jnp.asarray(CAPTION))[1]

    assert_close(*both(features))


# The loss

BATCH = Captions(
    IMAGES[:4],
    np.array([[START, 5, 3, END], [START, 4, END, 0], [START, END, 0, 0], [START, 0, 0, 0]]),
    np.array([4, 3, 2, 1]),
)
PADDING = np.arange(4) >= BATCH.target_length[:, None]
LITTERED = BATCH._replace(target=np.where(PADDING, 77, BATCH.target))  # with what is no token at all


@lru_cache
def differentiated_loss() -> Callable[..., Any]:
    return eqx.filter_jit(jax.value_and_grad(lambda model, batch: caption_loss(model, None, batch, None)[0]))


def loss_and_gradient(batch: Captions) -> Any:
    return jax.tree.map(np.asarray, differentiated_loss()(build(), batch))


def numpy_loss(model: Captioner) -> float:
    """The loss of the captions without their padding."""
    losses = []
    for image, target, length in zip(*BATCH, strict=True):
        logits = numpy_logits(model, image, target[: length - 1])
        normalised = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += [-row[token] for row, token in zip(normalised, target[1:length], strict=True)]
    assert len(losses) == 6
    return float(np.mean(losses))


def test_loss_and_gradient_are_those_of_the_captions_without_their_padding():
    """The gradient by central differences, along a direction in which every weight changes."""
    loss, gradient = loss_and_gradient(LITTERED)
    assert float(loss) == pytest.approx(numpy_loss(build()), rel=1e-12)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))
    direction, by = jax.tree.map(lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape), gradient), 1e-5
    moved = lambda step: jax.tree.map(lambda leaf, along: np.asarray(leaf) + step * along, build(), direction)  # noqa: E731
    along = sum(jax.tree.leaves(jax.tree.map(lambda leaf, along: np.sum(leaf * along), gradient, direction)))
    assert along == pytest.approx((numpy_loss(moved(by)) - numpy_loss(moved(-by))) / (2 * by), rel=1e-7)


@pytest.mark.slow
def test_the_gradient_is_to_the_last_bits_that_of_the_captions_without_their_padding():
    def one_by_one(model: Captioner) -> Any:
        said = []
        for image, target, length in zip(*BATCH, strict=True):
            logits = model.logits(image, target[: length - 1])
            said += [jax.nn.log_softmax(row)[token] for row, token in zip(logits, target[1:length], strict=True)]
        return -jnp.stack(said).mean()

    jax.tree.map(assert_close, loss_and_gradient(LITTERED)[1], jax.jit(jax.grad(one_by_one))(build()))


def test_loss_of_no_tokens_is_zero():
    loss, gradient = loss_and_gradient(BATCH._replace(target_length=np.array([1, 0, 1, 0])))
    assert loss == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_what_is_traced_is_an_error_when_run():
    bad = np.where(np.arange(4)[:, None, None] == 3, np.nan, BATCH.image)
    with pytest.raises(eqx.EquinoxRuntimeError, match="image: expected features that are finite"):
        loss_and_gradient(BATCH._replace(image=bad))
    with pytest.raises(eqx.EquinoxRuntimeError, match="target: expected tokens from 0 to 5"):
        loss_and_gradient(BATCH._replace(target=np.where(BATCH.target == 4, V, BATCH.target)))


def losses_of_two_alike(key: Any) -> list[float]:
    """Of two captions that are alike, under dropout, the loss where one is asked for, and where the other is."""
    alike = jax.tree.map(lambda leaf: np.repeat(leaf[:1], 2, 0), BATCH)
    lengths = [alike.target_length * (np.arange(2) == one) for one in range(2)]
    lose = jax.jit(lambda batch: caption_loss(build(0.5), None, batch, key)[0])
    return [float(lose(alike._replace(target_length=length))) for length in lengths]


def test_dropout_differs_between_captions():
    first, second = losses_of_two_alike(key())
    assert not np.isclose(first, second)


@pytest.mark.slow
def test_dropout_ends_with_the_key():
    first, second = losses_of_two_alike(None)
    assert first == second


# Search

OPTIONS: dict[str, Any] = {"start": START, "end": END, "max_length": 6}


def captions(model: Captioner, images: Any, *widths: int) -> Any:
    """What greedy says of each image, and beams of these widths."""

    def one(model: Captioner, image: Any) -> Any:
        step, state, mask = model.decoding(image)
        beams = [beam_search(step, state, width=width, mask=mask, **OPTIONS) for width in widths]
        return greedy(step, state, **OPTIONS), *beams

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one, (None, 0)))(model, images))


def test_greedy_says_the_likeliest_and_a_beam_of_one_is_greedy():
    likeliest, narrow = captions(build(), IMAGES, 1)
    jax.tree.map(assert_close, narrow, likeliest)
    for image, tokens in zip(IMAGES, likeliest.tokens.tolist(), strict=True):
        states, token, said = numpy_initial(build(), image), START, []
        while len(said) < 6 and END not in said:
            states, row = numpy_step(build(), states, token)
            token = int(row.argmax())
            said.append(token)
        assert tokens == said + [END] * (6 - len(said))
    assert len({tuple(tokens) for tokens in likeliest.tokens.tolist()}) > 1


@pytest.mark.slow
def test_a_wide_beam_seldom_finds_less_than_greedy():
    likeliest, wide = captions(build(), IMAGES, 3)
    assert (wide.score >= likeliest.score - 1e-12).mean() > 0.7


# Learning


@pytest.mark.slow
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
    language = LanguageModel(V, GRU(8, 16, key=key()), key=key())
    bridge = Bridge(jax.ShapeDtypeStruct((3,), np.float32), jax.eval_shape(language.initial), key=key())
    model = Captioner(eqx.nn.Identity(), bridge, language)
    options = {"steps": 150, "key": key(), "progress": False}
    fitted = rnnjax.training.fit(model, caption_loss, lambda step: batch, optax.adam(0.03), **options).model  # noqa: ARG005
    (likeliest,) = captions(fitted, batch.image)
    np.testing.assert_array_equal(likeliest.tokens[:, :4], target[:, 1:])


# Misuse


def say(image: Any = IMAGES[0], target: Any = CAPTION, **parts: Any) -> Any:
    model = build()
    return Captioner(**(vars(model) | parts)).logits(image, target)


def changed(values: np.ndarray, place: Any, value: Any) -> np.ndarray:
    """The values, but for one."""
    values = values.copy()
    values[place] = value
    return values


def made_from(state: Any) -> dict[str, Callable]:
    return {"bridge": lambda features: state}  # noqa: ARG005


BAD = changed(IMAGES[0], (1, 2), np.nan), changed(IMAGES[0], (0, 0), -np.inf)
MISUSES = {
    "nan": (lambda: say(BAD[0], encoder=jnp.asarray), ValueError, ["image", "finite", "weights of the encoder"]),
    "infinity": (lambda: say(BAD[1], encoder=jnp.asarray), ValueError, ["image", "finite"]),
    "features": (lambda: by_form(say, encoder=jnp.ravel), ValueError, ["encoded", "10 numbers in all", "f64[6]"]),
    "batch": (lambda: by_form(say, IMAGES, encoder=jnp.ravel), ValueError, ["encoded", "f64[48]", "vmap"]),
    "state": (
        lambda: by_form(say, **made_from((np.zeros(H),))),
        ValueError,
        ["bridge", "language model", "LSTMState"],
    ),
    "unknown": (lambda: say(target=changed(CAPTION, 1, V)), ValueError, ["target", "from 0 to 5", "got 6"]),
    "negative": (lambda: say(target=changed(CAPTION, 1, -1)), ValueError, ["target", "from 0 to 5", "got -1"]),
    "floating": (lambda: by_form(say, target=CAPTION.astype(float)), TypeError, ["target", "integers"]),
    "captions": (lambda: by_form(say, target=CAPTION[None]), ValueError, ["target", "one sequence", "vmap"]),
}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(("call", "kind", "fragments"), MISUSES.values(), ids=MISUSES)
def test_error_names_what_was_expected_and_what_came(call, kind, fragments):
    grid.assert_error(call, kind, fragments)


def test_a_model_of_16_bits_scores_in_32():
    model = eqx.filter_eval_shape(make, dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.language)} == {"bfloat16"}
    assert by_form(filled(model).logits, IMAGES[0], CAPTION).dtype == jnp.float32


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


@pytest.mark.slow
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
