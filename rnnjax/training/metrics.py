"""The entries of a line of metrics that the user's functions give: the loss function's, and those of `validate`."""

from collections.abc import Mapping
from typing import Any, SupportsFloat

import jax.numpy as jnp
from jaxtyping import Array

from ..check import show
from ..checked import Checked
from .log import Metrics

OWN = "step", "loss", "gradient_norm", "validation", "seconds"  # what `fit` itself writes
Answer = SupportsFloat | Mapping[str, SupportsFloat]


def of_loss(metrics: Checked[Mapping[str, Array]]) -> dict[str, Array]:
    """The metrics that a loss returned, as arrays. Raises unless they are scalars under names of their own."""
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"loss: expected its metrics as a dictionary of scalars, got {show(metrics)}. "
            "Return (scalar, carry, {'accuracy': share})"
        )
    taken: list[Any] = [name for name in metrics if not isinstance(name, str) or name in OWN]
    if taken:
        raise ValueError(
            f"loss: expected names for its metrics other than {', '.join(OWN)}, got {taken}. Name them otherwise"
        )
    numbers = {name: jnp.asarray(value) for name, value in metrics.items()}
    others = [name for name, number in numbers.items() if number.ndim or jnp.iscomplexobj(number)]
    if others:
        raise ValueError(
            f"loss: expected its metrics to be scalars, got {show({name: numbers[name] for name in others})}. "
            "Return their means"
        )
    return numbers


def of_validation(answer: Checked[Answer], line: Metrics) -> Metrics:
    """The answer of `validate` as entries of `line`, which has those of training: a number is `validation`.

    Raises ValueError for a mapping without that entry, by which models are judged, and for names that are taken.
    """
    if not isinstance(answer, Mapping):
        return {"validation": float(answer)}
    if "validation" not in answer:
        raise ValueError(
            f"validate: expected an entry 'validation', the number to be made small, among {list(answer)}. "
            "Return it under this name, beside any others"
        )
    taken: list[Any] = [name for name in answer if not isinstance(name, str) or name in (*line, "seconds")]
    if taken:
        raise ValueError(
            f"validate: expected names, as text, other than those of the training metrics, got {taken}. "
            f"Name them otherwise, such as 'validation_{taken[0]}'"
        )
    first = {"validation": float(answer["validation"])}
    return first | {name: float(value) for name, value in answer.items()}
