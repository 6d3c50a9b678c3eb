"""What Newton takes: iterations, depth and time against Scan; and a trained cell on which its own steps overflow."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from common.command_line import command_line, option

from benchmarks import measure, report
from benchmarks.report import JSON
from benchmarks.turns import take_turns
from rnnjax import GRU, AbstractCell, DiagonalGRU, Hidden, Newton, Scan, unroll
from rnnjax.engines import Dense, Diagonal

INPUTS = 4
UNITS, STEPS = (4, 8, 16, 32), (1_000, 10_000, 100_000)
CONTESTS: dict[str, tuple[Callable[..., AbstractCell], Newton]] = {
    "GRU, Dense": (GRU, Newton(Dense())),
    "GRU, Diagonal": (GRU, Newton(Diagonal())),
    "DiagonalGRU, Diagonal": (DiagonalGRU, Newton(Diagonal())),
}
PERIOD, LONG = 40, 10_000  # steps of the wave that a cell is trained to draw, and of the one it is asked for


class Row(NamedTuple):
    """Newton on one sequence of random inputs; Scan's time is from the same interleaved run.

    `depth` is how many operations wait for each other, as run on a CPU: for each iteration a step, and the levels of
    its scan up and down, or where a Jacobian has one number to a unit the steps of `linear_scan`, which are far smaller
    than the cell's. Scan's is T. `work` is the operations over those of Scan: steps, a derivative of one counted as
    another, and what composes. `gigabytes` is the temporary memory of the executable.
    """

    contest: str
    T: int
    H: int
    iterations: int
    residual: float
    converged: bool
    depth: int
    work: float
    milliseconds: float
    scan_milliseconds: float
    gigabytes: float


class Trained(NamedTuple):
    """Newton on the trained cell: `deviation` is the most y differs from that of Scan, where it converged."""

    damping: float | None
    T: int
    H: int
    iterations: int
    residual: float
    converged: bool
    deviation: float | None


class Autoregressive(AbstractCell):
    """A GRU that is fed what it has put out, y = C h, with what comes in added."""

    cell: GRU
    weight: jax.Array

    def input_type(self) -> jax.ShapeDtypeStruct:
        return self.cell.input_type()

    def initial(self) -> Hidden:
        return self.cell.initial()

    def project(self, xs: jax.Array) -> jax.Array:
        return xs

    def step(self, state: Hidden, u: jax.Array) -> Hidden:
        fed = state.h @ self.weight + u
        return self.cell.step(state, self.cell.project(fed[None])[0])

    def readout(self, states: Hidden, xs: jax.Array) -> jax.Array:
        del xs
        return states.h @ self.weight


parse = command_line(
    __doc__,
    JSON,
    option("--steps", type=int, nargs="+", default=STEPS, help="T of the random inputs"),
    option("--units", type=int, nargs="+", default=UNITS, help="H of the cells"),
)


def main() -> None:
    options = parse()
    print(report.heading())
    heads = f"{'cell, Jacobian':<23}{'T':>8}{'H':>4}{'iterations':>11}{'depth':>9}{'work':>7}"
    print(f"{heads}{'ms':>10}{'Scan ms':>10}{'GB':>8}")
    rows = [compare(contest, T, H) for contest in CONTESTS for T in options.steps for H in options.units]
    print(f"a GRU that was trained to draw a wave, {LONG} steps of it:")
    trained = train(16)
    runs = [draw_wave(trained, damping) for damping in (None, 0.1)]
    records: dict[str, Any] = {"machine": report.machine(), "rows": [row._asdict() for row in rows]}
    records["trained"] = [run._asdict() for run in runs]
    report.write(options.json, records)


def compare(contest: str, T: int, H: int) -> Row:
    """Newton and Scan in turn, on one sequence."""
    make, newton = CONTESTS[contest]
    cell = make(INPUTS, H, key=jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, INPUTS))
    solve = measure.compile_program("Newton", lambda cell, xs: newton.solve(cell, None, xs), cell, xs)
    scan = measure.compile_program("Scan", lambda cell, xs: unroll(cell, None, xs, engine=Scan()), cell, xs)
    solution = solve.call()
    times = take_turns([solve.call, scan.call], 1.0)
    medians = [sorted(milliseconds)[len(milliseconds) // 2] for milliseconds in times]
    iterations = int(solution.iterations)
    assert solve.temporary_bytes is not None
    row = Row(
        contest,
        T,
        H,
        iterations,
        float(solution.residual),
        bool(solution.converged),
        1 + iterations * (1 + levels(newton, T)),
        work(cell, newton, iterations),
        medians[0],
        medians[1],
        solve.temporary_bytes / 1e9,
    )
    print(
        f"{contest:<23}{T:>8}{H:>4}{iterations:>11}{row.depth:>9}{row.work:>7.1f}{medians[0]:>10.1f}{medians[1]:>10.1f}"
        f"{row.gigabytes:>8.2f}{'' if row.converged else '  NOT CONVERGED'}",
        flush=True,
    )
    return row


def levels(newton: Newton, T: int) -> int:
    """Of a tree over time, up and down; or of time itself where it is walked. States here have one field."""
    return T if isinstance(newton.jacobian, Diagonal) else 2 * math.ceil(math.log2(T))


def work(cell: AbstractCell, newton: Newton, iterations: int) -> float:
    """The operations of all iterations over those of the steps alone."""
    state = cell.initial()
    (H,) = jax.tree.leaves(state)[0].shape
    step = jax.jit(lambda state, u: cell.step(state, u))
    analysis = step.lower(state, cell.project(jnp.zeros((1, INPUTS)))[0]).compile().cost_analysis()
    assert analysis is not None
    operations = analysis["flops"]
    columns, composed = (1, 2 * H) if isinstance(newton.jacobian, Diagonal) else (H, 2 * (2 * H**3 + 2 * H**2))
    return ((iterations + 1) * operations * (1 + columns) + iterations * composed) / operations


def train(H: int) -> Autoregressive:
    """A generator of a sine wave, trained on ten periods by backpropagation through all of them."""
    keys = jax.random.split(jax.random.key(2), 3)
    model = Autoregressive(GRU(1, H, key=keys[0]), jax.random.normal(keys[1], (H, 1)) / math.sqrt(H))
    wave = jnp.sin(2 * math.pi * jnp.arange(10 * PERIOD) / PERIOD)[:, None]
    noise = 0.05 * jax.random.normal(keys[2], wave.shape)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 1500)))

    def loss(model: Autoregressive) -> jax.Array:
        _, ys = unroll(model, None, noise, engine=Scan())
        return jnp.mean((ys - wave) ** 2)

    @jax.jit
    def update(model: Autoregressive, state: Any) -> tuple[Autoregressive, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(model)
        updates, state = optimiser.update(gradient, state)
        return eqx.apply_updates(model, updates), state, value

    state, value = optimiser.init(eqx.filter(model, eqx.is_inexact_array)), jnp.inf
    for _ in range(1500):
        model, state, value = update(model, state)
    print(f"trained to a squared error of {float(value):.4f}")
    return model


def draw_wave(model: Autoregressive, damping: float | None) -> Trained:
    """The trained cell over many more steps than it was trained on, by Newton and by Scan."""
    noise = 0.05 * jax.random.normal(jax.random.key(3), (LONG, 1))
    newton = Newton(Dense(), iterations=1000, damping=damping)
    solution = jax.jit(lambda xs: newton.solve(model, None, xs))(noise)
    ys = jax.jit(lambda xs: unroll(model, None, xs, engine=Scan())[1])(noise)
    converged = bool(solution.converged)
    deviation = float(jnp.abs(model.readout(solution.states, noise) - ys).max()) if converged else None
    run = Trained(
        damping, LONG, model.cell.hidden_size, int(solution.iterations), float(solution.residual), converged, deviation
    )
    print(run, flush=True)
    return run


if __name__ == "__main__":
    main()
