"""`Checkpointed` takes less memory than `Scan`: that is what it is for."""

import equinox as eqx
import grid
import jax

import rnnjax


def temporary_memory(engine: rnnjax.AbstractEngine, steps: int) -> int:
    """Bytes of the gradient of a sequence, beside its arguments and results."""

    def loss(cell: rnnjax.LSTM, xs: jax.Array) -> jax.Array:
        return rnnjax.unroll(cell, None, xs, engine=engine)[0].h.sum()

    cell = grid.build("lstm")
    xs = grid.inputs(steps)
    compiled = eqx.filter_jit(eqx.filter_grad(loss)).lower(cell, xs).compile().compiled
    return compiled.memory_analysis().temp_size_in_bytes


def test_checkpointed_keeps_few_states():
    """With 4,096 steps in segments of 64, some 128 states are kept at a time."""
    scan, checkpointed = (temporary_memory(engine, 4096) for engine in (rnnjax.Scan(), rnnjax.Checkpointed()))
    assert checkpointed < 0.1 * scan
