"""Building a cell compiles nothing, and importing rnnjax imports no Pallas."""

import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from inspect import isabstract
from typing import Any

import equinox as eqx
import jax
import pytest
from meter import COMPILED

import rnnjax


@lru_cache
def counted() -> list[float]:
    """Grows by one entry for each program that is compiled from now on."""
    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(duration) if event == COMPILED else None
    )
    return compiled


VECTORS = (
    *("Elman", "LSTM", "GRU", "ResetBeforeGRU", "LEM", "MinGRU", "MinLSTM", "IndRNN", "DiagonalGRU", "DiagonalLSTM"),
    *("LinearRNN", "SRU"),
)
TREES = ("ChildSumTreeLSTM", "NaryTreeLSTM", "RNTN", "RecursiveNetwork")
CELLS: dict[str, Callable[..., Any]] = {  # by their class, and what is special
    **{name: partial(getattr(rnnjax, name), 19, 46) for name in VECTORS},
    **{f"{name} learn_initial": partial(getattr(rnnjax, name), 19, 47, learn_initial=True) for name in VECTORS},
    **{f"{name} no bias": partial(getattr(rnnjax, name), 19, 49, bias=False) for name in VECTORS},
    **{name: partial(getattr(rnnjax.trees, name), 13, 21) for name in TREES},
    **{f"{name} no bias": partial(getattr(rnnjax.trees, name), 14, 22, bias=False) for name in TREES},
    "LSTM options": partial(rnnjax.LSTM, 21, 38, heads=2, peepholes=True, coupled=True, dtype="bfloat16"),
    "LSTM chrono": partial(rnnjax.LSTM, 21, 39, bias_initialiser=rnnjax.initialise.chrono(30)),
    "ProjectedLSTM": partial(rnnjax.ProjectedLSTM, 22, 41, projected_size=30, peepholes=True),
    "ProjectedLSTM learn_initial": partial(rnnjax.ProjectedLSTM, 22, 42, projected_size=31, learn_initial=True),
    "ProjectedLSTM no bias": partial(rnnjax.ProjectedLSTM, 22, 43, projected_size=32, bias=False, coupled=True),
    "LRU": partial(rnnjax.LRU, 23, 50, learn_initial=True),
    "LRU no skip": partial(rnnjax.LRU, 23, 51, output_size=36, skip=False),
    "S5": partial(rnnjax.S5, 24, 54, learn_initial=True),
    "S5 no skip": partial(rnnjax.S5, 24, 58, output_size=37, skip=False),
    "ConvLSTM": partial(rnnjax.ConvLSTM, 3, 5, (8, 9), kernel_size=3, peepholes=True, learn_initial=True),
    "ConvLSTM no bias": partial(rnnjax.ConvLSTM, 3, 7, (8, 9), kernel_size=3, bias=False),
    "ConvGRU": partial(rnnjax.ConvGRU, 3, 6, (8, 9), kernel_size=3, learn_initial=True),
    "ConvGRU no bias": partial(rnnjax.ConvGRU, 3, 8, (8, 9), kernel_size=3, bias=False),
    "CausalConvolution": partial(rnnjax.networks.CausalConvolution, 67, 31, window=3),
    "CausalConvolution no bias": partial(rnnjax.networks.CausalConvolution, 67, 32, window=3, bias=False),
    "DepthwiseConvolution": partial(rnnjax.networks.DepthwiseConvolution, 68, window=3),
    "DepthwiseConvolution no bias": partial(rnnjax.networks.DepthwiseConvolution, 68, window=4, bias=False),
    "QRNN": partial(rnnjax.QRNN, 69, 33, learn_initial=True),
    "QRNN no bias": partial(rnnjax.QRNN, 69, 34, window=3, input_gate=True, bias=False),
    "RGLRU": partial(rnnjax.RGLRU, 70, heads=2, learn_initial=True),
    "CGLRU": partial(rnnjax.networks.CGLRU, 76, heads=2, learn_initial=True),
    "CGLRU no bias": partial(rnnjax.networks.CGLRU, 80, heads=2, bias=False),
    "MLSTM": partial(rnnjax.networks.MLSTM, 19, 48, heads=2, key_size=13),
    "MLSTM sigmoid": partial(rnnjax.networks.MLSTM, 19, 50, heads=2, sigmoid_input_gate=True),
    "MLSTMBlock": partial(rnnjax.networks.MLSTMBlock, 26),
    "SLSTMBlock": partial(rnnjax.networks.SLSTMBlock, 28, depth=0.5),
    "S5 with a bound": partial(rnnjax.S5, 24, 62, largest_real_part=-1e-4, discretise=rnnjax.cells.bilinear),
    "RGLRU no bias": partial(rnnjax.RGLRU, 72, heads=2, bias=False),
    "MatrixMixer": partial(rnnjax.networks.MatrixMixer, 27, heads=3, key_size=5, value_size=7, learn_initial=True),
    "LinearAttention": partial(rnnjax.networks.LinearAttention, 28),
    "RetNet": partial(rnnjax.networks.RetNet, 80),
    "GLA": partial(rnnjax.networks.GLA, 56),
    "HGRN2": partial(rnnjax.networks.HGRN2, 30, key_size=6),
    "Mamba2": partial(rnnjax.networks.Mamba2, 54, head_size=9),
    "DeltaNet": partial(rnnjax.networks.DeltaNet, 44),
    "GatedDeltaNet": partial(rnnjax.networks.GatedDeltaNet, 104),
    "KDA": partial(rnnjax.networks.KDA, 112),
    "DeltaProduct": partial(rnnjax.networks.DeltaProduct, 88),
    "RWKV6": partial(rnnjax.networks.RWKV6, 82, head_size=41, learn_initial=True),
    "RWKV7": partial(rnnjax.networks.RWKV7, 86, head_size=43, takes_value=True),
    "ChannelMixing": partial(rnnjax.networks.ChannelMixing, 87),
    "ChannelMixing gated": partial(rnnjax.networks.ChannelMixing, 91, gated=True),
    "Mamba": partial(rnnjax.networks.Mamba, 46, states=5, layers=3),
}


def of_cell(make: Callable[..., Any], inputs: int, hidden: int, cell: Any = rnnjax.GRU) -> Callable[..., Any]:
    """A part that is made of a cell."""
    return lambda key: make(cell(inputs, hidden, key=key), key=key)


def luong(key: jax.Array) -> rnnjax.models.LuongDecoder:
    recurrence, score = rnnjax.GRU(23 + 9, 27, key=key), rnnjax.models.General(27, 27, key=key)
    return rnnjax.models.LuongDecoder(recurrence, score, memory_size=27, attentional_size=9, key=key)


def bahdanau(key: jax.Array) -> rnnjax.models.BahdanauDecoder:
    return rnnjax.models.BahdanauDecoder(rnnjax.GRU(24 + 27, 27, key=key), rnnjax.models.Additive(27, 27, 13, key=key))


def seq2seq(decoder: Callable[[jax.Array], Any], size: int) -> Callable[..., Any]:
    """A model without a drawn bridge, which is of layers of Equinox."""
    encoder = partial(rnnjax.GRU, 22, 27)
    kept = eqx.nn.Identity()
    return lambda key: rnnjax.models.Seq2Seq(size, size + 1, encoder(key=key), decoder(key), bridge=kept, key=key)


def transducer(cell: rnnjax.AbstractCell, key: jax.Array) -> rnnjax.models.transduction.Transducer:
    return rnnjax.models.transduction.Transducer(89, cell, cell, joint_size=35, key=key)


def stack(key: jax.Array) -> rnnjax.Stack:
    inner = rnnjax.Bidirectional(rnnjax.GRU(73, 39, key=key), rnnjax.Reversed(rnnjax.GRU(73, 39, key=key)))
    return rnnjax.Stack([rnnjax.skip(inner), rnnjax.residual(rnnjax.LSTM(151, 151, key=key))], dropout=0.5)


PARTS: dict[str, Callable[..., Any]] = {
    "slstm": partial(rnnjax.cells.SLSTM, 19, 48, heads=2),
    "stack": stack,
    "rwkv7 layers": partial(rnnjax.networks.rwkv7_layers, 94, 2, head_size=47),
    "language model": of_cell(partial(rnnjax.models.LanguageModel, 77), 23, 29),
    "language model, tied": of_cell(partial(rnnjax.models.LanguageModel, 78, tied=True), 26, 26, rnnjax.LSTM),
    "tree classifier": of_cell(
        lambda cell, key: rnnjax.models.TreeClassifier(79, 5, cell, key=key), 17, 19, rnnjax.trees.RNTN
    ),
    "sequence to sequence, Luong": seq2seq(luong, 81),
    "sequence to sequence, Bahdanau": seq2seq(bahdanau, 83),
    "sequence to sequence, context": seq2seq(
        lambda key: rnnjax.models.ContextDecoder(rnnjax.GRU(25 + 27, 27, key=key)), 85
    ),
    "ctc": of_cell(partial(rnnjax.models.transduction.CTC, 87), 26, 31),
    "transducer": of_cell(transducer, 21, 33),
    "attention pooling": partial(rnnjax.models.AttentionPooling, 17, 28),
}
MAKERS = CELLS | PARTS


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_compiled(name):
    """For a size that was never seen before, too."""
    key = jax.random.key(0)
    before = len(counted())
    MAKERS[name](key=key)
    assert len(counted()) == before


def test_every_cell_is_among_them():
    """All classes of cells that draw weights of their own; those around another part draw none."""
    kinds = rnnjax.AbstractCell, rnnjax.AbstractNetwork, rnnjax.trees.AbstractTreeCell
    public = vars(rnnjax) | vars(rnnjax.networks) | vars(rnnjax.regularise) | vars(rnnjax.trees)
    classes = {name: kind for name, kind in public.items() if isinstance(kind, type) and issubclass(kind, kinds)}
    around = {name for name, kind in classes.items() if "key" not in kind.__init__.__annotations__}
    assert {name for name in classes if not isabstract(classes[name])} - around == {name.split()[0] for name in CELLS}


def test_what_counts_does_count():
    before = len(counted())
    jax.jit(lambda x: x + 1)(0.5)
    assert len(counted()) == before + 1


IMPORTS = """
import sys
import jax, equinox, optax
named = lambda: {name for name in sys.modules if any(word in name for word in ("pallas", "mosaic", "triton"))}
before = named()
import rnnjax
assert named() - before <= {"rnnjax.kernels.pallas"}, named() - before
cell, xs = rnnjax.LSTM(3, 16, key=jax.random.key(0)), jax.numpy.ones((40, 3))
jax.jit(lambda xs: rnnjax.unroll(cell, None, xs))(xs)
print(str(rnnjax.Auto().plan(cell, xs)).partition(":")[0], sorted(named() - before))
"""


def test_no_kernel_language_is_imported_before_a_kernel_is_lowered():
    """Neither by an import nor by a run on a CPU, by the library of this package; `rnnjax.kernels.pallas` is our door.

    What Equinox imports of them itself is not ours to change.
    """
    ended = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert ended.stdout == "Fused ['rnnjax.kernels.pallas']\n"
