"""RWKV-6, RWKV-7 and Mamba against the equations of their papers, and what they are made of."""

from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import layer_oracle
import numpy as np
import pytest
from grid import KEY, assert_error

import rnnjax
from rnnjax import models, networks
from rnnjax.engines import Chunked

H, T = 6, 11
SMALL: dict[str, Any] = {"key": KEY, "head_size": 3}
LAYERS = {
    "rwkv6": lambda **options: networks.RWKV6(H, mix_rank=2, decay_rank=3, **SMALL, **options),
    "rwkv7": lambda **options: networks.RWKV7(
        H, decay_rank=2, rate_rank=3, value_rank=4, gate_rank=5, **SMALL, **options
    ),
    "rwkv7 with values": lambda **options: networks.RWKV7(
        H, takes_value=True, gives_value=True, layer=1, layers=2, learn_initial=True, **SMALL, **options
    ),
    "channel mixing": lambda **options: networks.ChannelMixing(H, inner_size=5, key=KEY, **options),
    "channel mixing, gated": lambda **options: networks.ChannelMixing(H, gated=True, key=KEY, **options),
    "rwkv6 layers": lambda **options: networks.rwkv6_layers(H, 2, learn_initial=True, **SMALL, **options),
    "rwkv7 layers": lambda **options: networks.rwkv7_layers(H, 2, gate_rank=2, learn_initial=True, **SMALL, **options),
    "mamba": lambda **options: networks.Mamba(H, states=3, learn_initial=True, key=KEY, **options),
}
CHUNKED, BY_STEPS = Chunked(4), rnnjax.Scan()
QUICK = {"rwkv6": CHUNKED, "rwkv7 with values": CHUNKED, "channel mixing, gated": BY_STEPS, "mamba": BY_STEPS}
CASES = [
    *(pytest.param(name, engine) for name, engine in QUICK.items()),
    *(pytest.param(name, BY_STEPS, marks=pytest.mark.slow) for name in LAYERS if QUICK.get(name) != BY_STEPS),
    pytest.param("mamba", rnnjax.Associative(block=3), marks=pytest.mark.slow),
    pytest.param("rwkv7 layers", CHUNKED, marks=pytest.mark.slow),
]


def random_like(tree: Any, seed: int, scale: float) -> Any:
    """Arrays like those of `tree`, of random numbers."""
    generator = np.random.default_rng(seed)
    draw = lambda leaf: (scale * generator.normal(size=leaf.shape)).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, tree)


@lru_cache
def arguments_of(name: str) -> tuple[Any, Any, Any]:
    """A network with all weights random, a random state, and inputs, which are pairs where they have to be."""
    network = LAYERS[name](dtype=jnp.dtype("float64"))
    inputs = jax.tree.map(lambda step: jax.ShapeDtypeStruct((T, *step.shape), step.dtype), network.input_type())
    return (
        random_like(network, 1, 0.5),
        random_like(jax.eval_shape(network.initial), 2, 0.5),
        random_like(inputs, 3, 1.0),
    )


@eqx.filter_jit
def values_and_gradient(arguments: Any, engine: rnnjax.AbstractEngine) -> Any:
    numbers, others = eqx.partition(arguments, eqx.is_inexact_array)

    def loss(numbers: Any) -> tuple[Any, Any]:
        made = rnnjax.unroll(*eqx.combine(numbers, others), engine=engine)
        return grid.contract(jax.tree.leaves(made)), made

    return jax.grad(loss, has_aux=True)(numbers)


def contracted(arguments: Any) -> float:
    """The loss by the equations; the same weighted sum."""
    leaves = jax.tree.leaves(layer_oracle.run(*arguments))
    weights = grid.contraction(leaves)
    return sum(float(np.sum(weight * leaf)) for weight, leaf in zip(weights, leaves, strict=True))


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_values_and_gradient_are_those_of_the_equations(name, engine):
    arguments = arguments_of(name)
    gradient, (last, ys) = values_and_gradient(arguments, engine)
    expected_last, expected = layer_oracle.run(*arguments)
    grid.assert_close((jax.tree.leaves(last), ys), (expected_last, expected))
    direction = random_like(gradient, 4, 1.0)
    along = lambda size: eqx.apply_updates(arguments, jax.tree.map(lambda d: size * d, direction))  # noqa: E731
    slope = sum(np.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose(slope, (contracted(along(1e-6)) - contracted(along(-1e-6))) / 2e-6, rtol=1e-6)
