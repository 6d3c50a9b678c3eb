"""Whether the Jacobians of an iteration fit into memory."""

import math
import os
from pathlib import Path

import jax

COPIES, DAMPED_COPIES = 4, 8  # of all Jacobians that an iteration holds at once
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def shortage(shape: tuple[int, ...], itemsize: int, damped: bool) -> str | None:
    """What is wrong with Jacobians of this shape, [..., n, n], and what to do; None if they fit."""
    copies = DAMPED_COPIES if damped else COPIES
    needed, available = copies * math.prod(shape) * itemsize, memory()
    if available is None or needed <= available:
        return None
    *many, rows, columns = shape
    return (
        f"its Jacobians, {' x '.join(map(str, many))} of {rows} x {columns}, and the scan of them take "
        f"{needed / 1e9:.0f} GB, and there are {available / 1e9:.0f} GB. "
        "Use Newton(Diagonal()), fewer or shorter sequences, or Scan()"
    )


def memory() -> int | None:
    """Bytes of memory of the device that computes, or of this machine or container; None where nobody knows."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    known = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if LIMIT.is_file() and LIMIT.read_text().strip().isdigit():
        known.append(int(LIMIT.read_text()))
    return min(known, default=None)
