"""Prints a digest of both halves of a matrix-state recurrence, by the number of threads that `NPROC` sets."""

import hashlib

import jax
import numpy as np

from rnnjax.cells import Transition
from rnnjax.kernels.matrix_scan import cpu
from rnnjax.kernels.matrix_scan.contract import Operands

B, T, N, K, V = 1, 400, 2, 33, 70  # two heads, so that their columns are divided, and work for several threads


def run(operands: Operands) -> object:
    ys, last = cpu.forward(operands, reads_before=False)
    return ys, last, cpu.backward(operands, ys, last, reads_before=False, needs_gradient=(True,) * 7)


def main() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=(B, T, N, size)).astype("float32") / 8 for size in (K, K, V, K, K, K)]
    operands = Operands(Transition(*rows), np.ones((B, N, K, V), "float32"), None, None, None)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.jit(run)(operands)):
        assert np.isfinite(leaf).all()
        digest.update(np.asarray(leaf).tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
