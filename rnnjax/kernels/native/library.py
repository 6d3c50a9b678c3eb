"""The compiled library of the CPU kernels: found where pip installed it, loaded once, and registered with JAX."""

import ctypes
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import jax

from ..recurrence.pointwise.operations import MEANINGS

VARIABLE = "RNNJAX_CPU_KERNEL"  # "off", or the path of another build of the library
ENTRY_POINTS = (
    "rnnjax_forward",
    "rnnjax_backward",
    "rnnjax_linear_scan",
    "rnnjax_matrix_scan",
    "rnnjax_matrix_scan_backward",
    "rnnjax_prepared",
)
NOT_BUILT = (  # a plain `pip install` would take the wheel without the library again, from the index or pip's cache
    "it was not built when rnnjax was installed. Install GCC or Clang, then run `pip install --force-reinstall "
    "--no-deps --no-cache-dir --no-binary rnnjax rnnjax`, or `pip install .` in a checkout"
)
INTERFACE = 7  # the version of the interface between Python and C++, as in interface.h


def custom_call(entry_point: str) -> str:
    """The name that programs call an entry point by: an exported one never meets a library of another interface."""
    return f"{entry_point}_v{INTERFACE}"


CUSTOM_CALLS = tuple(map(custom_call, ENTRY_POINTS))  # what a program holds that runs by the library


@cache
def absence() -> str | None:
    """Why the library cannot be used; None once it is loaded."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() == "off":
        return f"{VARIABLE}={chosen} has switched it off"
    path = Path(chosen).resolve() if chosen else installed()  # dlopen takes a bare name for one of the system's
    if chosen and not Path(chosen).is_file():
        return f"{VARIABLE}: expected `off` or the path of a library, got {chosen}, which is no file"
    if path is None or not path.is_file():
        return NOT_BUILT
    try:
        library = ctypes.CDLL(os.fspath(path))
        interface = library.rnnjax_interface()
        library.rnnjax_operations.restype = ctypes.c_char_p
        operations = library.rnnjax_operations().decode().split()
    except (OSError, AttributeError) as error:
        return f"{path} does not load: {error}"
    if interface != INTERFACE or operations != list(MEANINGS):
        return f"{path} was built from another version of rnnjax. Install rnnjax again"
    for name in ENTRY_POINTS:
        jax.ffi.register_ffi_target(custom_call(name), jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return None


def installed() -> Path | None:
    """Where pip installs the library: beside this file, unless it is an editable installation."""
    beside = Path(__file__).with_name("librnnjax_cpu.so")
    if beside.is_file():
        return beside
    try:
        return Path(str(distribution("rnnjax").locate_file("rnnjax/kernels/native/librnnjax_cpu.so")))
    except PackageNotFoundError:
        return None
