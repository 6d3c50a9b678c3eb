"""This tree against an earlier commit: time, trace and compile time of the same calls, in turn, in one run.

`python benchmarks/commits.py COMMIT` checks the commit out in a temporary folder and builds its CPU kernel. Each
version lives in a process of its own; one works while the other waits. Only names that both versions have are used.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CELLS = ("LSTM", "GRU", "Elman")
SHAPES = (  # B, T, I, H
    (1, 256, 128, 128),
    (16, 256, 128, 128),
    (32, 128, 256, 256),
    (64, 35, 200, 200),
    (1, 256, 32, 32),
    (8, 500, 64, 64),
    (1, 100, 512, 512),
)
ROUNDS = 7
WINDOW = 0.15  # seconds of calls in each turn, of which the median is taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", help="the earlier version")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--engines", nargs="+", default=["Fused", "Scan"], help="by name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    if options.commit is None:
        parser.error("commit: expected an earlier version, such as HEAD~1")
    with checkout(options.commit) as old, server(ROOT) as new_server, server(old) as old_server:
        records = [
            compare({"cell": cell, "engine": engine, "shape": shape, "dtype": options.dtype}, old_server, new_server)
            for engine, cell, shape in product(options.engines, CELLS, SHAPES)
        ]
    for engine, direction in product(options.engines, ("forward", "gradient")):
        chosen = [record[direction] for record in records if record["engine"] == engine]
        print(f"{engine} {direction}: new over old, geometric mean {mean(chosen):.3f}, worst {max(chosen):.3f}")
    for what in ("trace", "compile"):
        print(f"{what}: new over old, geometric mean {mean([record[what] for record in records]):.3f}")
    if options.json:
        described = {"commit": options.commit, "machine": machine(), "cores": os.cpu_count(), "records": records}
        options.json.write_text(json.dumps(described, indent=1) + "\n")


def compare(case: dict[str, Any], old: Any, new: Any) -> dict[str, Any]:
    """The ratios of one case, medians over rounds in which each version has its turn."""
    made = [{"case": case, "trace": [], "compile": [], "forward": [], "gradient": []} for _ in range(2)]
    for _ in range(ROUNDS):
        for answers, process in zip(made, (old, new), strict=True):
            for name, milliseconds in ask(process, case).items():
                answers[name].append(milliseconds)
    ratios = {
        name: statistics.median(n / o for o, n in zip(made[0][name], made[1][name], strict=True))
        for name in ("trace", "compile", "forward", "gradient")
    }
    milliseconds = {name: statistics.median(made[1][name]) for name in ratios}
    print(
        f"{case['engine']:<13}{case['cell']:<6}{case['shape']!s:<22}"
        + "  ".join(f"{name} {milliseconds[name]:8.2f} ms x{ratio:.3f}" for name, ratio in ratios.items()),
        flush=True,
    )
    return case | ratios | {"milliseconds": milliseconds}


def mean(ratios: list[float]) -> float:
    return statistics.geometric_mean(ratios)


def machine() -> str:
    """The processor's model."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A folder with the files of the commit, its kernel built."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


@contextmanager
def server(root: Path) -> Iterator[Any]:
    """A process that measures the version in `root`."""
    with tempfile.TemporaryDirectory() as build:
        source = next((root / "rnnjax" / "kernels").glob("**/CMakeLists.txt")).parent
        configure = ["cmake", "-S", str(source), "-B", build, f"-DPython_EXECUTABLE={sys.executable}"]
        for command in (configure, ["cmake", "--build", build, "--parallel"]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        library = next(Path(build).glob("librnnjax_cpu.*"))
        environment = os.environ | {"PYTHONPATH": str(root), "RNNJAX_CPU_KERNEL": str(library), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        process = subprocess.Popen(
            command, env=environment, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def ask(process: Any, case: dict[str, Any]) -> dict[str, float]:
    """The milliseconds of one turn of one case."""
    process.stdin.write(json.dumps(case) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process that measures {case} has ended; its message is above")
    return json.loads(line)


def serve() -> None:
    """Answer one case a line: tracing and compiling anew each time, calls of the programs of the first time."""
    import jax  # the version under test is known only now
    import jax.numpy as jnp
    import numpy as np

    import rnnjax

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
        compiled = programs.setdefault(line, compiled)
        for name, program in zip(("forward", "gradient"), compiled, strict=True):
            answer[name] = window(lambda program=program, cell=cell, xs=xs: jax.block_until_ready(program(cell, xs)))
        print(json.dumps(answer), flush=True)


def window(call: Any) -> float:
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
