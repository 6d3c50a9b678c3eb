"""A summary of the records of `peers.py`: speed relative to torch and to a scan, to the peak, and of single steps."""

import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.layers.layer import STEP
from benchmarks.layers.scans import prepared
from benchmarks.measure import Record

LARGE_BATCH, LARGE_STATE = 16, 128  # sizes from which the peak can be reached

HEAD = (
    f"{'cell':<6}{'direction':<10}{'engine':<8}{'shapes':>7}{'torch / ours':>18}{'better scan / ours':>22}"
    f"{f'of peak, B >= {LARGE_BATCH}, H >= {LARGE_STATE}':>28}"
)


STORED = "float32", "bfloat16", "int8"  # how a prepared cell has its weights
HEAD_OF_STEPS = (
    f"{'cell':<6}{'direction':<10}{'prepared':<10}{'sizes':>7}{'torch cell / ours':>20}{'torch int8 / ours':>20}"
    f"{'ONNX Runtime / ours':>22}{'float32 / ours':>20}"
)


def summary(records: Sequence[Record]) -> list[str]:
    """Two tables: sequences, a line per cell and direction; steps, a line per cell and dtype of prepared weights."""
    lines = ["", "ratios of times, above 1: ours is faster; geometric mean over the shapes (and the least)"]
    sequences = [record for record in records if record.direction != STEP]
    steps = [record for record in records if record.direction == STEP]
    if sequences:
        lines.append(HEAD)
    for cell, direction in dict.fromkeys((record.cell, record.direction) for record in sequences):
        lines.append(line([record for record in sequences if (record.cell, record.direction) == (cell, direction)]))
    if steps:
        lines.append(HEAD_OF_STEPS)
    for cell in dict.fromkeys(record.cell for record in steps):
        lines += lines_of_steps([record for record in steps if record.cell == cell])
    return lines


def lines_of_steps(records: Sequence[Record]) -> list[str]:
    """The lines of one cell: prepared in each dtype, beside what others have for single steps."""
    cell = records[0].cell
    float32 = by_shape(records, lambda record: record.engine == prepared("float32"))
    others = [
        by_shape(records, lambda record: record.peer == "torch" and "int8" not in record.engine),
        by_shape(records, lambda record: record.peer == "torch" and "int8" in record.engine),
        by_shape(records, lambda record: record.peer == "onnxruntime"),
        float32,
    ]
    lines = []
    for dtype in STORED:
        ours = by_shape(records, lambda record, dtype=dtype: record.engine == prepared(dtype))
        columns = [f"{mean_and_least(ratios(theirs, ours)):>20}" for theirs in others]
        lines.append(
            f"{cell:<6}{STEP:<10}{dtype:<10}{len(ours):>7}{columns[0]}{columns[1]}{columns[2]:>22}{columns[3]}"
        )
    return lines


def line(records: Sequence[Record]) -> str:
    """The line of one cell and direction; ours is Fused where it was measured, else Scan."""
    ours = by_shape(records, is_fused) or by_shape(records, is_scan)
    torch = by_shape(records, lambda record: record.peer == "torch")
    better_scan = by_shape(records, lambda record: is_scan(record) or record.engine == "lax.scan")
    any_of_ours = next(iter(ours.values()))
    large = [
        record.fraction_of_peak
        for record in ours.values()
        if record.B >= LARGE_BATCH and record.H >= LARGE_STATE and record.fraction_of_peak is not None
    ]
    return (
        f"{any_of_ours.cell:<6}{any_of_ours.direction:<10}{any_of_ours.engine:<8}{len(ours):>7}"
        f"{mean_and_least(ratios(torch, ours)):>18}{mean_and_least(ratios(better_scan, ours)):>22}"
        f"{mean_and_least(large):>28}"
    )


def is_fused(record: Record) -> bool:
    return record.engine == "Fused"


def is_scan(record: Record) -> bool:
    return record.engine == "Scan"


def by_shape(records: Iterable[Record], chosen: Callable[[Record], bool]) -> dict[tuple[int, ...], Record]:
    """The fastest of the chosen records, by shape."""
    fastest: dict[tuple[int, ...], Record] = {}
    for record in filter(chosen, records):
        shape = record.B, record.T, record.I, record.H
        fastest[shape] = min(record, fastest.get(shape, record), key=lambda record: record.ratio_to_scan)
    return fastest


def ratios(theirs: dict[tuple[int, ...], Record], ours: dict[tuple[int, ...], Record]) -> list[float]:
    """Their time over ours, for each shape that both were measured on."""
    return [theirs[shape].ratio_to_scan / ours[shape].ratio_to_scan for shape in theirs if shape in ours]


def mean_and_least(values: Sequence[float]) -> str:
    return f"{statistics.geometric_mean(values):.2f} (least {min(values):.2f})" if values else "-"
