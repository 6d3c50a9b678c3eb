"""The CPU kernel at random shapes, against an oracle that runs in NumPy: `python random_shapes.py 1000`."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import grid
import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax.arrays import carry_dtype
from rnnjax.kernels.recurrence.contract import Cotangents, KernelPlan, NeedsGradient, Pointwise, Sequences, Weights
from rnnjax.kernels.recurrence.reference import Reference

MOST, FEW = 70, 5  # of B, T, I and H
CHUNK = 1024  # units that the oracle's elementwise step takes at once: one compiled program for all shapes
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}  # it runs often
TOGETHER = 40  # cases of one program

# Relative to the largest entry, or to 1 where that is larger: of values, and of gradients.
BARS = {"float64": (1e-11, 1e-11), "float32": (1e-6, 2e-6), "bfloat16": (1e-2, 2e-2)}


class Blended(NamedTuple):
    """The state of `Blend`."""

    h: jax.Array
    c: jax.Array
    n: jax.Array


class Blend(rnnjax.AbstractGatedCell):
    """A user's own cell: three fields, two unit parameters, a gate whose u and v are seen apart, and one of u alone."""

    state_type = Blended
    gates = "ifgoz"
    input_weight: jax.Array
    recurrent_weight: None = None
    bias: None = None
    leak_and_scale: tuple[int, int] = (0, 0)
    initial_state: None = None

    @property
    def unit_parameters(self) -> tuple[int, int]:
        return self.leak_and_scale

    def pointwise(self, parameters: Any, u: jax.Array, v: jax.Array, state: Blended) -> Blended:
        leak, scale = parameters
        i, f, g = u[:3] + v[:3]
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(scale * g)
        n = state.n + jax.nn.sigmoid(leak) * (state.h - state.n)
        return Blended(jnp.tanh(jax.nn.sigmoid(u[3]) * v[3] * c + n * jnp.cos(u[4])), c, n)


SMOOTH: dict[str, Callable[..., rnnjax.AbstractGatedCell]] = {
    "lstm": partial(rnnjax.LSTM, 3, 4),
    "lstm_options": partial(rnnjax.LSTM, 3, 4, peepholes=True, coupled=True),
    "gru": partial(rnnjax.GRU, 3, 4),
    "gru_without_bias": partial(rnnjax.GRU, 3, 4, bias=False),
    "elman": partial(rnnjax.Elman, 3, 4),
    "own": lambda *, key: Blend(np.zeros((3, 5 * 4))),  # noqa: ARG005
}
# A derivative that jumps is another one where float32 has rounded to the other side: these are for float64.
CELLS = SMOOTH | {
    "lstm_clipped": partial(rnnjax.LSTM, 3, 4, peepholes=True, clip=0.8),
    "elman_relu": partial(rnnjax.Elman, 3, 4, activation=jax.nn.relu),
}


@grid.once
def pointwise_of(cell: str) -> Pointwise:
    """The elementwise step of a cell of this name."""
    return Pointwise.of(CELLS[cell](key=jax.random.key(0)))


class Case(NamedTuple):
    """A problem for both halves of a kernel."""

    title: str
    kernel: rnnjax.kernels.AbstractKernel
    dtype: str
    cell: str
    weights: Weights
    sequences: Sequences
    dstates: tuple[np.ndarray | None, ...]
    dlast: np.ndarray | None
    needs_gradient: NeedsGradient

    @property
    def pointwise(self) -> Pointwise:
        return pointwise_of(self.cell)


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
    B, T, I, H = (int(generator.integers(1, FEW if few else MOST, endpoint=True)) for few in generator.random(4) < 0.3)  # noqa: E741
    return draw_at(seed, Sizes(int(generator.integers(1, 4)), B, T, I, heads, max(1, H // heads)))


def draw_at(seed: int, sizes: Sizes) -> Case:
    """The case of these sizes."""
    generator = np.random.default_rng(seed)
    instructions = rnnjax.kernels.InstructionSet(seed % 4)
    dtype = list(BARS)[seed // 4 % 3]
    cells = CELLS if dtype == "float64" else SMOOTH
    name = list(cells)[seed // 12 % len(cells)]
    pointwise = pointwise_of(name)
    normal = lambda *shape: generator.normal(size=shape).astype(carry_dtype(dtype))  # noqa: E731
    S, B, T, _, _, _ = sizes
    weights = _weights(generator, normal, sizes, pointwise)
    W, b, R = (np.asarray(leaf, jnp.dtype(dtype)) for leaf in weights[:3])
    weights = weights._replace(W=W, b=b, R=R)
    sequences = _sequences(generator, normal, sizes, pointwise)
    sequences = sequences._replace(xs=np.asarray(sequences.xs, jnp.dtype(dtype)))
    given, needed = _some(generator, pointwise.fields + 1), _some(generator, 7)
    *dstates, dlast = [
        normal(S, B, *([T] if field < pointwise.fields else [pointwise.fields]), sizes.units) if one else None
        for field, one in enumerate(given)
    ]
    marks = "".join(f" {mark}" for mark in ("length", "resets") if getattr(sequences, mark) is not None)
    title = f"{seed}: {name} {dtype} {instructions.name} {sizes}{marks} given {given} needed {needed}"
    needs_gradient = NeedsGradient(Weights(*needed[:5]), *needed[5:])
    kernel = rnnjax.kernels.CPU(instructions)
    return Case(title, kernel, dtype, name, weights, sequences, tuple(dstates), dlast, needs_gradient)


# Where two cases may differ: each with what it may be.
FACTORS: dict[str, set[Any]] = {
    "instructions": set(rnnjax.kernels.InstructionSet),
    "dtype": set(BARS),
    "cell": set(CELLS),
    **{mark: {False, True} for mark in ("length", "resets", "heads", "all dstates", "dlast")},
    **{f"few {size}": {False, True} for size in "BTIH"},
    **{f"shared {weight}": {False, True} for weight in Weights._fields},
    **{f"needs {gradient}": {False, True} for gradient in (*Weights._fields, "xs", "state")},
}


def factors(case: Case) -> dict[str, Any]:
    """What a case is of each of `FACTORS`; of one group no weight is shared."""
    S, B, T, I = case.sequences.xs.shape  # noqa: E741
    sizes = {"B": B, "T": T, "I": I, "H": case.sequences.state.shape[3]}
    needed = case.needs_gradient.weights._asdict()
    needed |= {"xs": case.needs_gradient.xs, "state": case.needs_gradient.state}
    shared = {f"shared {name}": len(weight) == 1 for name, weight in case.weights._asdict().items()}
    return {
        "instructions": case.kernel.max_instruction_set,
        "dtype": case.dtype,
        "cell": case.cell,
        "length": case.sequences.length is not None,
        "resets": case.sequences.resets is not None,
        "heads": case.weights.R.shape[1] > 1,
        "all dstates": all(leaf is not None for leaf in case.dstates),
        "dlast": case.dlast is not None,
        **{f"few {name}": size <= FEW for name, size in sizes.items()},
        **{f"needs {name}": is_needed for name, is_needed in needed.items()},
        **(shared if S > 1 else {}),
    }


def possible(pair: tuple[Any, Any]) -> bool:
    """Whether a case may be both: a cell that is not smooth is for float64."""
    rough, narrow = CELLS.keys() - SMOOTH, BARS.keys() - {"float64"}
    return rough.isdisjoint(pair) or narrow.isdisjoint(pair)


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
        normal(groups[3], pointwise.unit_parameters.num_leaves, sizes.units) / 2,
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
    """`pointwise` and its transposed derivative, of the rows of all their inputs, CHUNK units each."""
    unit_parameters, gates, fields = pointwise.unit_parameters.num_leaves, pointwise.gates, pointwise.fields
    ends = np.cumsum([unit_parameters, gates, gates, fields])

    def step(rows: jax.Array) -> jax.Array:
        return pointwise(*jnp.split(rows, ends[:3]))

    def pull(rows: jax.Array) -> jax.Array:
        *inputs, dafter = jnp.split(rows, ends)
        return jnp.concatenate(jax.vjp(pointwise, *inputs)[1](dafter))

    shapes = [jax.ShapeDtypeStruct((int(count), CHUNK), np.float64) for count in (ends[3], ends[3] + fields)]
    return tuple(jax.jit(made).lower(rows).compile(OPTIMISED) for made, rows in zip((step, pull), shapes, strict=True))


def _by_unit(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    """A compiled function of rows of units, on arrays [rows, S, B, H]."""
    shape = arrays[0].shape[1:]
    units = math.prod(shape)
    rows = np.zeros((sum(map(len, arrays)), max(units + -units % CHUNK, CHUNK)))
    np.concatenate([array.reshape(len(array), units) for array in arrays], out=rows[:, :units])
    chunks = [function(rows[:, start : start + CHUNK]) for start in range(0, rows.shape[1], CHUNK)]
    made = np.concatenate(chunks, 1)[:, :units]
    return made.reshape(len(made), *shape)


def exact(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


def product(subscripts: str, *arrays: np.ndarray) -> np.ndarray:
    return np.einsum(subscripts, *arrays, optimize=True)


class Problem:
    """A case with nothing left out: float64, weights for every group, every mark; rows, then time, in front."""

    def __init__(self, case: Case):
        xs, state, length, resets = case.sequences
        S, B, T, _ = xs.shape
        spread = lambda array: np.broadcast_to(exact(array), (S, *array.shape[1:]))  # noqa: E731
        self.W, b, self.R, unit_parameters, initial = map(spread, case.weights)
        self.xs, self.state = exact(xs), np.moveaxis(exact(state), 2, 0)
        each = lambda array: np.moveaxis(array, 1, 0)[:, :, None].repeat(B, 2)  # noqa: E731
        self.unit_parameters, self.initial = each(unit_parameters), each(initial)
        self.us = product("sbti,sigh->tgsbh", self.xs, self.W) + np.moveaxis(b, 1, 0)[:, :, None]
        valid = np.arange(T)[:, None, None] < (np.full((S, B), T) if length is None else length)
        self.valid = valid[..., None]
        self.fresh = self.valid & (np.zeros_like(valid) if resets is None else np.moveaxis(resets, 2, 0))[..., None]
        zero = np.zeros((S, B, T, state.shape[3]))
        dstates = np.stack([zero if leaf is None else exact(leaf) for leaf in case.dstates])
        self.dstates = np.moveaxis(dstates, 3, 0)
        self.dlast = np.zeros_like(self.state) if case.dlast is None else np.moveaxis(exact(case.dlast), 2, 0)
        self.step, self.pull = _compiled(case.pointwise)
        self.stored = case.weights.R.dtype

    def by_head(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(*array.shape[:-1], *self.R.shape[1:3])

    def rounded(self, h: np.ndarray) -> np.ndarray:
        """h by heads, as its product sees it."""
        return self.by_head(exact(h.astype(self.stored)))

    def recurrent(self, before: np.ndarray) -> np.ndarray:
        """v, [G, S, B, H]."""
        v = product("sbnd,sndge->gsbne", self.rounded(before[0]), self.R)
        return v.reshape(len(v), *before.shape[1:])


def oracle(case: Case) -> tuple[tuple[list[np.ndarray], np.ndarray], Cotangents]:
    """States field by field and the last one; all cotangents."""
    problem = Problem(case)
    state, states, inputs = problem.state, [], []
    for t, u in enumerate(problem.us):
        before = np.where(problem.fresh[t], problem.initial, state)
        inputs.append((problem.unit_parameters, u, problem.recurrent(before), before))
        state = np.where(problem.valid[t], _by_unit(problem.step, *inputs[t]), state)
        states.append(state)
    over_time = list(np.stack([problem.state, *states], 3)[:, :, :, 1:])
    return (over_time, np.moveaxis(state, 0, 2)), _backward(problem, inputs)


def _backward(problem: Problem, inputs: list[tuple[np.ndarray, ...]]) -> Cotangents:
    """The cotangents, of what `pointwise` got at every step."""
    T, G = problem.us.shape[:2]
    K = len(problem.unit_parameters)
    dunit_parameters, dinitial, dstate = (
        np.zeros_like(problem.unit_parameters),
        np.zeros_like(problem.initial),
        problem.dlast,
    )
    du, dv = np.zeros_like(problem.us), problem.by_head(np.zeros_like(problem.us))
    for t in reversed(range(T)):
        dafter, valid, fresh = dstate + problem.dstates[t], problem.valid[t], problem.fresh[t]
        pulled = np.where(valid, _by_unit(problem.pull, *inputs[t], dafter), 0)
        dgain, du[t], by_unit, dbefore = np.split(pulled, np.cumsum([K, G, G]))
        dv[t] = problem.by_head(by_unit)
        dbefore[0] += product("gsbne,sndge->sbnd", dv[t], problem.R).reshape(dbefore.shape[1:])
        dunit_parameters += dgain
        dinitial += np.where(fresh, dbefore, 0)
        dstate = np.where(fresh, 0, np.where(valid, dbefore, dafter))
    h = problem.rounded(np.stack([before[0] for *_, before in inputs])) if inputs else dv[:, 0]
    dR = product("tsbnd,tgsbne->sndge", h, dv)
    dW, db = product("sbti,tgsbh->sigh", problem.xs, du), np.moveaxis(du.sum((0, 3)), 0, 1)
    by_group = [np.moveaxis(leaf.sum(2), 0, 1) for leaf in (dunit_parameters, dinitial)]
    dxs = product("tgsbh,sigh->sbti", du, problem.W)
    return Cotangents(Weights(dW, db, dR, *by_group), dxs, np.moveaxis(dstate, 0, 2))


# Both, and how far they are apart


def program(cases: Sequence[Case]) -> Callable[[list[Any]], list[Any]]:
    """One compiled program for the kernels of all cases, of what `operands` gives for each of them."""
    for case in cases:
        plan = case.kernel.plan(case.pointwise, case.weights)  # to ask is what loads the library
        assert isinstance(plan, KernelPlan), (case.title, plan)
    run = jax.jit(lambda given: [_run(case, *each) for case, each in zip(cases, given, strict=True)])
    return lambda given: jax.tree.map(np.asarray, run(given))


def _run(case: Case, weights: Weights, sequences: Sequences, dstates: Any, dlast: Any) -> Any:
    """States and the last one without residuals, and with all that are needed; the cotangents.

    Without residuals, the fields are used whose states have a cotangent; else all are.
    """
    plan = case.kernel.plan(case.pointwise, weights)
    assert isinstance(plan, KernelPlan)
    used_outputs = tuple(leaf is not None for leaf in case.dstates)
    plain = plan.forward(weights, sequences, 0, used_outputs)
    saved = plan.forward(weights, sequences, plan.residual_size, (True,) * len(used_outputs))
    cotangents = plan.backward(weights, sequences, saved, dstates, dlast, case.needs_gradient)
    return plain[:2], saved[:2], cotangents


def operands(case: Case) -> tuple[Any, ...]:
    """What a program takes for a case: all of it that is no parameter of the program."""
    return case.weights, case.sequences, case.dstates, case.dlast


def by_kernel(*cases: Case) -> list[Any]:
    """What the kernels of the cases give, by one program."""
    return program(cases)(list(map(operands, cases)))


def errors(case: Case, *runs: Any) -> tuple[float, float]:
    """The largest error of a value and that of a gradient in any run, each relative to the largest entry, or to 1."""
    (states, last), dexpected = oracle(case)
    used = [None if leaf is None else states[field] for field, leaf in enumerate(case.dstates)]
    is_needed = Cotangents(*case.needs_gradient)
    needed = jax.tree.map(lambda is_needed, leaf: leaf if is_needed else None, is_needed, dexpected)
    values, gradients = [], []
    for plain, saved, cotangents in runs:
        values += [_apart(plain, (used, last)), _apart(saved, (states, last))]
        gradients.append(_apart(cotangents, needed))
    return max(values), max(gradients)


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


AMPLIFIED = 4


def allowed(case: Case, found: tuple[float, float]) -> bool:
    """Whether the errors are inside of the bars, or not much larger than those of the reference in the same dtype.

    A network may amplify what is rounded off, in whichever way it is computed, as one does whose single units feed
    themselves with weights above one.
    """
    if not outside(case, found):
        return True
    bars = map(max, BARS[case.dtype], (AMPLIFIED * error for error in of_reference(case)))
    return all(error <= bar for error, bar in zip(found, bars, strict=True))


def main(count: int) -> int:
    """Run so many cases, print those that are outside of the bars, and the largest errors; how many are outside.

    Beside a case that is outside stands what the reference gives in its dtype: see `allowed`.
    """
    largest, failed = dict.fromkeys(BARS, (0.0, 0.0)), 0
    for first in range(0, count, TOGETHER):
        for case, found in together(range(first, min(first + TOGETHER, count))):
            largest[case.dtype] = tuple(map(max, largest[case.dtype], found))
            if outside(case, found):
                failed += 1
                print(f"{case.title}: {both(found)}; the reference's {both(of_reference(case))}", flush=True)
    parts = [f"{dtype}: {both(worst)}" for dtype, worst in largest.items()]
    print(f"{count} random shapes, {failed} outside of the bars; largest errors, {'; '.join(parts)}")
    return failed


def together(seeds: Sequence[int]) -> Iterator[tuple[Case, tuple[float, float]]]:
    """Cases by one program, and the errors of each."""
    cases = list(map(draw, seeds))
    return ((case, errors(case, made)) for case, made in zip(cases, by_kernel(*cases), strict=True))


def of_reference(case: Case) -> tuple[float, float]:
    """The errors of the reference."""
    case = case._replace(kernel=Reference())
    return errors(case, *by_kernel(case))


def both(found: tuple[float, float]) -> str:
    return f"values {found[0]:.1e}, gradients {found[1]:.1e}"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    sys.exit(1 if main(int(sys.argv[1])) else 0)
