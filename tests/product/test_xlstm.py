"""An xLSTM as a language model learns what takes a memory, and goes on token by token."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.models import LanguageModel, batch_of_states, language_loss, xlstm_layers

VOCABULARY, B, T = 5, 8, 16
OWN = rnnjax.Auto((rnnjax.Fused(), rnnjax.engines.Chunked(size=16), rnnjax.Scan()))


def streams(seed):
    """Four random tokens, and the same again until the end: from the fifth on, each is the one four steps before."""
    motif = np.random.default_rng(seed).integers(VOCABULARY, size=(B, 4))
    tokens = np.tile(motif, (1, T // 4 + 1))[:, : T + 1]
    return tokens[:, :-1], tokens[:, 1:], np.zeros((B, T), bool)


@pytest.mark.usefixtures("as_it_comes")
def test_a_language_model_of_both_blocks_learns_to_repeat():
    key = jax.random.key(0)
    model = LanguageModel(VOCABULARY, xlstm_layers(16, 2, slstm_at=[1], heads=2, key=key), key=key)
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    optimiser = optax.adam(1e-2)

    def step(carry, batch):
        weights, state = carry

        def loss(weights):
            model = eqx.combine(weights, static)
            return language_loss(model, batch_of_states(model, B), batch, None, engine=OWN)[0]

        value, gradient = jax.value_and_grad(loss)(weights)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(weights, updates), state), value

    batches = jax.tree.map(lambda *each: jnp.asarray(np.stack(each)), *map(streams, range(250)))
    (weights, _), losses = jax.jit(partial(jax.lax.scan, step))((weights, optimiser.init(weights)), batches)
    assert losses[0] > 1.2
    assert losses[-10:].mean() < 0.55  # three of sixteen tokens are random: 0.30 nats at best
    trained = eqx.combine(weights, static)
    tokens = streams(1000)[0][0]

    @jax.jit
    def both_ways(tokens):
        whole = trained.logits(trained.initial(), tokens, engine=OWN)[1]
        return whole, jax.lax.scan(lambda *given: trained.step(*given), trained.initial(), tokens)[1]

    whole, served = map(np.asarray, both_ways(tokens))
    np.testing.assert_allclose(served, whole, rtol=0, atol=1e-4)
    assert (np.argmax(whole[3:-1], 1) == tokens[4:]).mean() > 0.8
