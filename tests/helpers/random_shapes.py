"""The CPU kernel at random shapes, against an oracle that runs in NumPy: `python tests/random_shapes.py 1000`."""

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax.arrays import carry_dtype
from rnnjax.kernel import Cotangents, Pointwise, Sequences, Weights
from rnnjax.kernels.reference import Reference

MOST = 70  # of B, T, I and H
CHUNK = 4096  # units that the oracle's elementwise step takes at once: one compiled program for all shapes

# Relative to the largest entry, or to 1 where that is larger: of values, and of gradients.
BARS = {"float64": (1e-11, 1e-11), "float32": (1e-6, 2e-6), "bfloat16": (1e-2, 2e-2)}


class Blended(NamedTuple):
    """The state of `Blend`."""

    h: jax.Array
    c: jax.Array
    n: jax.Array


class Blend(rnnjax.AbstractGatedCell):
    """A user's own cell: three fields, two gains, one gate whose u and v are seen apart, and one that sees u alone."""

    state_type = Blended
    input_weight: jax.Array
    recurrent_weight: None = None
    bias: None = None
    gains: tuple[int, int] = (0, 0)
    start: None = None

    def pointwise(self, gains: Any, u: jax.Array, v: jax.Array, state: Blended) -> Blended:
        leak, scale = gains
        i, f, g = u[:3] + v[:3]
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(scale * g)
        n = state.n + jax.nn.sigmoid(leak) * (state.h - state.n)
        return Blended(jnp.tanh(jax.nn.sigmoid(u[3]) * v[3] * c + n * jnp.cos(u[4])), c, n)


def _elementwise(cell: type, **options: Any) -> Pointwise:
    return Pointwise.of(cell(3, 4, key=jax.random.key(0), **options))


SMOOTH = {
    "lstm": _elementwise(rnnjax.LSTM),
    "lstm_options": _elementwise(rnnjax.LSTM, peepholes=True, coupled=True),
    "gru": _elementwise(rnnjax.GRU),
    "gru_without_gains": _elementwise(rnnjax.GRU, bias=False),
    "elman": _elementwise(rnnjax.Elman),
    "own": Pointwise.of(Blend(jnp.zeros((3, 5, 4)))),
}
# A derivative that jumps is another one where float32 has rounded to the other side: these are for float64.
CELLS = SMOOTH | {
    "lstm_clipped": _elementwise(rnnjax.LSTM, peepholes=True, clip=0.8),
    "elman_relu": _elementwise(rnnjax.Elman, activation=jax.nn.relu),
}


class Case(NamedTuple):
    """A problem for both halves of a kernel."""

    title: str
    kernel: rnnjax.CPU
    dtype: str
    pointwise: Pointwise
    weights: Weights
    sequences: Sequences
    dstates: tuple[np.ndarray | None, ...]
    dlast: np.ndarray | None
    wanted: Cotangents


class Sizes(NamedTuple):
    S: int
    B: int
    T: int
    I: int  # noqa: E741
    N: int
    D: int

    @property
    def units(self) -> int:
        return self.N * self.D


def draw(seed: int) -> Case:
    """Case number `seed`: instruction sets, dtypes and cells in turn, all else at random."""
    generator = np.random.default_rng(seed)
    heads = int(generator.choice([1, 1, 1, 2, 3, 4]))
    B, T, I, H = (int(generator.integers(1, 5 if few else MOST, endpoint=True)) for few in generator.random(4) < 0.3)  # noqa: E741
    return draw_at(seed, Sizes(int(generator.integers(1, 4)), B, T, I, heads, max(1, H // heads)))


def draw_at(seed: int, sizes: Sizes) -> Case:
    """The case of these sizes."""
    generator = np.random.default_rng(seed)
    kernel = rnnjax.CPU(rnnjax.InstructionSet(seed % 4))
    dtype = list(BARS)[seed // 4 % 3]
    cells = CELLS if dtype == "float64" else SMOOTH
    name = list(cells)[seed // 12 % len(cells)]
    pointwise = cells[name]
    normal = lambda *shape: generator.normal(size=shape).astype(carry_dtype(dtype))  # noqa: E731
    S, B, T, _, _, _ = sizes
    weights = _weights(generator, normal, sizes, pointwise)
    W, b, R = (np.asarray(leaf, jnp.dtype(dtype)) for leaf in weights[:3])
    weights = weights._replace(W=W, b=b, R=R)
    sequences = _sequences(generator, normal, sizes, pointwise)
    sequences = sequences._replace(xs=np.asarray(sequences.xs, jnp.dtype(dtype)))
    given, wanted = _some(generator, pointwise.fields + 1), _some(generator, 7)
    *dstates, dlast = [
        normal(S, B, *([T] if field < pointwise.fields else [pointwise.fields]), sizes.units) if one else None
        for field, one in enumerate(given)
    ]
    marks = "".join(f" {mark}" for mark in ("length", "resets") if getattr(sequences, mark) is not None)
    title = f"{seed}: {name} {dtype} {kernel.widest.name} {sizes}{marks} given {given} wanted {wanted}"
    asked = Cotangents(Weights(*wanted[:5]), *wanted[5:])
    return Case(title, kernel, dtype, pointwise, weights, sequences, tuple(dstates), dlast, asked)


def _some(generator: np.random.Generator, count: int) -> list[bool]:
    """All of them, as often as not; else some, at least one."""
    chosen = (generator.random(count) < 0.5) | bool(generator.integers(2))
    chosen[generator.integers(count)] = True
    return chosen.tolist()


def _weights(generator: np.random.Generator, normal: Callable, sizes: Sizes, pointwise: Pointwise) -> Weights:
    """Each for all groups, or one for each."""
    S, _, _, I, N, D = sizes  # noqa: E741
    groups = np.where(generator.random(5) < 0.5, S, 1).tolist()
    return Weights(
        normal(groups[0], I, pointwise.gates, sizes.units) / np.sqrt(I, dtype=np.float32),
        normal(groups[1], pointwise.gates, sizes.units) / 2,
        normal(groups[2], N, D, pointwise.gates, D) / np.sqrt(D, dtype=np.float32),
        normal(groups[3], pointwise.gains.num_leaves, sizes.units) / 2,
        normal(groups[4], pointwise.fields, sizes.units) / 2,
    )


def _sequences(generator: np.random.Generator, normal: Callable, sizes: Sizes, pointwise: Pointwise) -> Sequences:
    """Resets lie anywhere: at the first step, at the last, and where nothing is looked at."""
    S, B, T, I, _, _ = sizes  # noqa: E741
    length = generator.integers(0, T, (S, B), np.int32, endpoint=True) if generator.integers(2) else None
    resets = generator.random((S, B, T)) < 0.3 if generator.integers(2) else None
    return Sequences(normal(S, B, T, I), normal(S, B, pointwise.fields, sizes.units) / 2, length, resets)


# The oracle: the equations of `AbstractKernel` in NumPy, step by step, in float64


@lru_cache
def _compiled(pointwise: Pointwise) -> tuple[Callable, Callable]:
    """`pointwise` and its transposed derivative, of rows of CHUNK units."""

    def pull(gains: jax.Array, u: jax.Array, v: jax.Array, before: jax.Array, dafter: jax.Array) -> Any:
        return jax.vjp(pointwise, gains, u, v, before)[1](dafter)

    rows = pointwise.gains.num_leaves, pointwise.gates, pointwise.gates, pointwise.fields, pointwise.fields
    shapes = [jax.ShapeDtypeStruct((count, CHUNK), np.float64) for count in rows]
    return jax.jit(pointwise).lower(*shapes[:4]).compile(), jax.jit(pull).lower(*shapes).compile()


def _by_unit(function: Callable, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """A compiled function of rows of units, on arrays [rows, S, B, H]."""
    shape = arrays[0].shape[1:]
    units = int(np.prod(shape))
    padded = max(units + -units % CHUNK, CHUNK)
    flat = [np.pad(array.reshape(len(array), units), [(0, 0), (0, padded - units)]) for array in arrays]
    chunks = [
        jax.tree.leaves(function(*(array[:, start : start + CHUNK] for array in flat)))
        for start in range(0, padded, CHUNK)
    ]
    return tuple(
        np.concatenate(parts, 1)[:, :units].reshape(len(parts[0]), *shape) for parts in zip(*chunks, strict=True)
    )


def exact(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


class Problem:
    """A case with nothing left out: float64, weights for every group, every mark, fields in front."""

    def __init__(self, case: Case):
        xs, state, length, resets = case.sequences
        S, B, T, _ = xs.shape
        spread = lambda array: np.broadcast_to(exact(array), (S, *array.shape[1:]))  # noqa: E731
        self.W, self.b, self.R, gains, initial = map(spread, case.weights)
        self.xs, self.state = exact(xs), np.moveaxis(exact(state), 2, 0)
        each = lambda array: np.moveaxis(array, 1, 0)[:, :, None].repeat(B, 2)  # noqa: E731
        self.gains, self.initial = each(gains), each(initial)
        valid = np.arange(T) < (np.full((S, B), T) if length is None else length)[:, :, None]
        self.valid = valid[..., None]
        self.fresh = self.valid & (np.zeros_like(valid) if resets is None else resets)[..., None]
        zero = np.zeros((S, B, T, state.shape[3]))
        self.dstates = np.stack([zero if leaf is None else exact(leaf) for leaf in case.dstates])
        self.dlast = np.zeros_like(self.state) if case.dlast is None else np.moveaxis(exact(case.dlast), 2, 0)
        self.step, self.pull = _compiled(case.pointwise)
        self.stored = case.weights.R.dtype

    def by_head(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(*array.shape[:-1], *self.R.shape[1:3])

    def rounded(self, h: np.ndarray) -> np.ndarray:
        """h as its product sees it."""
        return exact(h.astype(self.stored))

    def gates(self, t: int, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """u and v, [G, S, B, H]."""
        u = np.einsum("sbi,sigh->gsbh", self.xs[:, :, t], self.W, optimize=True) + np.moveaxis(self.b, 1, 0)[:, :, None]
        v = np.einsum("sbnd,sndge->gsbne", self.by_head(self.rounded(before[0])), self.R, optimize=True)
        return u, v.reshape(u.shape)


def oracle(case: Case) -> tuple[tuple[list[np.ndarray], np.ndarray], Cotangents]:
    """States field by field and the last one; all cotangents."""
    problem = Problem(case)
    state, states, befores = problem.state, [], []
    for t in range(problem.xs.shape[2]):
        befores.append(np.where(problem.fresh[:, :, t], problem.initial, state))
        (after,) = _by_unit(problem.step, problem.gains, *problem.gates(t, befores[t]), befores[t])
        state = np.where(problem.valid[:, :, t], after, state)
        states.append(state)
    over_time = list(np.stack([problem.state, *states], 3)[:, :, :, 1:])
    return (over_time, np.moveaxis(state, 0, 2)), _backward(problem, befores)


def _backward(problem: Problem, befores: list[np.ndarray]) -> Cotangents:
    dW, db, dR = np.zeros_like(problem.W), np.zeros_like(problem.b), np.zeros_like(problem.R)
    dgains, dinitial = np.zeros_like(problem.gains), np.zeros_like(problem.initial)
    dxs, dstate = np.zeros_like(problem.xs), problem.dlast
    for t, before in reversed(list(enumerate(befores))):
        dafter, valid, fresh = dstate + problem.dstates[:, :, :, t], problem.valid[:, :, t], problem.fresh[:, :, t]
        pulled = _by_unit(problem.pull, problem.gains, *problem.gates(t, before), before, dafter)
        dgain, du, dv, dbefore = (np.where(valid, leaf, 0) for leaf in pulled)
        dv = problem.by_head(dv)
        dbefore[0] += np.einsum("gsbne,sndge->sbnd", dv, problem.R, optimize=True).reshape(before[0].shape)
        dxs[:, :, t] = np.einsum("gsbh,sigh->sbi", du, problem.W, optimize=True)
        dW += np.einsum("sbi,gsbh->sigh", problem.xs[:, :, t], du, optimize=True)
        dR += np.einsum("sbnd,gsbne->sndge", problem.by_head(problem.rounded(before[0])), dv, optimize=True)
        db += np.moveaxis(du.sum(2), 0, 1)
        dgains += dgain
        dinitial += np.where(fresh, dbefore, 0)
        dstate = np.where(fresh, 0, np.where(valid, dbefore, dafter))
    by_group = [np.moveaxis(leaf.sum(2), 0, 1) for leaf in (dgains, dinitial)]
    return Cotangents(Weights(dW, db, dR, *by_group), dxs, np.moveaxis(dstate, 0, 2))


# Both, and how far they are apart


def by_kernel(case: Case, kernel: rnnjax.AbstractKernel) -> Any:
    """What a kernel gives: states and the last one with nothing kept, and with all that is needed; the cotangents.

    Where nothing is kept, the fields are seen whose states have a cotangent; else all are.
    """
    seen = tuple(leaf is not None for leaf in case.dstates)

    def run(weights: Weights, sequences: Sequences, dstates: Any, dlast: Any) -> Any:
        keep = kernel.keeps(case.pointwise, weights)
        plain = kernel.forward(case.pointwise, weights, sequences, 0, seen)
        kept = kernel.forward(case.pointwise, weights, sequences, keep, (True,) * len(seen))
        backward = partial(kernel.backward, case.pointwise, weights, sequences, kept)
        return plain[:2], kept[:2], backward(dstates, dlast, case.wanted)

    refusal = kernel.refusal(case.pointwise, case.weights)  # to ask is what loads the library
    assert refusal is None, refusal
    operands = jax.tree.map(jnp.asarray, (case.weights, case.sequences, case.dstates, case.dlast))
    return jax.jit(run).lower(*operands).compile()(*operands)


def errors(case: Case, kernel: rnnjax.AbstractKernel) -> tuple[float, float]:
    """The largest error of a value and that of a gradient, each relative to the largest entry, or to 1."""
    plain, kept, cotangents = by_kernel(case, kernel)
    (states, last), dexpected = oracle(case)
    seen = [None if leaf is None else states[field] for field, leaf in enumerate(case.dstates)]
    wanted = jax.tree.map(lambda want, leaf: leaf if want else None, case.wanted, dexpected)
    return max(_apart(plain, (seen, last)), _apart(kept, (states, last))), _apart(cotangents, wanted)


def _apart(got: Any, expected: Any) -> float:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(_error(np.asarray(one, np.float64), other) for one, other in pairs)


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    error = float(np.max(np.abs(got - expected), initial=0)) / scale
    return error if np.isfinite(error) else np.inf


def outside(case: Case, found: tuple[float, float]) -> bool:
    """Whether the errors are larger than allowed."""
    return any(error > bar for error, bar in zip(found, BARS[case.dtype], strict=True))


def main(count: int) -> int:
    """Run so many cases, print those that are outside of the bars, and the largest errors; how many are outside.

    A network may amplify what is rounded off, in whichever way it is computed, as one does whose single units feed
    themselves with weights above one. So beside a case that is outside stands what the reference gives in its dtype.
    """
    largest, failed = dict.fromkeys(BARS, (0.0, 0.0)), 0
    for seed in range(count):
        case = draw(seed)
        found = errors(case, case.kernel)
        largest[case.dtype] = tuple(map(max, largest[case.dtype], found))
        if outside(case, found):
            failed += 1
            print(f"{case.title}: {both(found)}; the reference's {both(errors(case, Reference()))}", flush=True)
    parts = [f"{dtype}: {both(worst)}" for dtype, worst in largest.items()]
    print(f"{count} random shapes, {failed} outside of the bars; largest errors, {'; '.join(parts)}")
    return failed


def both(found: tuple[float, float]) -> str:
    return f"values {found[0]:.1e}, gradients {found[1]:.1e}"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    sys.exit(1 if main(int(sys.argv[1])) else 0)
