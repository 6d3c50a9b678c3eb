"""This tree against an earlier commit: time, trace and compile time of the same calls, in turn, in one run.

`python -m benchmarks.commits COMMIT` checks the commit out in a temporary folder and builds its CPU kernel. Each
version lives in a process of its own, `commit_server.py`; one works while the other waits.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from common.command_line import command_line, option

from benchmarks import measure, report
from benchmarks.report import JSON, ROOT

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
TRACES = ("trace", "unroll", "unroll again")  # see `commit_server.py`
ANSWERS = (*TRACES, "compile", "forward", "gradient")  # each in milliseconds


parse = command_line(
    __doc__,
    option("commit", help="the earlier version, such as HEAD~1"),
    option("--dtype", choices=["float32", "bfloat16"], default="float32"),
    option("--engines", nargs="+", default=["Fused", "Scan"], help="by name"),
    JSON,
)


def main() -> None:
    options = parse()
    print(report.heading(), flush=True)
    with checkout(options.commit) as old, server(ROOT) as new_server, server(old) as old_server:
        records = [
            compare({"cell": cell, "engine": engine, "shape": shape, "dtype": options.dtype}, old_server, new_server)
            for engine, cell, shape in product(options.engines, CELLS, SHAPES)
        ]
    for engine, direction in product(options.engines, ("forward", "gradient")):
        chosen = [record[direction] for record in records if record["engine"] == engine]
        mean = statistics.geometric_mean(chosen)
        print(f"{engine} {direction}: new over old, geometric mean {mean:.3f}, worst {max(chosen):.3f}")
    for what in (*TRACES, "compile"):
        mean = statistics.geometric_mean([record[what] for record in records])
        print(f"{what}: new over old, geometric mean {mean:.3f}")
    described = {"commit": options.commit, **report.machine(), "records": records}
    report.write(options.json, described)


def compare(case: dict[str, Any], old: Any, new: Any) -> dict[str, Any]:
    """The ratios of one case, medians over rounds in which each version has its turn."""
    rounds = [(ask(old, case), ask(new, case)) for _ in range(ROUNDS)]
    times = {name: list(zip(*((one[name], other[name]) for one, other in rounds), strict=True)) for name in ANSWERS}
    ratios = {name: measure.median_ratio(of_new, of_old) for name, (of_old, of_new) in times.items()}
    milliseconds = {name: statistics.median(of_new) for name, (_, of_new) in times.items()}
    print(
        f"{case['engine']:<13}{case['cell']:<6}{case['shape']!s:<22}"
        + "  ".join(f"{name} {milliseconds[name]:8.2f} ms x{ratio:.3f}" for name, ratio in ratios.items()),
        flush=True,
    )
    return case | ratios | {"milliseconds": milliseconds}


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A temporary folder with the files of the commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


@contextmanager
def server(root: Path) -> Iterator[Any]:
    """A process that measures the version in `root`, whose kernel is built for it."""
    with tempfile.TemporaryDirectory() as build:
        source = next((root / "rnnjax" / "kernels").glob("**/CMakeLists.txt")).parent
        configure = ["cmake", "-S", str(source), "-B", build, f"-DPython_EXECUTABLE={sys.executable}"]
        for command in (configure, ["cmake", "--build", build, "--parallel"]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        library = next(Path(build).glob("librnnjax_cpu.*"))
        environment = os.environ | {"RNNJAX_CPU_KERNEL": str(library), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, str(Path(__file__).with_name("commit_server.py").resolve()), str(root)]
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


if __name__ == "__main__":
    main()
