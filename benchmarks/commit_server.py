"""The process in which `commits.py` measures one version of rnnjax: `python commit_server.py FOLDER`.

It imports nothing else of the project, and uses only names that all versions have. Each line of its input is a case,
and is answered by a line of milliseconds:

    trace               of a batch and of its gradient, when nothing has been traced before
    unroll              to trace `jax.jit(unroll)` of one sequence, of a length that has not been traced before
    unroll again        the same of a length that has, as where an outer function is traced once more
    compile             of the batch and of its gradient
    forward, gradient   to run them
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, sys.argv[1])
sys.meta_path.insert(0, PathFinder)  # ahead of the finder of an editable installation, which has a version of its own

import rnnjax  # noqa: E402

WINDOW = 0.15  # seconds of calls in each turn, of which the median is taken
TRACES = 15  # of `unroll`, in each turn
LENGTHS = count(1000)  # of sequences, each used once


def main() -> None:
    """Answer one case a line: tracing and compiling anew each time, calls of the programs of the first time."""
    assert Path(sys.argv[1]) in Path(rnnjax.__file__).parents, rnnjax.__file__
    programs: dict[str, list[Any]] = {}
    for line in sys.stdin:
        case = json.loads(line)
        (B, T, I, H), dtype = case["shape"], jnp.dtype(case["dtype"])  # noqa: E741
        cell = getattr(rnnjax, case["cell"])(I, H, key=jax.random.key(0), dtype=dtype)
        xs = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, I)), dtype)
        engine = getattr(rnnjax, case["engine"])()

        def forward(cell: Any, xs: Any, engine: Any = engine) -> Any:
            return jax.vmap(lambda xs: rnnjax.unroll(cell, None, xs, engine=engine))(xs)

        def loss(cell: Any, xs: Any, forward: Any = forward) -> Any:
            return forward(cell, xs)[1].astype(jnp.float32).sum()

        functions = forward, jax.grad(loss)
        jax.clear_caches()  # of traces; programs that are compiled stay
        start = time.perf_counter()
        traced = [jax.jit(function).trace(cell, xs) for function in functions]
        middle = time.perf_counter()
        compiled = [program.lower().compile() for program in traced]
        answer = {"trace": 1e3 * (middle - start), "compile": 1e3 * (time.perf_counter() - middle)}
        lengths = [next(LENGTHS) for _ in range(TRACES)]
        for name, given in (("unroll", lengths), ("unroll again", lengths[:1] * TRACES)):
            answer[name] = statistics.median(trace_unroll(cell, engine, length, I) for length in given)
        compiled = programs.setdefault(line, compiled)
        for name, program in zip(("forward", "gradient"), compiled, strict=True):
            answer[name] = window(lambda program=program, cell=cell, xs=xs: jax.block_until_ready(program(cell, xs)))
        print(json.dumps(answer), flush=True)


def trace_unroll(cell: Any, engine: Any, length: int, inputs: int) -> float:
    """The milliseconds of one trace of a function that JAX has not seen."""
    program = jax.jit(lambda cell, xs: rnnjax.unroll(cell, None, xs, engine=engine))
    xs = jax.ShapeDtypeStruct((length, inputs), cell.input_type().dtype)
    start = time.perf_counter()
    program.trace(cell, xs)
    return 1e3 * (time.perf_counter() - start)


def window(call: Callable[[], Any]) -> float:
    """The median milliseconds of the calls of one turn, the first left out."""
    times, end = [], time.perf_counter() + WINDOW
    call()
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    main()
