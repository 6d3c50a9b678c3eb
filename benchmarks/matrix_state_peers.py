"""`Chunked` against the plain torch code of flash-linear-attention: `python -m benchmarks.matrix_state_peers FOLDER`.

The folder is a clone of github.com/fla-org/flash-linear-attention. Needs torch and einops. Both compute the same
outputs from queries, keys, values, logarithms of decays and, where there is an erase, its strengths: forward, and with
the gradient by all of these. torch runs in chunks of 32 and of 64 steps, and the faster one counts.
"""
# pyright: reportMissingImports=false

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common.command_line import command_line, option

from benchmarks import report
from benchmarks.report import JSON
from benchmarks.turns import take_turns
from rnnjax import unroll
from rnnjax.cells import MatrixRecurrence, Transition
from rnnjax.engines import Chunked

B, HEADS, SIZE = 4, 4, 64
CHUNKS = (32, 64)
TOLERANCE = 1e-5  # of the difference from torch, relative to the largest entry
Arrays = dict[str, np.ndarray]


class Kind(NamedTuple):
    """A recurrence: what decays, whether a step erases, and the function of the clone."""

    scalar_decay: bool
    erases: bool
    folder: str
    function: str


KINDS = {
    "decay of heads": Kind(True, False, "simple_gla", "naive_chunk_simple_gla"),
    "gated delta rule": Kind(True, True, "gated_delta_rule", "naive_chunk_gated_delta_rule"),
    "delta rule, decay of keys": Kind(False, True, "kda", "naive_chunk_kda"),
}
DIRECTIONS = ("forward", "gradient")

parse = command_line(
    __doc__,
    JSON,
    option("source", type=Path, help="flash-linear-attention"),
    option("--steps", nargs="+", type=int, default=[1024, 4096], help="lengths of sequences (default: %(default)s)"),
    option("--seconds", type=float, default=6.0, help="for a kind, a length and a direction (%(default)s)"),
)


def main() -> None:
    options = parse()
    torch.set_num_threads(report.cores())
    print(report.heading(), flush=True)
    about = report.machine_under_load() | {"torch": torch.__version__}
    records = []
    for T, kind, direction in product(options.steps, KINDS, DIRECTIONS):
        records.append(compare(options.source, kind, T, direction, options.seconds) | about)
        report.keep(options.json, records[-1], ("kind", "T", "direction"))
    mean = exp(fmean(log(record["speedup"]) for record in records))
    print(f"geometric mean: {mean:.1f} times faster than torch {torch.__version__}")


def compare(source: Path, name: str, T: int, direction: str, seconds: float) -> dict[str, Any]:
    """The record of a kind: medians of milliseconds, and the median over rounds of torch's best time over ours."""
    kind, arrays = KINDS[name], problem(KINDS[name], T)
    function = getattr(load(source, kind.folder), kind.function)
    ours, *theirs = [
        compiled(kind, arrays, direction),
        *(torch_call(partial(function, chunk_size=size), arrays, direction) for size in CHUNKS),
    ]
    expected = [np.asarray(each) for each in ours()]
    distance = max(difference(expected, [each.detach().numpy() for each in call()]) for call in theirs)
    if not distance <= TOLERANCE:
        raise ValueError(
            f"{name}, T = {T}, {direction}: expected results within {TOLERANCE:.0e} of torch's, got {distance:.1e}. "
            "Compare `transition` with the function of the clone: one of them has changed."
        )
    times = take_turns([ours, *theirs], seconds)
    best = min(times[1:], key=median)
    speedups = [other / own for other, own in zip(best, times[0], strict=True)]
    record = {"kind": name, "T": T, "direction": direction, "milliseconds": median(times[0])}
    record |= {"torch_milliseconds": median(best), "chunk": CHUNKS[times[1:].index(best)], "speedup": median(speedups)}
    record |= {"spread": [min(speedups), max(speedups)], "largest_difference": distance}
    took = (
        f"{record['milliseconds']:8.1f} ms, torch {record['torch_milliseconds']:8.1f} ms in chunks of {record['chunk']}"
    )
    print(
        f"{name:<26} T = {T:<5} {direction:<9} {took}: {record['speedup']:5.1f} x, apart by {distance:.1e}", flush=True
    )
    return record


def row(record: dict[str, Any]) -> str:
    """A record in a line."""
    case = "{kind:<26} T = {T:<5} {direction:<9}".format(**record)
    times = "{milliseconds:8.1f} ms, torch {torch_milliseconds:8.1f} ms in chunks of {chunk}".format(**record)
    return f"{case} {times}: {record['speedup']:5.1f} x, apart by {record['largest_difference']:.1e}"


def load(source: Path, folder: str) -> ModuleType:
    """The file of plain functions alone, since the package imports Triton."""
    spec = spec_from_file_location(f"naive_{folder}", source / "fla" / "ops" / folder / "naive.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problem(kind: Kind, T: int) -> Arrays:
    """Inputs like those that a layer computes: unit keys, decays from 0.9 to 1."""
    generator = np.random.default_rng(0)
    normal = lambda: generator.normal(size=(B, T, HEADS, SIZE))  # noqa: E731
    key = normal()
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    decay = -0.1 * generator.random((B, T, HEADS) if kind.scalar_decay else (B, T, HEADS, SIZE))
    arrays = {"q": normal(), "k": key, "v": normal(), "g": decay}
    if kind.erases:
        arrays["beta"] = generator.random((B, T, HEADS))
    return {name: each.astype(np.float32) for name, each in arrays.items()}


def transition(kind: Kind, q: Any, k: Any, v: Any, g: Any, beta: Any = None) -> Transition:
    """What the functions of the clone compute from these: queries are divided by the root of their size."""
    decay = jnp.exp(g[..., None] if kind.scalar_decay else g)
    query = q * SIZE**-0.5
    if not kind.erases:
        return Transition(decay, k, v, query)
    written = beta[..., None] * k
    return Transition(decay, k, v * beta[..., None], query, decay * written)


def compiled(kind: Kind, arrays: Arrays, direction: str) -> Callable[[], Any]:
    """A call of ours."""
    cell = MatrixRecurrence(HEADS, SIZE, SIZE, scalar_decay=kind.scalar_decay, erases=kind.erases)

    def run(arrays: dict[str, Any]) -> Any:
        xs = transition(kind, **arrays)
        return jax.vmap(lambda xs: unroll(cell, None, xs, engine=Chunked())[1])(xs)

    loss = lambda arrays: jnp.sin(run(arrays)).sum()  # noqa: E731
    program = jax.jit(run if direction == "forward" else jax.grad(loss)).lower(arrays).compile()
    placed = jax.tree.map(jnp.asarray, arrays)
    return lambda: jax.tree.leaves(program(placed))


def torch_call(function: Callable[..., Any], arrays: Arrays, direction: str) -> Callable[[], list[torch.Tensor]]:
    """A call of the clone's function; leaves are in the order of names, as ours are."""
    leaves = {name: torch.from_numpy(each).requires_grad_(direction == "gradient") for name, each in arrays.items()}

    def forward() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [function(**leaves)[0]]

    def gradient() -> list[torch.Tensor]:
        loss = function(**leaves)[0].sin().sum()
        return list(torch.autograd.grad(loss, [leaves[name] for name in sorted(leaves)]))

    return forward if direction == "forward" else gradient


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest over arrays of the largest difference, relative to the largest entry."""
    pairs: Iterator[tuple[np.ndarray, np.ndarray]] = zip(ours, theirs, strict=True)
    return max(float(abs(own - other).max() / abs(other).max()) for own, other in pairs)


if __name__ == "__main__":
    main()
