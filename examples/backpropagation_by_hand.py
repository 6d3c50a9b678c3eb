"""The textbook's linear network that counts ones: its gradient by hand beside jax.grad's, and what it learns.

    s_k = s_{k-1} w_rec + x_k w_x,        L = mean over sequences of (s_T - number of ones)^2

Backpropagation through time by hand: with g_T = 2 (s_T - t) / B and g_{k-1} = g_k w_rec,

    dL/dw_x = sum_k g_k x_k,        dL/dw_rec = sum_k g_k s_{k-1}

It counts exactly when w_rec = w_x = 1. The gradient by w_rec holds powers of w_rec up to T: it explodes above 1 and
vanishes below, so the steps are resilient ones, which follow its sign alone (Riedmiller & Braun 1993).
"""

import argparse
from typing import NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import command_line
from jaxtyping import Array

import rnnjax

B, T, STEPS = 30, 20, 3_000


class Weights(NamedTuple):
    """The two numbers of the network."""

    w_rec: Array
    w_x: Array


def build(weights: Weights) -> rnnjax.Elman:
    """The network as a cell of one unit: Elman, linear, without a bias."""
    cell = rnnjax.Elman(1, 1, key=jax.random.key(0), activation=rnnjax.cells.linear, bias=False)
    shaped = weights.w_x.reshape(1, 1), weights.w_rec.reshape(1, 1)
    return eqx.tree_at(lambda cell: (cell.input_weight, cell.recurrent_weight), cell, shaped)


def loss(weights: Weights, xs: Array) -> Array:
    """The mean squared error of the last state of each sequence, [B, T]."""
    cell = build(weights)
    last, _ = jax.vmap(lambda xs: rnnjax.unroll(cell, None, xs[:, None]))(xs)
    return jnp.mean((last.h[:, 0] - xs.sum(1)) ** 2)


def gradient_by_hand(w_rec: float, w_x: float, xs: np.ndarray) -> tuple[float, float]:
    """The equations above, in NumPy."""
    states = [np.zeros(len(xs))]
    for k in range(xs.shape[1]):
        states.append(states[-1] * w_rec + xs[:, k] * w_x)
    g = 2 * (states[-1] - xs.sum(1)) / len(xs)
    by_rec = by_x = 0.0
    for k in reversed(range(xs.shape[1])):
        by_x += (g * xs[:, k]).sum()
        by_rec += (g * states[k]).sum()
        g = g * w_rec
    return float(by_rec), float(by_x)


def learn(weights: Weights, xs: Array) -> Weights:
    """Resilient backpropagation from `weights`."""
    optimiser = optax.rprop(1e-3, eta_minus=0.5, eta_plus=1.2, min_step_size=1e-9, max_step_size=0.1)

    def step(carry, _):
        weights, state = carry
        updates, state = optimiser.update(jax.grad(loss)(weights, xs), state, weights)
        return (cast(Weights, optax.apply_updates(weights, updates)), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, optimiser.init(weights)), length=STEPS)
    return weights


parse = command_line(__doc__)


def run(options: argparse.Namespace) -> None:
    """Show the two gradients, learn, and count a sequence."""
    del options
    xs = np.random.default_rng(0).integers(0, 2, (B, T)).astype(np.float32)
    start = Weights(jnp.asarray(1.2), jnp.asarray(-1.5))
    by_hand, by_jax = gradient_by_hand(1.2, -1.5, xs), jax.grad(loss)(start, jnp.asarray(xs))
    print("gradient at w_rec = 1.2, w_x = -1.5      by hand       jax.grad")
    for name, hand, automatic in zip(("w_rec", "w_x"), by_hand, by_jax, strict=True):
        print(f"  {name:<8} {hand:36.4f} {float(automatic):14.4f}")
    learned = jax.jit(learn)(start, jnp.asarray(xs))
    print(f"learned  w_rec = {float(learned.w_rec):.5f}   w_x = {float(learned.w_x):.5f}")
    last, _ = rnnjax.unroll(build(learned), None, jnp.asarray(xs[0, :, None]))
    print(
        f"{''.join(str(int(x)) for x in xs[0])} holds {xs[0].sum():.0f} ones; the network says {float(last.h[0]):.3f}"
    )


if __name__ == "__main__":
    run(parse())
