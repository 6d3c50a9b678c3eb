"""Objectives: the value and the gradient of one step of `fit`, by differentiating a loss or by an estimator."""

import abc
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..arrays import PyTree, select
from ..cell import describe
from ..check import alike, show
from ..checked import Checked
from ..gradients.estimator import AbstractEstimator
from ..gradients.estimator import Loss as StepLoss
from .metrics import of_loss

Loss = Callable[
    [PyTree, PyTree, PyTree, PRNGKeyArray],
    tuple[Array, PyTree] | tuple[Array, PyTree, Mapping[str, Array]],
]
ByStep = Callable[[int], PyTree]

BEFORE_THE_FIRST = np.uint32(2**32 - 1)  # no step has this number, so no step draws from the same key


class AbstractObjective(abc.ABC):
    """The function that `fit` minimises. A model comes in two parts: `weights`, which are trained, and `static`."""

    # `(static, weights, carry, batch, key) -> (measured, carry)`, for a line search; None where there is none.
    value: Callable[..., tuple[dict[str, Array], PyTree]] | None = None

    @abc.abstractmethod
    def begin(self, model: PyTree, carry: PyTree, batches: ByStep, key: PRNGKeyArray) -> PyTree:
        """The carry before the first step, from the user's `carry`."""

    @abc.abstractmethod
    def value_and_gradient(
        self, static: PyTree, weights: PyTree, carry: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[tuple[dict[str, Array], PyTree], PyTree]:
        """`((measured, carry), gradient)` of one batch: measured are the loss, under this name, and its metrics."""


class Differentiated(AbstractObjective):
    """A loss `(model, carry, batch, key) -> (scalar, carry)`, or with metrics, differentiated by JAX."""

    def __init__(self, loss: Loss):
        self.loss = loss

    def begin(self, model: PyTree, carry: PyTree, batches: ByStep, key: PRNGKeyArray) -> PyTree:
        del model, batches, key
        return jax.tree.map(jnp.asarray, carry)

    def value(
        self, static: PyTree, weights: PyTree, carry: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[dict[str, Array], PyTree]:
        answer = self.loss(eqx.combine(weights, static), carry, batch, key)
        if not (isinstance(answer, tuple) and len(answer) in (2, 3)):
            raise TypeError(
                f"loss: expected it to return (scalar, carry), or (scalar, None), got {show(answer)}. "
                "Return (scalar, None) if nothing is carried, and (scalar, None, metrics) with metrics"
            )
        value, after = answer[0], jax.tree.map(jnp.asarray, answer[1])
        if not alike(after, carry):
            raise ValueError(
                f"loss: expected it to return a carry like the one it was given, {show(carry)}, got {show(after)}. "
                "Return its shapes and dtypes, or start from a carry like the one returned"
            )
        return {"loss": value, **of_loss(answer[2] if len(answer) == 3 else {})}, after

    def value_and_gradient(
        self, static: PyTree, weights: PyTree, carry: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[tuple[dict[str, Array], PyTree], PyTree]:
        def scalar(weights: PyTree) -> tuple[Array, tuple[dict[str, Array], PyTree]]:
            measured, after = self.value(static, weights, carry, batch, key)
            return measured["loss"], (measured, after)

        (_, answer), gradient = jax.value_and_grad(scalar, has_aux=True)(weights)
        return answer, gradient


class Estimated(AbstractObjective):
    """A loss of one step, `(head, y, target) -> scalar`, whose gradient an estimator computes for `(cell, head)`.

    The carry is a batch of memories, one for each sequence. The value is the sum over the steps of a chunk, and the
    mean over its sequences; so is the gradient.
    """

    def __init__(self, loss: StepLoss, estimator: AbstractEstimator):
        self.loss = loss
        self.estimator = estimator

    def begin(self, model: PyTree, carry: PyTree, batches: ByStep, key: PRNGKeyArray) -> PyTree:
        cell = model[0]
        if carry is None:
            batch = batches(0)
            _check_batch(batch, cell)
            return eqx.filter_jit(self._start)(cell, jax.random.fold_in(key, BEFORE_THE_FIRST), len(batch[2]))
        carry = jax.tree.map(jnp.asarray, carry)
        sizes = [leaf.shape[0] for leaf in jax.tree.leaves(carry) if leaf.ndim]
        expected = eqx.filter_eval_shape(self._start, cell, key, sizes[0] if sizes else 1)
        if not alike(carry, expected):
            raise ValueError(
                f"carry: expected a memory of {type(self.estimator).__name__} for each sequence, {show(expected)} of "
                f"{describe(cell)}, got {show(carry)}. Pass None to start them, or the carry of an earlier `fit`"
            )
        return carry

    def _start(self, cell: Any, key: PRNGKeyArray, size: int) -> PyTree:
        """The initial memories of `size` sequences."""
        return jax.vmap(lambda key: self.estimator.start(cell, key=key))(jax.random.split(key, size))

    def value_and_gradient(
        self, static: PyTree, weights: PyTree, carry: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[tuple[dict[str, Array], PyTree], PyTree]:
        model = eqx.combine(weights, static)
        size = jax.tree.leaves(carry)[0].shape[0]
        _check_batch(batch, model[0], size)
        xs, targets, starts = batch
        starting, drawing = jax.random.split(key)
        memories = select(starts, self._start(model[0], starting, size), carry)

        def estimate(memory: PyTree, xs: PyTree, targets: PyTree, key: PRNGKeyArray) -> Any:
            return self.estimator.estimate(self.loss, model, memory, xs, targets, key=key)

        estimates = jax.vmap(estimate)(memories, xs, targets, jax.random.split(drawing, size))
        value, gradient = jax.tree.map(lambda leaf: leaf.mean(0), (estimates.loss, estimates.gradient))
        return ({"loss": value}, estimates.memory), gradient


def choose_objective(
    model: PyTree, loss: Checked[Callable[..., PyTree]], gradient: Checked[AbstractEstimator | None]
) -> AbstractObjective:
    """The objective for these arguments of `fit`. Raises if they do not fit each other."""
    if gradient is None:
        hint = "Pass gradient=, such as BPTT(), for a loss of one step, (head, y, target) -> scalar"
        _check_loss(loss, "(model, carry, batch, key) -> (scalar, carry)", 4, hint)
        return Differentiated(loss)
    if not isinstance(gradient, AbstractEstimator):
        raise TypeError(
            f"gradient: expected an estimator, such as rnnjax.gradients.RTRL(), or None, got {gradient!r}. "
            "Leave gradient= out to differentiate the loss by JAX"
        )
    name = type(gradient).__name__
    if not (isinstance(model, tuple) and len(model) == 2):
        raise TypeError(
            f"model: expected a pair (cell, head) for gradient={name}, got {show(model)}. "
            "Pass (cell, None) if the loss has no weights of its own"
        )
    reason = gradient.refusal(model[0])
    if reason is not None:
        raise ValueError(f"gradient: {reason}")
    hint = "Leave out gradient= for a loss of the whole model"
    _check_loss(loss, f"(head, y, target) -> scalar for gradient={name}", 3, hint)
    return Estimated(loss, gradient)


def _check_loss(loss: Any, form: str, count: int, hint: str) -> None:
    """Raise unless `loss` can be called with `count` arguments."""
    if not callable(loss):
        raise TypeError(f"loss: expected a function {form}, got {loss!r}. Write a function of these arguments")
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # functions written in C may have none
        return
    try:
        signature.bind(*range(count))
    except TypeError:
        raise TypeError(f"loss: expected a function {form}, got one that takes {signature}. {hint}") from None


def _check_batch(batch: Any, cell: Any, size: int | None = None) -> None:
    """Raise unless `batch` is `(xs, targets, starts)` of `size` sequences; None stands for any number of them."""
    if not (isinstance(batch, tuple | list) and len(batch) == 3):
        raise TypeError(
            f"batches: expected (xs, targets, starts) for an estimator, got {show(batch)}. starts, booleans [B], marks "
            "the sequences that begin. Pass np.ones(B, bool) if each batch has new ones, np.zeros(B, bool) if all go on"
        )
    xs, targets, starts = batch
    B = size if size is not None else next(iter(np.shape(starts)), "B")
    if getattr(starts, "dtype", None) != np.bool_ or starts.shape != (B,):
        raise ValueError(
            f"batches: expected starts as booleans [{B}], one for each sequence, got {show(starts)}. A sequence begins "
            "at the first step of a chunk, and the number of sequences stays the same. Pass resets[:, 0] of a `Chunk`"
        )
    step, leaves = cell.input_type(), jax.tree.leaves(xs)
    T = jnp.shape(leaves[0])[1] if leaves and jnp.ndim(leaves[0]) > 1 else "T"
    shapes = [(B, T, *leaf.shape) for leaf in jax.tree.leaves(step)]
    if jax.tree.structure(xs) != jax.tree.structure(step) or [jnp.shape(leaf) for leaf in leaves] != shapes:
        raise ValueError(
            f"batches: expected xs [B={B}, T, ...], of {show(step)} at each step for {describe(cell)}, got {show(xs)}. "
            "Pass arrays with the batch on axis 0 and time on axis 1"
        )
    if {jnp.shape(leaf)[:2] for leaf in jax.tree.leaves(targets)} != {(B, T)}:
        raise ValueError(
            f"batches: expected targets [B={B}, T={T}, ...] as long as xs, got {show(targets)}. "
            "Pass one target for each step of each sequence"
        )
