"""One step at a time, B = 1: prepared cells beside Scan, torch's cells, dynamic quantisation, and ONNX Runtime.

Each call is a step from Python, its results there before the next begins, and its state is that of the call before.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common.command_line import command_line, option

import rnnjax
from benchmarks import report
from benchmarks.report import JSON
from benchmarks.turns import take_turns

STORED = {"float32": None, "bfloat16": jnp.bfloat16, "int8": jnp.int8}
REFERENCE = "prepared, float32"
STEPS = 20  # of a call: one alone is too short to be timed

parse = command_line(
    __doc__,
    JSON,
    option("--sizes", nargs="+", type=int, default=[64, 256, 1024], help="inputs and units, as many of each"),
    option("--seconds", type=float, default=20.0, help="for all contestants of a size (%(default)s)"),
)


def main() -> None:
    options = parse()
    print(report.heading(), flush=True)
    records = [record for size in options.sizes for record in compare(size, options.seconds)]
    report.write(options.json, [record | report.machine() for record in records])


def compare(size: int, seconds: float) -> list[dict[str, Any]]:
    """The microseconds of a step of every contestant, and the median over rounds of its ratio to `REFERENCE`."""
    calls = contestants(size)
    times = dict(zip(calls, take_turns(list(calls.values()), seconds), strict=True))
    records = []
    for name, own in times.items():
        ratios = [other / reference for other, reference in zip(own, times[REFERENCE], strict=True)]
        record = {"size": size, "contestant": name, "microseconds": 1e3 * median(own) / STEPS, "ratio": median(ratios)}
        print(f"H = I = {size:<5} {name:<28} {record['microseconds']:9.1f} us {record['ratio']:8.2f} x", flush=True)
        records.append(record)
    return records


def contestants(size: int) -> dict[str, Callable[[], Any]]:
    """A call of each that makes steps of an LSTM."""
    cell = rnnjax.LSTM(size, size, key=jax.random.key(0))
    made = {f"prepared, {name}": stepper(rnnjax.prepare(cell, dtype), rnnjax.Auto()) for name, dtype in STORED.items()}
    made |= {"Scan": stepper(cell, rnnjax.Scan()), "Fused": stepper(cell, rnnjax.Fused()), "step by jit": plain(cell)}
    for package, add in (("torch", of_torch), ("onnxruntime", of_onnx_runtime)):
        if find_spec(package):
            made |= add(size)
        else:
            print(f"skipped: {package} is not installed: pip install -e '.[peers]'")
    return made


def stepper(cell: Any, engine: rnnjax.AbstractEngine) -> Callable[[], Any]:
    """A step by `unroll`, of a sequence of one."""
    x, run = one(cell), jax.jit(lambda cell, state, x: rnnjax.unroll(cell, state, x, engine=engine))
    return carried(lambda state: run(cell, state, x)[0], cell.initial())


def plain(cell: Any) -> Callable[[], Any]:
    """The cell's own functions, without `unroll`."""
    x, run = one(cell), jax.jit(lambda cell, state, x: cell.step(state, cell.project(x)[0]))
    return carried(lambda state: run(cell, state, x), cell.initial())


def one(cell: Any) -> jax.Array:
    """One step of input."""
    size = cell.input_type().shape[0]
    return jnp.asarray(np.random.default_rng(0).normal(size=(1, size)), "float32")


def carried(step: Callable[[Any], Any], state: Any) -> Callable[[], Any]:
    """A call of `STEPS` steps, each from the state of the one before, and after it: a user waits for every result."""
    held = [state]

    def call() -> Any:
        for _ in range(STEPS):
            held[0] = jax.block_until_ready(step(held[0]))
        return held[0]

    return call


def of_torch(size: int) -> dict[str, Callable[[], Any]]:
    """`LSTMCell`, and `LSTM` with its weights quantised to int8, which quantises its inputs at each call."""
    torch = import_module("torch")
    torch.set_num_threads(report.cores())
    x, zeros = torch.randn(1, size), torch.zeros(1, size)
    cell = torch.nn.LSTMCell(size, size)
    layer = torch.ao.quantization.quantize_dynamic(
        torch.nn.Sequential(torch.nn.LSTM(size, size)), {torch.nn.LSTM}, dtype=torch.qint8
    )[0]

    @torch.no_grad()
    def step(state: Any) -> Any:
        return cell(x, state)

    @torch.no_grad()
    def quantised(state: Any) -> Any:
        return layer(x[None], state)[1]

    return {
        "torch.nn.LSTMCell": carried(step, (zeros, zeros)),
        "torch LSTM, dynamic int8": carried(quantised, (zeros[None], zeros[None])),
    }


def of_onnx_runtime(size: int) -> dict[str, Callable[[], Any]]:
    """A session whose state is bound from one call to the next."""
    onnx = import_module("benchmarks.layers.onnx_runtime")
    from_numpy = onnx.OrtValue.ortvalue_from_numpy
    case = onnx.Case("LSTM", 1, 1, size, size)
    session = onnx.InferenceSession(
        onnx.model("LSTM", ["h", "c"], case), onnx.options(), providers=["CPUExecutionProvider"]
    )
    x, zeros = (from_numpy(np.zeros((1, 1, size), np.float32)) for _ in range(2))

    def step(state: Any) -> Any:
        h, c = state
        return session.run_with_ort_values(["h", "c"], {"xs": x, "h_before": h, "c_before": c})

    return {"ONNX Runtime": carried(step, (zeros, zeros))}


if __name__ == "__main__":
    main()
