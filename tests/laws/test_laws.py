"""Every law for a cell of each kind, for every network and every engine; and the one that binds them, for all pairs.

`law_everything_composes` says that an engine equals `Scan` with length, resets and reverse at once, for every cell. So
another law that was checked for a cell on one engine holds on all engines, and one that was checked for one cell holds
for every cell that `unroll` treats the same way. NaN in padding is checked for every pair, too, by the same program.
SRU is one more: its output is not linear in its input.
Of engines that take the steps of `Scan` in a way of their own, or solve for all, a cell for each way to be different
will do; and ConvLSTM does for ConvGRU.
"""

import grid
import laws
import numpy as np
import pytest

import rnnjax

SAME_AS_BIDIRECTIONAL = "shared_bidirectional"  # as `test_shared_weights_are_trained_by_both_directions` shows
ENGINES = {"auto": rnnjax.Auto(), **grid.ENGINES}
PARTS = [part for part in [*grid.REPRESENTATIVES, "sru", *grid.NETWORKS] if part != "conv_gru"]
CASES = [(part, "auto") for part in PARTS]
CASES += [("min_gru", engine) for engine in grid.ENGINES if "newton" not in engine and grid.admits(engine, "min_gru")]
CASES += [("lstm_options", "fused"), ("diagonal_lstm", "newton_diagonal")]
FEW = ("unrolled", "checkpointed", "newton", "newton_diagonal")
PAIRS = [
    (part, engine)
    for part in grid.CELLS
    for engine in grid.ENGINES
    if (part, engine) not in CASES and grid.admits(engine, part)
    if engine not in FEW or part in grid.REPRESENTATIVES
]
PAIRS += [(part, engine) for part in grid.POOLED for engine in ("scan", "associative")]
QUICK_PAIRS = {
    *(("gru", "unrolled"), ("projected_lstm", "checkpointed"), ("lru", "associative"), ("gru", "newton")),
    *(("gru", "fused"), ("gru", "fused_tpu"), ("lstm_options", "fused_gpu"), ("rg_lru", "associative")),
}


def case(part, engine, *others, quick):
    """A case of a part, all of which one worker sees."""
    return pytest.param(
        part, engine, *others, marks=[pytest.mark.xdist_group(part), *([] if quick else [pytest.mark.slow])]
    )


def is_quick(part, engine, law):
    """Every part obeys the laws by the engine that it gets; two of them, which need more programs, only some parts."""
    few = {
        "everything_composes": ("lstm_options", "lru", "stack_of_bidirectional", "qrnn"),
        "length_is_a_shorter_sequence": ("projected_lstm", "min_gru", "bidirectional", "qrnn", "convolution"),
    }
    return engine == "auto" and part in few.get(law, [part for part in PARTS if part != SAME_AS_BIDIRECTIONAL])


def cases(named, parts):
    """Every law for every case."""
    return [
        case(part, engine, law, quick=is_quick(part, engine, law))
        for part, engine in CASES
        if part in parts
        for law in named
    ]


@pytest.mark.parametrize(("part", "engine", "law"), cases(laws.LAWS, {*grid.CELLS, *grid.NETWORKS}))
def test_law(part, engine, law):
    laws.LAWS[law](laws.runner(part, ENGINES[engine]))


@pytest.mark.parametrize(("part", "engine", "law"), cases(laws.CAUSAL_LAWS, grid.CAUSAL))
def test_causal_law(part, engine, law):
    laws.CAUSAL_LAWS[law](laws.runner(part, ENGINES[engine]))


@pytest.mark.parametrize(("part", "engine"), [case(*pair, quick=pair in QUICK_PAIRS) for pair in PAIRS])
def test_every_pair(part, engine):
    runner = laws.runner(part, ENGINES[engine])
    laws.law_everything_composes(runner)
    laws.law_padding_is_ignored(runner, directions=(True,))  # of the program that the other law has compiled


@pytest.mark.parametrize("part", ["lstm_options", "lru", "stack", "qrnn", "rg_lru"])
def test_the_initial_state_is_given_where_there_is_none(part):
    """The laws give every state; without one `unroll` starts from the initial state."""
    built = grid.build(part)
    runner = laws.runner(part, ENGINES["auto"])
    ((_, expected),) = runner.short(runner.initial(), grid.inputs(laws.B, 7))
    got = laws.from_rest(built, ENGINES["auto"], grid.inputs(laws.B, 7))
    np.testing.assert_array_equal(got, expected)
