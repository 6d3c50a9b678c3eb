"""Every law for a cell of each kind, for every network and every engine; and the one that binds them, for all pairs.

`law_everything_composes` says that an engine equals `Scan` with lengths, resets and reverse at once. It holds for every
cell under every engine, so what the other laws find of a cell under one engine they find of it under all; and what
they find of one cell, of those that `unroll` treats like it. SRU is one more: its output is not linear in its input.
Of engines that take the steps of `Scan` in a way of their own, or solve for all, a cell for each way to be different
will do; and ConvLSTM does for ConvGRU.
"""

from functools import partial

import equinox as eqx
import grid
import laws
import pytest

import rnnjax

ENGINES = {"auto": rnnjax.Auto(), **grid.ENGINES}
CASES = [(part, "auto") for part in [*grid.REPRESENTATIVES, "sru", *grid.NETWORKS] if part != "conv_gru"]
CASES += [("min_gru", engine) for engine in grid.ENGINES if "newton" not in engine]
CASES += [("lstm_options", "fused"), ("diagonal_lstm", "newton_diagonal")]
FEW = ("unrolled", "checkpointed", "newton", "newton_diagonal")
PAIRS = [
    (part, engine)
    for part in grid.CELLS
    for engine in grid.ENGINES
    if (part, engine) not in CASES and (engine not in FEW or part in grid.REPRESENTATIVES)
]
PAIRS += [(part, engine) for part in grid.POOLED for engine in ("scan", "associative")]


def obey(law, part, engine):
    """Hold the part, run by the engine, to the law; a refusal skips the test, with its sentence."""
    built, engine = grid.build(part), ENGINES[engine]
    reason = engine.refusal(built, grid.inputs(grid.T)) if part in grid.CELLS else None
    if reason is not None:
        pytest.skip(reason)
    law(eqx.filter_jit(partial(rnnjax.unroll, engine=engine)), built)


@pytest.mark.parametrize("law", laws.LAWS.values(), ids=laws.LAWS)
@pytest.mark.parametrize(("part", "engine"), CASES)
def test_law(part, engine, law):
    obey(law, part, engine)


@pytest.mark.parametrize(("part", "engine"), PAIRS)
def test_every_pair(part, engine):
    obey(laws.law_everything_composes, part, engine)


@pytest.mark.parametrize("law", laws.CAUSAL_LAWS.values(), ids=laws.CAUSAL_LAWS)
@pytest.mark.parametrize(("part", "engine"), CASES)
def test_causal_law(part, engine, law):
    if part not in grid.CAUSAL:
        pytest.skip(f"{part} reads its sequence from the right too, so it has no chunks and no last state of the left.")
    obey(law, part, engine)
