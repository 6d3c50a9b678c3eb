"""What Sharded divides: temporary memory per device of the gradient of a long sequence, on one device and on eight."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from common.command_line import command_line, option
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import measure, report
from benchmarks.cases import Case, draw
from benchmarks.report import JSON
from rnnjax import AbstractEngine, Associative, Fused, Scan, Sharded

DEVICES, STEPS = 8, 2**17
CASES: tuple[tuple[str, AbstractEngine], ...] = (
    ("LSTM", Scan()),
    ("LSTM", Fused()),
    ("MinGRU", Scan()),
    ("MinGRU", Associative()),
)
TARGET = 1 / 6


class Row(NamedTuple):
    """Bytes per device, and how far the gradients are apart: the most, over the largest entry of the same array."""

    cell: str
    engine: str
    T: int
    H: int
    devices: int
    bytes_on_one: int
    bytes_on_each: int
    deviation: float


parse = command_line(
    __doc__, JSON, option("--steps", type=int, default=STEPS, help="of the sequence, a multiple of the devices")
)


def main() -> None:
    options = parse()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    print(report.heading())
    rows = [compare(cell, engine, options.steps) for cell, engine in CASES]
    report.write(options.json, [report.machine() | row._asdict() for row in rows])


def compare(cell_name: str, engine: AbstractEngine, steps: int) -> Row:
    """The gradient on one device beside that on all, float64: what differs is not for want of digits."""
    case = Case(cell_name, 1, steps, 16, 64, "float64")
    cell, xs = draw(case)
    mesh = jax.make_mesh((DEVICES,), ("time",), axis_types=(AxisType.Auto,))
    expected, whole = gradient(engine, cell, xs)
    spread = jax.device_put(xs, NamedSharding(mesh, P(None, "time")))
    got, part = gradient(Sharded(engine, mesh, "time"), cell, spread)
    deviation = max(jax.tree.leaves(jax.tree.map(apart, got, expected)))
    row = Row(cell_name, type(engine).__name__, steps, case.H, DEVICES, whole, part, deviation)
    verdict = "met" if part / whole <= TARGET else "MISSED"
    print(
        f"{row.cell:<7}{row.engine:<12} T = {steps}: {whole / 1e6:.1f} MB on one device, {part / 1e6:.1f} MB on each "
        f"of {DEVICES}: 1/{whole / part:.1f} (target 1/6: {verdict}); deviation {deviation:.1e}",
        flush=True,
    )
    return row


def gradient(engine: AbstractEngine, cell: Any, xs: jax.Array) -> tuple[Any, int]:
    """The gradient of a loss on all outputs and the last state, by weights and inputs, and its bytes per device."""
    compiled = jax.jit(lambda cell, xs: measure.gradient(engine, cell, xs)).lower(cell, xs).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return compiled(cell, xs), memory.temp_size_in_bytes


def apart(one: jax.Array, other: jax.Array) -> float:
    """The largest difference of two arrays over the largest entry of the second."""
    return float(jnp.max(jnp.abs(one - other)) / jnp.max(jnp.abs(other)))


if __name__ == "__main__":
    main()
