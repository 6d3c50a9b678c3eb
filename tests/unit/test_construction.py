"""Building a cell compiles nothing, and importing rnnjax imports no Pallas."""

import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

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
MAKERS: dict[str, Callable[..., Any]] = {
    **{name: partial(getattr(rnnjax, name), 61, 134, learn_initial=True) for name in VECTORS},
    **{f"{name}_without_bias": partial(getattr(rnnjax, name), 62, 138, bias=False) for name in VECTORS},
    **{name: partial(getattr(rnnjax, name), 13, 21) for name in TREES},
    "LSTM_with_options": partial(rnnjax.LSTM, 63, 142, heads=2, peepholes=True, coupled=True, dtype="bfloat16"),
    "ProjectedLSTM": partial(rnnjax.ProjectedLSTM, 64, 146, projected_size=30, peepholes=True),
    "LRU": partial(rnnjax.LRU, 65, 150, learn_initial=True),
    "S5": partial(rnnjax.S5, 66, 154, learn_initial=True),
    "ConvLSTM": partial(rnnjax.ConvLSTM, 3, 5, (8, 9), kernel_size=3, peepholes=True, learn_initial=True),
    "ConvGRU": partial(rnnjax.ConvGRU, 3, 6, (8, 9), kernel_size=3),
    "CausalConvolution": partial(rnnjax.CausalConvolution, 67, 31, window=3),
    "DepthwiseConvolution": partial(rnnjax.DepthwiseConvolution, 68, window=3),
    "QRNN": partial(rnnjax.QRNN, 69, 33, learn_initial=True),
    "RGLRU": partial(rnnjax.RGLRU, 70, heads=2, learn_initial=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_compiled(name):
    """For a size that was never seen before, too."""
    key = jax.random.key(0)
    before = len(counted())
    MAKERS[name](key=key)
    assert len(counted()) == before


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
rnnjax.unroll(rnnjax.LSTM(3, 8, key=jax.random.key(0)), None, jax.numpy.ones((5, 3)))
print(sorted(named() - before))
"""


def test_no_kernel_language_is_imported_before_a_kernel_is_lowered():
    """What Equinox imports of them itself is not ours to change; `rnnjax.kernels.pallas` is our door to them."""
    ended = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert ended.stdout == "['rnnjax.kernels.pallas']\n"
