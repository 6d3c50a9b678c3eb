"""For `test_cpu`, in a process where memory can be made to run out: a call then ends, and ends in an error."""

import ctypes
import os
import shutil
import sys
from itertools import count
from pathlib import Path

import grid
import jax
import numpy as np
from cpu_calls import HALVES, Call, call_of
from random_shapes import Sizes

from rnnjax.kernels.native import library

ROUNDS = 10
LIBRARIES = count()
SHARED = Sizes(1, 3, 9, 4, 1, 160)  # one tile, and work enough for several cores to share it


def main(folder: Path) -> None:
    for half in HALVES:
        call = with_numbers(call_of(half, SHARED))
        # The packed weights, and what the owner of a tile works in. Helpers can do without; and as they ask meanwhile,
        # it is chance whether the allocation of a number is the owner's: on a busy machine it may take more rounds.
        assert any(refusals(call, folder) >= 2 for _ in range(ROUNDS)), half


def refusals(call: Call, folder: Path) -> int:
    """How many calls fail when one allocation does, be it the first, the second, and so on; the others are right."""
    failing = ctypes.c_int.in_dll(ctypes.CDLL(None), "failing")
    failing.value = 0
    expected = of_another_library(call, folder).run()
    refused = 0
    for number in count(1):
        made = of_another_library(call, folder)
        failing.value = number
        try:
            got = made.run()
        except jax.errors.JaxRuntimeError as error:
            if "rnnjax: out of memory" not in str(error):
                raise
            refused += 1
        else:
            grid.assert_close(got, expected)
        if failing.value > 0:  # not so many are asked for
            return refused
    raise AssertionError("no end")


def with_numbers(call: Call) -> Call:
    """The call with weights, inputs and cotangents that are not zero."""
    generator = np.random.default_rng(0)
    draw = lambda array: generator.normal(size=array.shape) / 10 if array.dtype == np.float64 else array  # noqa: E731
    return call._replace(arguments={name: draw(array) for name, array in call.arguments.items()})


def of_another_library(call: Call, folder: Path) -> Call:
    """The call, of a library that has kept no memory from calls before."""
    number, path = next(LIBRARIES), os.environ.get(library.VARIABLE) or library.installed()
    copied = shutil.copy(path, folder / f"another_rnnjax_{call.target}_{number}.so")
    name = f"{call.target}_{number}"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(ctypes.CDLL(copied), call.target)), platform="cpu")
    return call._replace(target=name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
