"""The activations that ONNX's RNN, LSTM and GRU have by name, as functions, and back."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...cells.clipped import clip_first
from ...cells.elman import linear
from ...named import Named


class Activation(NamedTuple):
    """An activation by its name in ONNX, and its parameters alpha and beta as far as it has them."""

    name: str
    parameters: tuple[float, ...] = ()


class Form(NamedTuple):
    """The function of a name, its keywords for alpha and beta, and their defaults, None where runtimes differ."""

    function: Callable[..., Array]
    keywords: tuple[str, ...] = ()
    defaults: tuple[float, ...] | None = None


def affine(x: Array, alpha: float, beta: float) -> Array:
    """alpha x + beta."""
    return alpha * x + beta


def scaled_tanh(x: Array, alpha: float, beta: float) -> Array:
    """alpha tanh(beta x)."""
    return alpha * jnp.tanh(beta * x)


def hard_sigmoid(x: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """alpha x + beta, from 0 to 1."""
    return jnp.clip(alpha * x + beta, 0.0, 1.0)


def thresholded_relu(x: Array, alpha: float) -> Array:
    """x above alpha, else 0."""
    return jnp.where(x > alpha, x, jnp.zeros_like(x))


FORMS = {
    "Relu": Form(jax.nn.relu),
    "Tanh": Form(jnp.tanh),
    "Sigmoid": Form(jax.nn.sigmoid),
    "Softsign": Form(jax.nn.soft_sign),
    "Softplus": Form(jax.nn.softplus),
    "LeakyRelu": Form(jax.nn.leaky_relu, ("negative_slope",), (0.01,)),
    "Elu": Form(jax.nn.elu, ("alpha",), (1.0,)),
    "HardSigmoid": Form(hard_sigmoid, ("alpha", "beta"), (0.2, 0.5)),
    "ThresholdedRelu": Form(thresholded_relu, ("alpha",)),
    "ScaledTanh": Form(scaled_tanh, ("alpha", "beta")),
    "Affine": Form(affine, ("alpha", "beta")),
}
UNCHANGED = Activation("Affine", (1.0, 0.0))
SPECIAL = (  # functions that are an activation of ONNX with parameters of their own
    (linear, UNCHANGED),
    (jax.nn.identity, UNCHANGED),
    (jax.nn.hard_sigmoid, Activation("HardSigmoid", (1 / 6, 0.5))),
)


def function_of(activation: Activation) -> Callable[[Array], Array]:
    """The function that an activation names."""
    form = FORMS[activation.name]
    if activation == UNCHANGED:
        return linear
    if not form.keywords or activation.parameters == form.defaults:
        return form.function
    return partial(form.function, **dict(zip(form.keywords, activation.parameters, strict=True)))


def activation_of(function: Callable[[Array], Array]) -> Activation | None:
    """The activation that a function is; None for any function that ONNX has no name for."""
    plain, keywords = _unwrapped(function), {}
    if isinstance(plain, partial) and not plain.args:
        plain, keywords = _unwrapped(plain.func), plain.keywords
    for special, activation in SPECIAL:
        if plain == special and not keywords:
            return activation
    for name, form in FORMS.items():
        if plain == form.function and set(keywords) <= set(form.keywords):
            values = dict(zip(form.keywords, form.defaults or (), strict=False)) | keywords
            return Activation(name, tuple(float(values[keyword]) for keyword in form.keywords))
    return None


def unclipped(function: Callable[[Array], Array]) -> tuple[Callable[[Array], Array], float | None]:
    """The activation behind `rnnjax.cells.clipped`, and its bound; of any other, itself and None."""
    plain = _unwrapped(function)
    if isinstance(plain, partial) and plain.func is clip_first:
        activation, bound = plain.args
        return activation, bound
    return function, None


def consume(names: list[str], alphas: list[float], betas: list[float]) -> list[Activation]:
    """The activations of a node, whose alphas and betas belong to those that have any, in order."""
    rest = iter(alphas), iter(betas)
    activations = [Activation(name, _parameters(name, rest)) for name in map(_canonical, names)]
    left = [value for values in rest for value in values]
    if left:
        raise ValueError(
            f"activations: expected one activation_alpha and activation_beta for each of {names} that has one, "
            f"got {left} beyond these. Drop them from the node"
        )
    return activations


def _canonical(name: str) -> str:
    """The name as ONNX spells it: case does not count in its files."""
    found = {known.lower(): known for known in FORMS}.get(name.lower())
    if found is None:
        raise ValueError(f"activations: expected one of {', '.join(FORMS)}, got {name!r}. Use one of these in the node")
    return found


def _parameters(name: str, rest: tuple[Iterator[float], Iterator[float]]) -> tuple[float, ...]:
    form = FORMS[name]
    defaults = form.defaults or (None,) * len(form.keywords)
    values = [next(values, default) for values, default in zip(rest, defaults, strict=False)]
    known = tuple(float(value) for value in values if value is not None)
    if len(known) < len(form.keywords):
        raise ValueError(
            f"activations: expected the activation_alpha, and what else {name} needs, got {list(known)}: "
            "its defaults differ from runtime to runtime. Give them in the node"
        )
    return known


def _unwrapped(function: Any) -> Any:
    return function.function if isinstance(function, Named) else function
