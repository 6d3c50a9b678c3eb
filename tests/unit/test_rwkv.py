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
    "rwkv6 layers": lambda **options: networks.rwkv6_layers(H, 1, learn_initial=True, **SMALL, **options),
    "rwkv7 layers": lambda **options: networks.rwkv7_layers(H, 2, gate_rank=2, learn_initial=True, **SMALL, **options),
    "mamba": lambda **options: networks.Mamba(H, states=3, learn_initial=True, key=KEY, **options),
}
CHUNKED, BY_STEPS = Chunked(4), rnnjax.Scan()
QUICK = {"rwkv6 layers": CHUNKED, "rwkv7 with values": CHUNKED, "mamba": BY_STEPS}
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


# Initial values


def known(network: Any) -> Any:
    """The network with arrays of NumPy, whose arithmetic compiles nothing."""
    return jax.tree.map(np.asarray, network)


def test_initial_values_of_rwkv7_are_those_of_the_published_code():
    size, head, layer, layers = 12, 4, 1, 3
    network = known(networks.RWKV7(size, key=KEY, head_size=head, layer=layer, layers=layers, takes_value=True))
    for n in range(size):
        share = lambda power, n=n: 1 - (n / size) ** (power * (1 - layer / layers))  # noqa: E731
        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        for name, power in powers.items():
            np.testing.assert_allclose(getattr(network.mix, name)[n], share(power), rtol=0, atol=1e-6)
        linear = n / (size - 1) - 0.5
        zigzag = (n % head - (head - 1) / 2) / ((head - 1) / 2)
        zigzag *= abs(zigzag)
        decay = -6 + 6 * (n / (size - 1)) ** (1 + (layer / (layers - 1)) ** 0.3) + 0.5 + 2.5 * zigzag
        expected = [decay, -0.19 + 0.3 * zigzag + 0.4 * linear, 0.73 - 0.4 * linear, 0.71 - 0.1 * linear, 1.02, -0.04]
        offsets = [low.offset[n] for low in (network.decay, network.rate, network.value_gate)]
        got = [*offsets, network.removal_scale[n], network.rate_share[n], network.bonus[n]]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(network.norm.weight, ((layer + 1) / layers) ** 0.7, rtol=1e-6)
    assert network.norm.eps == 64e-5
    assert [low.down.shape[1] for low in (network.decay, network.rate, network.value_gate, network.gate)] == [32] * 4
    assert not any(np.any(low.down) for low in (network.decay, network.rate, network.value_gate, network.gate))
    for weight, gain in [(network.receptance_weight, 1), (network.key_weight, 0.1), (network.value_weight, 1)]:
        np.testing.assert_allclose(weight.T @ weight, gain**2 * np.eye(size), rtol=0, atol=1e-5)
    up = network.gate.up  # [32, 12]: as many rows of norm 0.1 as columns of norm 0.163
    np.testing.assert_allclose(up.T @ up, 0.1**2 * 32 / 12 * np.eye(size), rtol=0, atol=1e-6)
    assert not np.any(network.output_weight)


def test_ranks_of_rwkv7_grow_with_the_root_of_the_size():
    network = jax.eval_shape(lambda: networks.RWKV7(2048, key=KEY, takes_value=True))
    ranks = [low.down.shape[1] for low in (network.decay, network.rate, network.value_gate, network.gate)]
    assert ranks == [128, 128, 64, 224]


def test_initial_values_of_rwkv6_are_those_of_the_published_code():
    size, layer, layers = 12, 1, 3
    network = known(networks.RWKV6(size, key=KEY, head_size=4, layer=layer, layers=layers))
    below, above = layer / (layers - 1), 1 - layer / layers
    for n in range(size):
        full, half = (1 - (n / size) ** (power * above) for power in (1.0, 0.5))
        got = [share[n] for share in network.mix]
        np.testing.assert_allclose(got, [full, full, full, full - 0.3 * below, half, half], rtol=0, atol=1e-6)
        decay = -6 + 5 * (n / (size - 1)) ** (0.7 + 1.3 * below)
        u = below * (1 - n / (size - 1)) + ((n + 1) % 3 - 1) * 0.1
        np.testing.assert_allclose([network.decay.offset[n], network.bonus[n]], [decay, u], rtol=0, atol=1e-6)
    assert network.mix_up.shape == (5, 32, size)
    assert network.decay.up.shape == (64, size)
    for up in (network.mix_up, network.decay.up):
        assert 0.009 < np.abs(up).max() <= 0.01
    for weight, gain in [(network.receptance_weight, 1), (network.key_weight, 0.1), (network.gate_weight, 0.1)]:
        np.testing.assert_allclose(weight.T @ weight, gain**2 * np.eye(size), rtol=0, atol=1e-5)
    assert not any(np.any(zero) for zero in (network.mix_down, network.decay.down, network.output_weight))


@pytest.mark.parametrize(("gated", "power", "inner"), [(False, 4, 256), (True, 3, 224)])
def test_initial_values_of_the_channel_mixing_are_those_of_the_published_code(gated, power, inner):
    network = known(networks.ChannelMixing(64, key=KEY, gated=gated, layer=1, layers=3))
    expected = [1 - (n / 64) ** ((1 - 1 / 3) ** power) for n in range(64)]
    np.testing.assert_allclose(network.key_mix, expected, rtol=0, atol=1e-6)
    weight = network.key_weight
    np.testing.assert_allclose(weight @ weight.T, np.eye(64), rtol=0, atol=1e-5)
    assert weight.shape == (64, inner)
    assert not np.any(network.value_weight)
    assert (network.receptance_weight is None) == (not gated)


def test_initial_values_of_mamba_are_those_of_the_published_code():
    network = known(networks.Mamba(40, key=KEY, layers=4))
    cell, E = network.recurrence, 80
    np.testing.assert_allclose(np.exp(cell.log_rate), np.tile(np.arange(1, 17), (E, 1)), rtol=1e-6)
    assert network.input_weight.shape == (40, 2 * E)
    assert cell.step_weight.shape == (3, E)
    assert network.convolution.weight.shape == (4, E)
    bounds = {40: network.input_weight, 4: network.convolution.weight, 3: cell.step_weight}
    bounds |= {E: cell.selection_weight, E * 4: network.output_weight}  # the last one divided by the root of the layers
    for inputs, weight in bounds.items():
        assert 0.95 * inputs**-0.5 < np.abs(weight).max() <= inputs**-0.5
    assert 0.45 < np.abs(network.convolution.bias).max() <= 0.5
    np.testing.assert_array_equal(cell.skip, np.ones(E))


# Narrow weights


@pytest.mark.parametrize("name", ["rwkv6", "rwkv7 with values", "mamba"])
def test_states_of_narrow_weights_are_wide(name):
    _, state, xs = arguments_of(name)
    network = LAYERS[name](dtype=jnp.bfloat16)
    network = random_like(network, 1, 0.5)
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), xs)
    last, ys = eqx.filter_jit(rnnjax.unroll)(network, None, narrow)
    inputs, carried = jax.tree.leaves(last)
    assert (inputs.dtype, carried.dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(ys)} == {jnp.dtype("bfloat16")}
    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape) + np.asarray(leaf, "float64"), network.initial())
    expected_last, expected = layer_oracle.run(network, start, narrow)
    grid.assert_close((jax.tree.leaves(last), ys), (expected_last, expected), "bfloat16")
    del state


# Models


@lru_cache
def language_model() -> Any:
    network = networks.rwkv7_layers(H, 2, **SMALL)
    return random_like(models.LanguageModel(9, network, key=KEY, tied=True), 5, 0.5)


def test_a_language_model_of_rwkv7_gives_the_same_logits_token_by_token():
    model, tokens = language_model(), np.asarray([3, 1, 4, 1, 5])
    state = model.initial()
    _, whole = eqx.filter_jit(model.logits)(state, tokens)
    step = eqx.filter_jit(model.step)
    for token, expected in zip(tokens, whole, strict=True):
        state, logits = step(state, token)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert whole.std() > 0.1


def test_weight_decay_by_the_mask_of_the_docstring():
    mask = jax.tree_util.tree_map_with_path(
        lambda path, leaf: path[-1].name.endswith("weight") and leaf.ndim > 1, language_model()
    )
    decayed = {path[-1].name for path, leaf in jax.tree_util.tree_leaves_with_path(mask) if leaf}
    assert decayed == {"weight", *(f"{name}_weight" for name in ("receptance", "key", "value", "output"))}
    assert not any(jax.tree.leaves(mask.network.layers[0]))  # a normalisation
    assert mask.embedding.weight


# Errors

ERRORS = [
    pytest.param(
        partial(networks.RWKV7, 10, key=KEY, head_size=4), ValueError, ["head_size", "hidden_size=10", "12"], id="heads"
    ),
    pytest.param(
        partial(networks.RWKV6, 10, key=KEY), ValueError, ["head_size", "hidden_size=10", "64"], id="default_heads"
    ),
    pytest.param(
        partial(networks.RWKV6, H, **SMALL, layer=2, layers=2), ValueError, ["layer", "0 to 1", "2"], id="layer"
    ),
    pytest.param(partial(networks.ChannelMixing, H, key=KEY, layer=-1), ValueError, ["layer", "-1"], id="negative"),
    pytest.param(partial(networks.rwkv7_layers, H, 0, **SMALL), ValueError, ["layers", "positive", "0"], id="layers"),
    pytest.param(partial(networks.RWKV7, H, **SMALL, gate_rank=0), ValueError, ["gate_rank", "0"], id="rank"),
    pytest.param(partial(networks.ChannelMixing, H, key=KEY, inner_size=0), ValueError, ["inner_size"], id="inner"),
    pytest.param(partial(networks.Mamba, H, key=KEY, expand=0), ValueError, ["expand", "0"], id="expand"),
    pytest.param(partial(networks.Mamba, H, key=KEY, dtype=jnp.int32), TypeError, ["dtype", "int32"], id="dtype"),
    pytest.param(
        lambda: networks.RWKVBlock(networks.RWKV6(H, **SMALL), networks.ChannelMixing(2 * H, key=KEY)),
        ValueError,
        ["channel_mixing", "f32[6]", "f32[12]"],
        id="block",
    ),
    pytest.param(
        lambda: networks.RWKVBlock(networks.RWKV6(H, **SMALL), jnp.tanh),
        TypeError,
        ["channel_mixing", "a cell or a network"],
        id="no_layer",
    ),
    pytest.param(
        lambda: rnnjax.unroll(networks.RWKV7(H, **SMALL, takes_value=True), None, np.zeros((T, H), "float32")),
        ValueError,
        ["xs", "(f32[6], f32[6])", "RWKV7"],
        id="not_a_pair",
    ),
]


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(("call", "kind", "fragments"), ERRORS)
def test_errors_name_the_argument(call, kind, fragments):
    assert_error(call, kind, fragments)


def test_the_layers_of_a_network_have_no_option_that_depends_on_their_number():
    with pytest.raises(TypeError, match="unexpected keyword argument 'takes_value'"):
        networks.rwkv7_layers(H, 2, **SMALL, takes_value=True)  # type: ignore[call-arg]
