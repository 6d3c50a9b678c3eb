"""What the benchmarks share around their measurements: options, the machine they run on, and files of records."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from common.command_line import option

from rnnjax.training.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[1]  # where `python -m benchmarks.NAME` is called

JSON = option("--json", type=Path, metavar="FILE", help="write the records, with the machine, its cores and versions")
QUICK = option("--quick", action="store_true", help="fewer or smaller shapes, short measurements")
PLOT = option("--plot", type=Path, metavar="FILE", help="draw the ratios to Scan")
TABLE = option("--table", type=Path, metavar="FILE", help="print the records of such a file, and measure nothing")


def machine() -> dict[str, Any]:
    """The machine and the versions, as fields of a record."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    device = jax.devices()[0]
    name = processor if device.platform == "cpu" else f"{device.device_kind}, {processor}"
    versions = {"jax": jax.__version__, "python": platform.python_version()}
    return {"machine": name, "cores": cores(), **versions}


def cores() -> int:
    """How many cores this process may use: JAX takes them all, and so must what it is compared with."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_under_load() -> dict[str, Any]:
    """The same, and how busy the machine is with other work."""
    return {**machine(), "load_average": os.getloadavg()[0]}


def heading() -> str:
    """The first line of a benchmark: the machine, the versions, and how busy it is with other work."""
    about = machine()
    load = " ".join(f"{average:.2f}" for average in os.getloadavg())
    versions = f"JAX {about['jax']}, Python {about['python']}"
    return f"{about['machine']}, {about['cores']} cores, {versions}, load average {load}"


def write(path: Path | None, content: Any) -> None:
    """Write `content` as JSON, at once: a run that is cut short leaves the old file whole. None: nothing is written."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def keep(path: Path | None, record: dict[str, Any], names: Sequence[str]) -> None:
    """Add a record to a file of records, in place of one that has the same values in the fields `names`."""
    if path is not None:
        held = json.loads(path.read_text()) if path.exists() else []
        write(path, [*(other for other in held if any(other[name] != record[name] for name in names)), record])
