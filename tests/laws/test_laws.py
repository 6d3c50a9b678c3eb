"""Every law for a cell of each kind, for every network and every engine; and the one that binds them, for pairs.

`law_everything_composes` says that an engine equals `Scan` with length, resets and reverse at once. So a law that was
checked for a cell on one engine holds on all engines, and one that was checked for one cell holds for every cell that
`unroll` treats the same way. NaN in padding is checked for the same pairs, by the same program.
Every cell is in a pair, and a pair is here where marks may go another way in it: the kernels of `Fused` for a cell of
one field and of two, `Associative` for every linear cell. Of engines that take the steps of `Scan`, or solve for all, a
state of one field, one of two sizes and a complex one will do; `test_grid` has more pairs, without marks.
`Auto` runs these short sequences by `Scan`, which would be compared with itself, or a linear cell by `Associative`,
which has pairs of its own: so it is compared with `Scan` only for networks that hold a linear cell.
`Auto` runs mixers by `Scan`, too: their pairs are with `Chunked`.
SRU is one more: its output is not linear in its input. ConvLSTM stands for ConvGRU.
"""

import grid
import laws
import numpy as np
import pytest

import rnnjax

NOT_QUICK = (
    "shared_bidirectional",  # as `bidirectional`: see `test_shared_weights_are_trained_by_both_directions`
    "xlstm",  # of layers that are quick by themselves
)
OWN = rnnjax.Auto((rnnjax.Fused(), rnnjax.engines.Chunked(size=4), rnnjax.Scan()))
ENGINES = {"auto": rnnjax.Auto(), "own": OWN, **grid.ENGINES}
PARTS = [part for part in [*grid.REPRESENTATIVES, "sru", *grid.NETWORKS] if part != "conv_gru"]
CASES = [(part, "auto") for part in PARTS]
CASES += [("min_gru", engine) for engine in ("scan", "unrolled", "checkpointed", "associative_blocks")]
CASES += [("lstm_options", "fused"), ("diagonal_lstm", "newton_diagonal"), ("mlstm", "chunked"), ("xlstm", "own")]
LINEAR_INSIDE = ("stack", "stack_of_bidirectional", "time_distributed", *grid.POOLED, "partial_resets", "mamba")
FEW = {  # the cells of an engine that is not seen with every cell that it admits
    "scan": [cell for cell in grid.CELLS if cell not in (*grid.LINEAR, *grid.GATED, *(part for part, _ in CASES))],
    **dict.fromkeys(("unrolled", "checkpointed"), ("projected_lstm", "lru")),
    "associative_blocks": ("lru", "s6"),
    "newton": ("gru", "projected_lstm", "lru"),
    "newton_diagonal": ("lru",),
    "chunked": ("matrix", "ret_net", "delta_product"),
    **dict.fromkeys(("fused_tpu", "fused_gpu"), ("gru", "lstm_options")),
}
PAIRS = [
    (part, engine)
    for engine in grid.ENGINES
    for part in FEW.get(engine, grid.CELLS)
    if (part, engine) not in CASES and grid.admits(engine, part)
]
PAIRS += [("rwkv7", "chunked")]
FORWARD = ("cg_lru", "partial_resets", "rwkv7", "mlstm")  # in the quick tier
IN_REVERSE = ("padding_is_ignored", "reverse_flips_the_valid_part")
QUICK_PAIRS = {
    *(("lru", "unrolled"), ("projected_lstm", "checkpointed"), ("lru", "associative"), ("gru", "newton")),
    *(("gru", "fused"), ("gru", "fused_tpu"), ("lstm_options", "fused_gpu")),
}
SLOW = {SAME_AS_BIDIRECTIONAL, "rwkv6", "mamba", *grid.MIXERS} - {"delta_product"}  # which has several micro-steps
ALIKE = ("gla", "hgrn2", "delta_net", "kda")  # other coefficients of the same code: without the laws of more programs


def case(part, engine, *others, quick):
    """A case of a part, all of which one worker sees."""
    return pytest.param(
        part, engine, *others, marks=[pytest.mark.xdist_group(part), *([] if quick else [pytest.mark.slow])]
    )


def is_quick(part, engine, law):
    """Every part obeys the laws by the engine that it gets; those that need more programs, only some parts."""
    few = {
        "everything_composes": ("stack_of_bidirectional", "qrnn", "rg_lru"),
        "length_is_a_shorter_sequence": ("projected_lstm", "min_gru", "bidirectional", "qrnn", "convolution"),
        **dict.fromkeys(IN_REVERSE, tuple(part for part in PARTS if part not in (*FORWARD, *grid.MIXERS, *NOT_QUICK))),
    }
    return engine == "auto" and part in few.get(law, [part for part in PARTS if part not in (*SLOW, *NOT_QUICK)])


def cases(named, parts):
    """Every law for every case in which it can fail."""
    return [
        case(part, engine, law, quick=is_quick(part, engine, law))
        for part, engine in CASES
        if part in parts
        for law in named
        if law != "everything_composes" or engine != "auto" or part in LINEAR_INSIDE
        if part not in ALIKE or law not in ("length_is_a_shorter_sequence", *IN_REVERSE)
    ]


@pytest.mark.parametrize(("part", "engine", "law"), cases(laws.LAWS, {*grid.CELLS, *grid.NETWORKS}))
def test_law(part, engine, law):
    laws.LAWS[law](laws.runner(part, ENGINES[engine]))


@pytest.mark.parametrize(("part", "engine", "law"), cases(laws.CAUSAL_LAWS, grid.CAUSAL))
def test_causal_law(part, engine, law):
    laws.CAUSAL_LAWS[law](laws.runner(part, ENGINES[engine]))


@pytest.mark.parametrize(("part", "engine"), [case(*pair, quick=pair in QUICK_PAIRS) for pair in PAIRS])
def test_pair(part, engine):
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
