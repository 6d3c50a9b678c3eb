"""rnnjax against the same layer in torch, ONNX Runtime, Flax, Equinox, Keras and plain JAX; needs the group `peers`.

In float32 also one step at a time, B = 1: prepared cells beside torch's cells, its layers in int8, and ONNX Runtime.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import product

import jax.numpy as jnp
from common.command_line import command_line, option
from tqdm import tqdm

from benchmarks import measure, report
from benchmarks.cases import ENGINES, GATES, PEER_SHAPES, QUICK_SHAPES, QUICK_STEP_SIZES, STEP_SIZES, Case
from benchmarks.engines import plot
from benchmarks.layers.layer import FORWARD, GRADIENT, STEP, STEPS, AbstractLayer, draw_work, operations
from benchmarks.layers.scans import Ours, PlainScan, Prepared
from benchmarks.measure import Record
from benchmarks.report import JSON, PLOT, QUICK
from benchmarks.summary import summary
from benchmarks.turns import take_turns

OURS = ("Fused", "Scan")
PEERS = (  # what must be installed, and where its layer is
    ("torch", "pytorch", "Torch"),
    ("torch", "pytorch", "TorchCell"),
    ("torch", "pytorch", "QuantisedTorch"),
    ("onnxruntime", "onnx_runtime", "OnnxRuntime"),
    ("flax", "flax_nnx", "Flax"),
    ("equinox", "equinox_nn", "Equinox"),
    ("keras", "keras_jax", "Keras"),
)

SECONDS, QUICK_SECONDS = 5.0, 0.5  # for all contestants of a case together, if that is enough


def shape(text: str) -> tuple[int, ...]:
    """The four sizes of `B,T,I,H`."""
    B, T, I, H = map(int, text.split(","))  # noqa: E741
    return B, T, I, H


parse = command_line(
    __doc__,
    JSON,
    QUICK,
    PLOT,
    option("--cells", nargs="+", choices=GATES, default=list(GATES), help="which cells"),
    option("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and inputs"),
    option("--shapes", nargs="+", type=shape, metavar="B,T,I,H", help="other shapes"),
)


def main() -> None:
    options = parse()
    shapes = options.shapes or (QUICK_SHAPES if options.quick else PEER_SHAPES)
    print(report.heading(), flush=True)
    cases = [Case(cell, *shape, dtype=options.dtype) for cell in options.cells for shape in shapes]
    steps = [] if options.shapes or options.dtype != "float32" else step_cases(options.cells, options.quick)
    work = [*product(cases, (FORWARD, GRADIENT)), *product(steps, (STEP,))]
    records = run(work, QUICK_SECONDS if options.quick else SECONDS)
    print("\n".join(summary(records)))
    measure.write(options.json, records)
    if options.plot:
        plot(options.plot, [record for record in records if record.direction != STEP])


def step_cases(cells: Sequence[str], quick: bool) -> list[Case]:
    """One step of one sequence."""
    return [Case(cell, 1, 1, size, size) for cell in cells for size in (QUICK_STEP_SIZES if quick else STEP_SIZES)]


def run(work: Sequence[tuple[Case, str]], seconds: float) -> list[Record]:
    """Measure every case in its direction, and print a line for each contestant as it is done."""
    layers, skipped = installed_layers()
    print(f"{LEGEND}\n{HEAD}", flush=True)
    records = []
    for case, direction in tqdm(work, unit="case"):
        able = [layer for layer in layers if direction in layer.directions]
        reasons = [layer.refusal(case, direction) for layer in able]
        skipped |= dict.fromkeys(reason for reason in reasons if reason)
        taking_part = [layer for layer, reason in zip(able, reasons, strict=True) if reason is None]
        for record in compare(case, direction, taking_part, seconds):
            records.append(record)
            tqdm.write(row(record))
    for reason in skipped:
        print(f"skipped: {reason}")
    return records


def installed_layers() -> tuple[list[AbstractLayer], dict[str, None]]:
    """What can be measured here, and a sentence for each library that is missing."""
    layers: list[AbstractLayer] = [Ours(name, ENGINES[name]) for name in OURS if name in ENGINES]
    layers += [Prepared(), Prepared(jnp.bfloat16), Prepared(jnp.int8), PlainScan()]
    missing = [package for package, _, _ in PEERS if find_spec(package) is None]
    for package, module, name in PEERS:
        if package not in missing:
            layers.append(getattr(import_module(f"benchmarks.layers.{module}"), name)())
    return layers, dict.fromkeys(f"{package} is not installed: pip install --group peers" for package in missing)


def compare(case: Case, direction: str, layers: Sequence[AbstractLayer], seconds: float) -> list[Record]:
    """Records of every layer, measured in turn with each other and, where torch is there, with the machine's peak.

    Steps are not compared with the peak: what they take is the time to read the weights.
    """
    given = draw_work(case, direction)
    contestants = [layer.contestant(given) for layer in layers]
    calls = [contestant.call for contestant in contestants]
    rate = 1e-6 * operations(case, direction)  # gigaflops, times milliseconds
    if direction == STEP or find_spec("torch") is None:
        times = take_turns(calls, seconds)
        shares = [None for _ in times]
    else:
        torch = import_module("benchmarks.layers.pytorch")
        *times, peak = take_turns([*calls, torch.peak(case.dtype)], seconds)
        work = operations(case, direction) / torch.PEAK_OPERATIONS
        shares = [work * measure.median_ratio(peak, milliseconds) for milliseconds in times]
    if direction == STEP:
        times = [[milliseconds / STEPS for milliseconds in own] for own in times]
    made = measure.records(case, direction, contestants, times)
    return [
        record._replace(gigaflops=rate / record.milliseconds, fraction_of_peak=share)
        for record, share in zip(made, shares, strict=True)
    ]


HEAD = (
    f"{'cell':<6}{'direction':<10}{'B':>4}{'T':>5}{'I':>4}{'H':>4}  {'layer':<24}"
    f"{'ms':>9}{'spread':>8}{'GF/s':>7}{'of peak':>9}{'ratio':>7}"
)
LEGEND = (
    "ms: median per call, or per step; spread: interquartile range / median; ratio: time / Scan's, below 1 is faster;\n"
    "GF/s: 10^9 operations per second, of matrix products; of peak: share of torch.mm's rate at 1024^3, in that dtype"
)


def row(record: Record) -> str:
    """A record as a line under HEAD."""
    layer = f"{record.peer} {record.engine}" if record.peer else record.engine
    share = "" if record.fraction_of_peak is None else f"{record.fraction_of_peak:.2f}"
    return (
        f"{record.cell:<6}{record.direction:<10}{record.B:>4}{record.T:>5}{record.I:>4}{record.H:>4}  {layer:<24}"
        f"{record.milliseconds:>9.4g}{record.spread:>8.0%}{record.gigaflops:>7.1f}{share:>9}"
        f"{record.ratio_to_scan:>7.2f}"
    )


if __name__ == "__main__":
    main()
