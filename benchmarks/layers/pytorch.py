"""torch: `LSTM`, `GRU` and `RNN`, and the rate of its matrix product, the machine's peak."""
# pyright: reportMissingImports=false

from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.layers.layer import FORWARD, STEP, AbstractLayer, Work, carried
from benchmarks.measure import Contestant
from benchmarks.report import cores

PEAK_SIZE = 1024
PEAK_OPERATIONS = 2 * PEAK_SIZE**3


class Torch(AbstractLayer):
    """Batch first, as all are here: it costs torch up to 3 % of the time of an LSTM, against time first."""

    peer = "torch"
    package = "torch"
    dtypes = ("float32", "bfloat16", "float16")

    def __init__(self, device: str = "cpu"):
        self.device = device
        torch.set_num_threads(cores())

    def names(self) -> Mapping[str, str]:
        return {"LSTM": "LSTM", "GRU": "GRU", "Elman": "RNN"}

    def refusal(self, case: Case, direction: str) -> str | None:
        if case.heads > 1:
            return "torch has no heads"
        return super().refusal(case, direction)

    def prepare(self, work: Work) -> Contestant:
        name = self.names()[work.case.cell]
        dtype = getattr(torch, work.case.dtype)
        place = {"dtype": dtype, "device": self.device}
        layer = getattr(torch.nn, name)(work.case.I, work.case.H, batch_first=True, **place)
        arrays = work.xs, work.cotangent, *work.state
        xs, cotangent, *fields = (torch.from_numpy(array).to(**place) for array in arrays)
        states = [field[None].contiguous() for field in fields]  # [1, B, H]
        state = tuple(states) if len(states) > 1 else states[0]

        @torch.no_grad()
        def forward() -> Any:
            return layer(xs, state)

        def gradient() -> Any:
            ys, _ = layer(xs, state)
            loss = (ys * cotangent).sum()
            return loss, torch.autograd.grad(loss, [*layer.parameters(), xs, *states])

        if work.direction == FORWARD:
            return Contestant(name, forward)
        for tensor in (xs, *states):
            tensor.requires_grad_()
        return Contestant(name, gradient)


class TorchCell(Torch):
    """`LSTMCell`, `GRUCell` and `RNNCell`, which torch has for single steps."""

    directions = (STEP,)
    dtypes = ("float32",)

    def names(self) -> Mapping[str, str]:
        return {"LSTM": "LSTMCell", "GRU": "GRUCell", "Elman": "RNNCell"}

    def prepare(self, work: Work) -> Contestant:
        name = self.names()[work.case.cell]
        cell = getattr(torch.nn, name)(work.case.I, work.case.H)
        x, fields = torch.from_numpy(work.xs[0]), [torch.from_numpy(field) for field in work.state]
        step = torch.no_grad()(lambda state: cell(x, state))
        return Contestant(name, carried(step, tuple(fields) if len(fields) > 1 else fields[0]))


class QuantisedTorch(Torch):
    """Layers by `quantize_dynamic`: weights of int8, and inputs that each call rounds to 8 bits, too."""

    directions = (STEP,)
    dtypes = ("float32",)

    def names(self) -> Mapping[str, str]:
        return {"LSTM": "LSTM, dynamic int8", "GRU": "GRU, dynamic int8"}

    def refusal(self, case: Case, direction: str) -> str | None:
        if case.cell not in self.names():
            return f"torch does not quantise {super().names()[case.cell]}"
        return super().refusal(case, direction)

    def prepare(self, work: Work) -> Contestant:
        kind = getattr(torch.nn, work.case.cell)
        network = torch.nn.Sequential(kind(work.case.I, work.case.H))
        layer = torch.ao.quantization.quantize_dynamic(network, {kind}, dtype=torch.qint8)[0]
        x, fields = torch.from_numpy(work.xs), [torch.from_numpy(field)[None] for field in work.state]
        step = torch.no_grad()(lambda state: layer(x, state)[1])
        name = self.names()[work.case.cell]
        return Contestant(name, carried(step, tuple(fields) if len(fields) > 1 else fields[0]))


def synchronise() -> None:
    """Wait for all that torch has asked of a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(dtype: str) -> Callable[[], Any]:
    """A call of PEAK_OPERATIONS: the product of two square matrices, into memory that is there already."""
    left, right, result = torch.randn(3, PEAK_SIZE, PEAK_SIZE).to(getattr(torch, dtype))
    return lambda: torch.mm(left, right, out=result)
