"""Matrix-state recurrences at random shapes, and a loop in NumPy: `python matrix_scans.py 300` for more of them."""

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.cells import Transition
from rnnjax.kernels import InstructionSet
from rnnjax.kernels.matrix_scan import cpu
from rnnjax.kernels.matrix_scan.contract import Operands

BARS = {"float64": 1e-11, "float32": 2e-6}  # relative to the largest entry, or to 1 where that is larger
INSTRUCTIONS = tuple(InstructionSet)[:3]
TOGETHER = 20  # cases of one program


class Case(NamedTuple):
    """A problem for both halves of the kernel."""

    title: str
    operands: Operands  # of a batch
    dys: Any
    dlast: Any
    reads_before: bool
    needs_gradient: tuple[bool, ...]
    instructions: InstructionSet

    @property
    def dtype(self) -> str:
        return self.operands.state.dtype.name

    def run(self, operands: Operands, dys: Any, dlast: Any) -> Any:
        """Both halves, by the kernel."""
        how: dict[str, Any] = {"reads_before": self.reads_before, "max_instruction_set": self.instructions}
        backward = cpu.backward(operands, dys, dlast, **how, needs_gradient=self.needs_gradient)
        return cpu.forward(operands, **how), backward

    def expected(self) -> Any:
        results, gradients = by_loop(self.operands, self.dys, self.dlast, reads_before=self.reads_before)
        leaves = jax.tree.leaves(gradients)
        needs = self.needs_gradient[: len(leaves)]
        return results, [leaf for leaf, needed in zip(leaves, needs, strict=True) if needed]


def draw(seed: int, *, most: int = 40) -> Case:
    """Instruction sets and dtypes in turn, all else at random: any sizes from 1 on; zero and negative decays."""
    generator = np.random.default_rng(seed)
    dtype = list(BARS)[seed // 3 % 2]
    few = lambda: int(generator.integers(1, generator.choice([3, 9, most]), endpoint=True))  # noqa: E731
    B, N = generator.integers(1, 4, 2).tolist()
    T, K, V = few() - int(generator.random() < 0.1), few(), few()
    scalar, erases, own, resets, learned, reads_before = (generator.random(6) < 0.5).tolist()
    normal: Any = lambda *shape: generator.normal(size=shape).astype(dtype)  # noqa: E731
    decay: Any = generator.uniform(-0.3, 1, (B, T, N, 1 if scalar else K)) * (generator.random((B, T, N, 1)) > 0.1)
    keys = [normal(B, T, N, K) / np.sqrt(K, dtype=dtype) for _ in range(4)]
    steps = Transition(
        decay.astype(dtype),
        keys[0],
        normal(B, T, N, V),
        keys[1],
        keys[2] / 2 if erases else None,
        keys[3] / 2 if erases and own else None,
    )
    flags: Any = generator.random((B, T)) < 0.3 if resets else None
    start = normal(B, N, K, V) if resets and learned else None
    operands = Operands(steps, normal(B, N, K, V), start, flags, draw_length(seed, B, T))
    count = len(jax.tree.leaves(numbers(operands)))
    needs = (generator.random(count) < 0.8) | bool(generator.integers(2))
    needs[generator.integers(count)] = True
    needed = (*needs.tolist(), *(False for leaf in operands[3:] if leaf is not None))
    title = (
        f"{seed}: {dtype} B {B} T {T} N {N} K {K} V {V} {scalar=} {erases=} {own=} {resets=} {learned=} "
        f"{reads_before=} length {operands.length}"
    )
    return Case(title, operands, normal(B, T, N, V), normal(B, N, K, V), reads_before, needed, INSTRUCTIONS[seed % 3])


def numbers(operands: Operands) -> Operands:
    """The operands that may have a gradient."""
    return operands._replace(resets=None, length=None)


def draw_length(seed: int, B: int, T: int) -> Any:
    """The lengths of some cases, some of them out of range; None in the others."""
    generator = np.random.default_rng((seed, 1))
    return generator.integers(-1, T + 2, B).astype("int32") if generator.random() < 0.4 else None


def by_loop(operands: Operands, dys: Any, dlast: Any, *, reads_before: bool) -> Any:
    """What the steps emit and the last state, and the gradients of all operands, step by step in float64."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), numbers(operands))
    (decay, key, value, query, erase, erase_key), state, start, _, _ = wide
    write_key = key if erase_key is None else erase_key
    B, T = value.shape[:2]
    length = np.full(B, T) if operands.length is None else operands.length
    valid = np.arange(T)[:, None, None, None, None] < length[:, None, None, None]  # of each step, for [B, N, K, V]
    flags = np.zeros((B, T), bool) if operands.resets is None else operands.resets & valid[:, :, 0, 0, 0].T
    fresh = np.zeros_like(state) if start is None else start
    outer = lambda rows, columns: rows[..., :, None] * columns[..., None, :]  # noqa: E731
    S, befores, afters, found, ys = state, [], [], [], np.zeros(value.shape)
    for t in range(value.shape[1]):
        before = np.where(flags[:, t, None, None, None], fresh, S)
        z = np.zeros_like(value[:, t]) if erase is None else np.einsum("bnkv,bnk->bnv", before, erase[:, t])
        after = decay[:, t, :, :, None] * before + outer(key[:, t], value[:, t]) - outer(write_key[:, t], z)
        S = np.where(valid[t], after, before)
        ys[:, t] = np.where(valid[t, :, 0], np.einsum("bnkv,bnk->bnv", before if reads_before else S, query[:, t]), 0)
        befores.append(before)
        afters.append(S)
        found.append(z)
    gradients = jax.tree.map(np.zeros_like, wide)
    arriving = np.asarray(dlast, np.float64)
    for t in reversed(range(T)):
        dy, before, z, to = np.where(valid[t, :, 0], dys[:, t], 0.0), befores[t], found[t], gradients.steps
        read = outer(query[:, t], dy)
        G = np.where(valid[t], arriving if reads_before else arriving + read, 0)  # of the step: none, if it is ignored
        to.query[:, t] = np.einsum("bnkv,bnv->bnk", before if reads_before else afters[t], dy)
        to.key[:, t] = np.einsum("bnkv,bnv->bnk", G, value[:, t])
        to.value[:, t] = np.einsum("bnkv,bnk->bnv", G, key[:, t])
        by_decay = (G * before).sum(-1)
        to.decay[:, t] = by_decay if decay.shape[-1] > 1 else by_decay.sum(-1, keepdims=True)
        dbefore = decay[:, t, :, :, None] * G
        if erase is not None:
            dz = -np.einsum("bnkv,bnk->bnv", G, write_key[:, t])
            (to.key if erase_key is None else to.erase_key)[:, t] -= np.einsum("bnkv,bnv->bnk", G, z)
            to.erase[:, t] = np.einsum("bnkv,bnv->bnk", before, dz)
            dbefore = dbefore + outer(erase[:, t], dz)
        dbefore = dbefore + read if reads_before else dbefore
        is_fresh = flags[:, t, None, None, None]
        if start is not None:
            gradients.start[...] += np.where(is_fresh, dbefore, 0)
        arriving = np.where(valid[t], np.where(is_fresh, 0, dbefore), arriving)
    return (ys, S), gradients._replace(state=arriving)


def errors(case: Case, made: Any) -> list[float]:
    """How far each array is from that of the loop, relative to the bar of its dtype."""
    expected = jax.tree.leaves(case.expected())
    found = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(made)]
    assert [leaf.shape for leaf in found] == [leaf.shape for leaf in expected], case.title
    scaled = [
        np.max(np.abs(one - other), initial=0) / max(1, np.max(np.abs(other), initial=0))
        for one, other in zip(found, expected, strict=True)
    ]
    return [float(error) / BARS[case.dtype] for error in scaled]


def by_kernel(cases: Iterable[Case]) -> list[tuple[Case, Any]]:
    """Each case, and what the kernel makes of it: all by one program."""
    cases = list(cases)
    run = jax.jit(lambda given: [case.run(*each) for case, each in zip(cases, given, strict=True)])
    return list(zip(cases, run([(case.operands, case.dys, case.dlast) for case in cases]), strict=True))


def main(count: int) -> None:
    worst = 0.0
    for first in range(0, count, TOGETHER):
        for case, made in by_kernel(map(draw, range(first, min(count, first + TOGETHER)))):
            found = max(errors(case, made))
            worst = max(worst, found)
            if not found <= 1:
                sys.exit(f"{case.title}: {found:.3g} times the bar")
    print(f"{count} cases, the worst at {worst:.2g} of its bar")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(int(sys.argv[1]))
