"""The equations of RWKV-6, RWKV-7 and Mamba in NumPy float64, step after step, written from the papers.

States are lists of NumPy arrays, in the order of the leaves of the network's state.
"""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from oracle import float64, sigmoid

from rnnjax import Stack, networks

Vector = np.ndarray
State = list[np.ndarray]


def run(network: Any, state: Any, xs: Any) -> tuple[State, Any]:
    """The leaves of the last state, and the outputs over time."""
    plain = jax.tree.map(lambda leaf: float64(leaf) if eqx.is_inexact_array(leaf) else leaf, network)
    leaves, ys = [float64(leaf) for leaf in jax.tree.leaves(state)], []
    T = len(jax.tree.leaves(xs)[0])
    for t in range(T):
        leaves, y = step(plain, leaves, jax.tree.map(lambda leaf, t=t: float64(leaf[t]), xs))
        ys.append(y)
    return leaves, jax.tree.map(lambda *steps: np.stack(steps), *ys)


def step(network: Any, state: State, x: Any) -> tuple[State, Any]:
    return STEPS[type(network)](network, state, x)


def silu(a: Vector) -> Vector:
    return a * sigmoid(a)


def layer_norm(norm: Any, x: Vector, groups: int = 1) -> Vector:
    parts = x.reshape(groups, -1)
    centred = parts - parts.mean(1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(1, keepdims=True) + norm.eps)
    return unit.reshape(-1) * norm.weight + norm.bias


def lerp(x: Vector, before: Vector, share: Vector) -> Vector:
    return (1 - share) * x + share * before


def heads(network: Any, *vectors: Vector) -> list[Vector]:
    return [vector.reshape(network.recurrence.heads, -1) for vector in vectors]


def rwkv6(network: networks.RWKV6, state: State, x: Vector) -> tuple[State, Vector]:
    (before,), S = state
    low = np.tanh(lerp(x, before, network.mix.x) @ network.mix_down).reshape(5, -1)
    shares = [m + part @ B for m, part, B in zip(network.mix[1:], low, network.mix_up, strict=True)]
    x_w, x_k, x_v, x_r, x_g = (lerp(x, before, share) for share in shares)
    lora = network.decay
    w = np.exp(-np.exp(lora.offset + np.tanh(x_w @ lora.down) @ lora.up))
    k, v, r = x_k @ network.key_weight, x_v @ network.value_weight, x_r @ network.receptance_weight
    reads, states = [], []
    for w_h, k_h, v_h, r_h, u_h, S_h in zip(*heads(network, w, k, v, r, network.bonus), S, strict=True):
        written = np.outer(k_h, v_h)
        reads.append(r_h @ (S_h + np.diag(u_h) @ written))
        states.append(np.diag(w_h) @ S_h + written)
    normed = layer_norm(network.norm, np.concatenate(reads), network.recurrence.heads)
    return [x[None], np.stack(states)], (silu(x_g @ network.gate_weight) * normed) @ network.output_weight


def rwkv7(network: networks.RWKV7, state: State, x: Any) -> tuple[State, Any]:
    x, first = x if isinstance(x, tuple) else (x, None)
    (before,), S = state
    x_r, x_w, x_k, x_v, x_a, x_g = (lerp(x, before, share) for share in network.mix)
    r, k, v = x_r @ network.receptance_weight, x_k @ network.key_weight, x_v @ network.value_weight
    w = np.exp(-np.exp(-0.5) * sigmoid(network.decay.offset + np.tanh(x_w @ network.decay.down) @ network.decay.up))
    if first is None:
        first = v
    else:
        v = lerp(v, first, sigmoid(network.value_gate.offset + x_v @ network.value_gate.down @ network.value_gate.up))
    a = sigmoid(network.rate.offset + x_a @ network.rate.down @ network.rate.up)
    gate = sigmoid(x_g @ network.gate.down) @ network.gate.up
    removed, k = k * network.removal_scale, lerp(k, k * a, network.rate_share)
    reads, extra, states = [], [], []
    rows = heads(network, w, removed, k, v, r, a, network.bonus)
    for w_h, n_h, k_h, v_h, r_h, a_h, u_h, S_h in zip(*rows, S, strict=True):
        n_h = n_h / np.linalg.norm(n_h)
        change = np.diag(w_h) - np.outer(n_h, a_h * n_h)  # of rows: the paper's S is the transpose
        after = (S_h.T @ change + np.outer(v_h, k_h)).T
        reads.append(after.T @ r_h)
        extra.append((r_h * u_h * k_h).sum() * v_h)
        states.append(after)
    normed = layer_norm(network.norm, np.concatenate(reads), network.recurrence.heads)
    y = ((normed + np.concatenate(extra)) * gate) @ network.output_weight
    return [x[None], np.stack(states)], (y, first) if network.gives_value else y


def channel_mixing(network: networks.ChannelMixing, state: State, x: Vector) -> tuple[State, Vector]:
    ((before,),) = state
    k = np.maximum(lerp(x, before, network.key_mix) @ network.key_weight, 0) ** 2
    y = k @ network.value_weight
    if network.receptance_weight is not None:
        y = sigmoid(lerp(x, before, network.receptance_mix) @ network.receptance_weight) * y
    return [x[None]], y


def block(network: networks.RWKVBlock, state: State, x: Any) -> tuple[State, Any]:
    x, first = x if isinstance(x, tuple) else (x, None)
    inner = layer_norm(network.time_norm, x)
    time, made = step(network.time_mixing, state[:2], inner if first is None else (inner, first))
    added, first = made if isinstance(made, tuple) else (made, None)
    x = x + added
    channel, added = step(network.channel_mixing, state[2:], layer_norm(network.channel_norm, x))
    return time + channel, x + added if first is None else (x + added, first)


def stack(network: Stack, state: State, x: Vector) -> tuple[State, Vector]:
    """Of blocks between two layer normalisations."""
    first, *blocks, last = network.layers
    x, states = layer_norm(first.function, x), []
    for number, layer in enumerate(blocks):
        after, x = step(layer, state[3 * number : 3 * number + 3], x)
        states += after
    return states, layer_norm(last.function, x)


def mamba(network: networks.Mamba, state: State, x: Vector) -> tuple[State, Vector]:
    inputs, h = state
    inner, z = np.split(x @ network.input_weight, 2)
    window = np.concatenate([inputs, inner[None]])
    c = silu((window[::-1] * network.convolution.weight).sum(0) + network.convolution.bias)
    cell = network.recurrence
    rank, states = cell.step_weight.shape[0], cell.log_rate.shape[1]
    low, B, C = np.split(c @ cell.selection_weight, [rank, rank + states])
    delta = np.logaddexp(0, low @ cell.step_weight + cell.step_bias)
    h = np.exp(-np.exp(cell.log_rate) * delta[:, None]) * h.reshape(-1, states) + np.outer(delta * c, B)
    y = (h @ C + cell.skip * c) * silu(z)
    return [window[1:], h.reshape(-1)], y @ network.output_weight


STEPS = {
    networks.RWKV6: rwkv6,
    networks.RWKV7: rwkv7,
    networks.ChannelMixing: channel_mixing,
    networks.RWKVBlock: block,
    networks.Mamba: mamba,
    Stack: stack,
}
