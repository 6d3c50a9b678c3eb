"""Gradient estimators: how far each is from BPTT, what it costs, and what it keeps; and the Lyapunov exponents' time.

python -m benchmarks.gradients --json benchmarks/results/gradients.json
"""

import statistics
import time
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from common.command_line import command_line
from jaxtyping import Array

import rnnjax
from benchmarks import measure, report
from benchmarks.report import JSON
from benchmarks.turns import take_turns

I, H, T, O = 8, 16, 50, 4  # noqa: E741
DRAWS, SECONDS, LONG, MILLION = 1000, 1.0, 10_000, 1_000_000
KEY = jax.random.key(0)
CELLS = {name: partial(getattr(rnnjax, name), I, H, key=KEY) for name in ("Elman", "LSTM", "GRU", "MinGRU")}
ESTIMATORS: tuple[rnnjax.gradients.AbstractEstimator, ...] = (
    rnnjax.gradients.BPTT(rnnjax.Scan()),
    rnnjax.gradients.TruncatedBPTT(10, engine=rnnjax.Scan()),
    rnnjax.gradients.TruncatedBPTT(10, 20, engine=rnnjax.Scan()),
    rnnjax.gradients.RTRL(),
    rnnjax.gradients.SnAp1(),
    rnnjax.gradients.EProp(),
    rnnjax.gradients.UORO(),
)


def loss(head: Array, y: Array, target: Array) -> Array:
    return jnp.sum((y @ head - target) ** 2)


def learn(
    estimator: rnnjax.gradients.AbstractEstimator, weights: Any, xs: Array, targets: Array, key: Array
) -> rnnjax.gradients.Estimate:
    memory = estimator.start(weights[0], key=key)
    return estimator.estimate(loss, weights, memory, xs, targets, key=key)


def draw(cell: rnnjax.AbstractCell, steps: int) -> tuple[Any, Array, Array]:
    keys = jax.random.split(KEY, 3)
    weights = cell, 0.3 * jax.random.normal(keys[0], (H, O))
    return weights, jax.random.normal(keys[1], (steps, I)), jax.random.normal(keys[2], (steps, O))


def flat(gradient: Any) -> np.ndarray:
    """The cell's gradient; the head's is exact in every estimator."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient[0])])


def label(estimator: rnnjax.gradients.AbstractEstimator) -> str:
    if isinstance(estimator, rnnjax.gradients.TruncatedBPTT):
        return f"TruncatedBPTT({estimator.every}, {estimator.back})"
    return type(estimator).__name__


def temporary(estimator: rnnjax.gradients.AbstractEstimator, cell: rnnjax.AbstractCell, steps: int) -> int:
    """Bytes that the compiled program of a whole sequence needs beside its arguments and results."""
    program = lambda weights, xs, targets: learn(estimator, weights, xs, targets, KEY)[:2]  # noqa: E731
    made = measure.compile_program("", program, *draw(cell, steps))
    assert made.temporary_bytes is not None
    return made.temporary_bytes


def compare(name: str) -> list[dict[str, Any]]:
    """All estimators that serve a cell, against BPTT; the times interleaved."""
    cell = CELLS[name]()
    weights, xs, targets = draw(cell, T)
    serving = [estimator for estimator in ESTIMATORS if estimator.refusal(cell) is None]
    runs = {label(one): eqx.filter_jit(partial(learn, one)) for one in serving}
    exact = flat(learn(rnnjax.gradients.BPTT(rnnjax.Scan()), weights, xs, targets, KEY).gradient)
    rows = []
    for estimator in serving:
        run = runs[label(estimator)]
        mean = one = flat(run(weights, xs, targets, KEY).gradient)
        if isinstance(estimator, rnnjax.gradients.UORO):
            draws = jax.vmap(lambda key: learn(estimator, weights, xs, targets, key).gradient)  # noqa: B023
            many = jax.jit(draws)(jax.random.split(KEY, DRAWS))
            mean = flat(jax.tree.map(lambda leaf: leaf.mean(0), many))
        rows.append(
            {
                "cell": name,
                "estimator": label(estimator),
                "T": T,
                "H": H,
                "draws": DRAWS if isinstance(estimator, rnnjax.gradients.UORO) else 1,
                "bias": float(np.linalg.norm(mean - exact) / np.linalg.norm(exact)),
                "error_of_one": float(np.linalg.norm(one - exact) / np.linalg.norm(exact)),
                "cosine_of_one": float(one @ exact / np.linalg.norm(one) / np.linalg.norm(exact)),
                "bytes_at_1000": temporary(estimator, cell, 1000),
                "bytes_at_10000": temporary(estimator, cell, LONG),
            }
        )
    calls = [partial(runs[label(one)], weights, xs, targets, KEY) for one in serving]
    times = take_turns(calls, SECONDS * len(calls))
    for row, milliseconds in zip(rows, times, strict=True):
        row["milliseconds"] = statistics.median(milliseconds)
        row["times_bptt"] = measure.median_ratio(milliseconds, times[0])
        print(
            f"{name:<7}{row['estimator']:<22} bias {row['bias']:.1e}, of one draw {row['error_of_one']:.1e} "
            f"(cosine {row['cosine_of_one']:.3f}); {row['times_bptt']:.1f} x BPTT's time; temporary kB "
            f"{row['bytes_at_1000'] / 1e3:.0f} at T = 1,000, {row['bytes_at_10000'] / 1e3:.0f} at 10,000",
            flush=True,
        )
    return rows


def million() -> dict[str, Any]:
    """A million steps in windows of 35: what the program keeps, and that it runs."""
    cell, estimator = CELLS["LSTM"](), rnnjax.gradients.TruncatedBPTT(35, engine=rnnjax.Scan())
    weights, xs, targets = draw(cell, MILLION)
    run = eqx.filter_jit(partial(learn, estimator))
    begun = time.perf_counter()
    estimate = jax.block_until_ready(run(weights, xs, targets, KEY))
    row = {
        "cell": "LSTM",
        "estimator": "TruncatedBPTT(35, 35)",
        "T": MILLION,
        "H": H,
        "seconds": time.perf_counter() - begun,
        "bytes_at_10000": temporary(estimator, cell, LONG),
        "bytes_at_1000000": temporary(estimator, cell, MILLION),
        "loss_per_step": float(estimate.loss) / MILLION,
    }
    print(
        f"LSTM, windows of 35 over {MILLION} steps: {row['seconds']:.1f} s with compilation; temporary kB "
        f"{row['bytes_at_10000'] / 1e3:.0f} at T = 10,000, {row['bytes_at_1000000'] / 1e3:.0f} at 1,000,000",
        flush=True,
    )
    return row


def chaos(gain: float, units: int, steps: int, every: int) -> dict[str, Any]:
    """All Lyapunov exponents of a random tanh network (Engelken et al. 2020), timed with compilation."""
    R = gain / np.sqrt(units) * np.random.default_rng(0).normal(size=(1, units, 1, units))
    cell = rnnjax.Elman(1, units, key=KEY, bias=False)
    cell = eqx.tree_at(lambda cell: cell.recurrent_weight, cell, jnp.asarray(R, jnp.float32))
    start = rnnjax.Hidden(jax.random.normal(KEY, (units,)))
    run = eqx.filter_jit(partial(rnnjax.diagnose.lyapunov_exponents, skip=200, every=every))
    begun = time.perf_counter()
    exponents = np.asarray(run(cell, start, jnp.zeros((steps, 1))))
    row = {
        "cell": "Elman",
        "gain": gain,
        "H": units,
        "T": steps,
        "every": every,
        "seconds": time.perf_counter() - begun,
        "largest": float(exponents[0]),
        "smallest": float(exponents[-1]),
        "positive": int((exponents > 0).sum()),
    }
    print(
        f"random tanh network, gain {gain}, {units} units, {steps} steps, QR every {every}: {row['seconds']:.1f} s; "
        f"exponents {row['largest']:.3f} to {row['smallest']:.3f}, {row['positive']} positive",
        flush=True,
    )
    return row


parse = command_line(__doc__, JSON)


def main() -> None:
    options = parse()
    print(report.heading())
    rows = [row for name in CELLS for row in compare(name)]
    rows.append(million())
    rows += [chaos(gain, 128, LONG, every) for gain, every in ((0.8, 1), (2.0, 1), (2.0, 4))]
    report.write(options.json, [report.machine() | row for row in rows])


if __name__ == "__main__":
    main()
