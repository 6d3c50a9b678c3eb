"""The compiled library of the CPU kernel: found where pip has put it, loaded once, its entry points named to JAX."""

import ctypes
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import jax

VARIABLE = "RNNJAX_CPU_KERNEL"  # "off", or the path of another build of the library
ENTRY_POINTS = ("rnnjax_forward", "rnnjax_backward")


@cache
def absence() -> str | None:
    """Why there is no library here; None once it is loaded."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return f"{VARIABLE}=off has switched it off"
    path = Path(chosen) if chosen else _installed()
    if path is None or not path.is_file():
        where = f"{VARIABLE}={chosen} is no file" if chosen else "the library was not built when rnnjax was installed"
        return f"{where}. Install rnnjax by pip where there is a C++ compiler (GCC or Clang)"
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        return f"the library does not load: {error}"
    for name in ENTRY_POINTS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return None


def _installed() -> Path | None:
    """Where pip puts the library, be the package itself installed or merely linked."""
    try:
        return Path(str(distribution("rnnjax").locate_file("rnnjax/kernels/cpu/librnnjax_cpu.so")))
    except PackageNotFoundError:
        return None
