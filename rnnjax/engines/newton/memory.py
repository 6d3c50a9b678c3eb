"""The memory of the Jacobians of an iteration."""

import math
import os
from pathlib import Path

import jax

COPIES, DAMPED_COPIES = 4, 8  # of all Jacobians, at the same time in an iteration
VECTORS = 8  # of the size of all states, beside them
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def shortage(shape: tuple[int, ...], itemsize: int, damped: bool, remedy: str) -> str | None:
    """The message for Jacobians of this shape, [..., n, n], that do not fit into memory; None if they do."""
    *many, rows, columns = shape
    copies = DAMPED_COPIES if damped else COPIES
    needed, available = (copies * columns + VECTORS) * math.prod(shape[:-1]) * itemsize, memory()
    if available is None or needed <= available:
        return None
    return (
        f"its Jacobians, {' x '.join(map(str, many))} of {rows} x {columns}, and the scan of them take "
        f"{_gigabytes(needed)}, and there are {_gigabytes(available)}. {remedy}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 1e10 else f"{size / 1e9:.2g} GB"


def memory() -> int | None:
    """Bytes of memory of the default device, or of this machine or container; None if unknown."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    known = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if LIMIT.is_file() and LIMIT.read_text().strip().isdigit():
        known.append(int(LIMIT.read_text()))
    return min(known, default=None)
