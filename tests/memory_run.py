"""For `test_cpu`, in a process where memory can be made to run out: a call then ends, and ends in an error."""

import ctypes
import os
import shutil
import sys
from itertools import count
from pathlib import Path

import jax
from random_shapes import Sizes
from test_cpu import HALVES, Call, call_of

from rnnjax.kernels.cpu import library

SHARED = Sizes(1, 3, 9, 4, 1, 160)  # one tile, and work enough for several cores to share it


def main(folder: Path) -> None:
    failing = ctypes.c_int.in_dll(ctypes.CDLL(None), "failing")
    for half in HALVES:
        refused = 0
        for number in count(1):
            call = of_another_library(call_of(half, SHARED), number, folder)
            failing.value = number
            try:
                call.run()
            except jax.errors.JaxRuntimeError as error:
                refused += "rnnjax: out of memory" in str(error)
            if failing.value > 0:  # not so many are asked for
                break
        assert refused >= 2, (
            refused
        )  # for packed weights, and for what the owner of a tile works in; helpers do without
        failing.value = 0


def of_another_library(call: Call, number: int, folder: Path) -> Call:
    """The call, of a library that has kept no memory from calls before."""
    path = os.environ.get(library.VARIABLE) or library.installed()
    copied = shutil.copy(path, folder / f"another_rnnjax_{call.target}_{number}.so")
    name = f"{call.target}_{number}"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(ctypes.CDLL(copied), call.target)), platform="cpu")
    return call._replace(target=name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
