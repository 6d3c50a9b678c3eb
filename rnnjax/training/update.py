"""One step of training as one program: the gradient of a batch, and what the optimiser makes of it."""

from collections.abc import Callable
from functools import partial

import jax
import optax
from jaxtyping import Array

from ..arrays import PyTree
from .devices import AbstractDevices
from .objective import AbstractObjective
from .run import Run

Optimiser = optax.GradientTransformation | optax.MultiSteps


def compile_update(
    objective: AbstractObjective, optimiser: Optimiser, static: PyTree, devices: AbstractDevices
) -> Callable[[Run, PyTree], tuple[Run, dict[str, Array]]]:
    """`(run, batch) -> (run, measured)`, compiled: the loss, the norm of the gradient, and the metrics of the loss."""
    gradient_of_batch = devices.over_batch(partial(objective.value_and_gradient, static))
    alone = objective.value
    value_of_batch = alone and devices.over_batch(lambda *arguments: (alone(static, *arguments), None))
    optimise = _with_extra_arguments(optimiser)

    @jax.jit
    def update(run: Run, batch: PyTree) -> tuple[Run, dict[str, Array]]:
        key = jax.random.fold_in(run.key, run.step)
        rest = run.carry, batch, key
        (measured, carry), slope = gradient_of_batch(run.weights, *rest)
        search = _line_search(value_of_batch, rest)
        updates, state = optimise(slope, run.optimiser, run.weights, value=measured["loss"], grad=slope, **search)
        weights = optax.apply_updates(run.weights, updates)
        moved = run._replace(weights=weights, optimiser=state, carry=carry, step=run.step + 1)
        return moved, measured | {"gradient_norm": optax.tree.norm(slope)}

    return update


def _line_search(value_of_batch: Callable | None, rest: tuple[PyTree, ...]) -> dict[str, Callable]:
    """The argument that a line search needs: the loss of the same batch at other weights."""
    if value_of_batch is None:
        return {}
    return {"value_fn": lambda weights: value_of_batch(weights, *rest)[0][0]["loss"]}


def _with_extra_arguments(optimiser: Optimiser) -> Callable[..., tuple[PyTree, PyTree]]:
    """The optimiser's `update`, whether it looks at the loss (reduce on plateau, Polyak steps, L-BFGS) or not."""
    if isinstance(optimiser, optax.MultiSteps):
        return optimiser.update
    return optax.with_extra_args_support(optimiser).update
