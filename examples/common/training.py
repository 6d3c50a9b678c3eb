"""Training with a picture of its losses; how many steps fill some minutes; a schedule."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from rnnjax.training.plot import draw_curve


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for a run, removed at the end unless an error ends the run: it then holds the last good weights."""
    folder = Path(tempfile.mkdtemp())
    yield folder / "run"
    shutil.rmtree(folder)


def fit(*arguments: Any, picture: Path | None, **options: Any) -> rnnjax.training.Fitted:
    """`rnnjax.training.fit` of these arguments; with `picture`, its losses are drawn there."""
    if picture is None:
        return rnnjax.training.fit(*arguments, **options)
    with temporary_folder() as folder:
        fitted = rnnjax.training.fit(*arguments, **options, folder=folder)
        draw(folder, picture)
    return fitted


def draw(folder: Path, picture: Path) -> None:
    """The losses of the run in a folder."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_curve(folder / "metrics.jsonl", picture)
    print(f"wrote {picture}")


def count_steps(model: Any, loss: Any, batches: Any, minutes: float) -> int:
    """How many steps of training fill the minutes, by the time of a few whose gradients are thrown away."""
    gradient = eqx.filter_jit(eqx.filter_grad(lambda model, batch, key: loss(model, None, batch, key)[0]))
    seconds = []
    for step in range(4):
        begun = time.perf_counter()
        jax.block_until_ready(gradient(model, jax.tree.map(jnp.asarray, batches(step)), jax.random.key(step)))
        seconds.append(time.perf_counter() - begun)
    return max(1, int(minutes * 60 / np.median(seconds[1:])))


def constant_then_linear(learning_rate: float, steps: int) -> optax.Schedule:
    """Constant, then linear to zero over the last quarter of the steps."""
    quarter = steps // 4
    parts = optax.constant_schedule(learning_rate), optax.linear_schedule(learning_rate, 0.0, quarter)
    return optax.join_schedules(parts, [steps - quarter])
