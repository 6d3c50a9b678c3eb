"""Arguments that users of other libraries pass by habit: the error says what to write instead."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

OF_LAYERS = {
    "num_layers": "rnnjax.networks.layers({cell}, input_size, [hidden_size] * num_layers, key=key)",
    "bidirectional": "rnnjax.networks.layers({cell}, input_size, [hidden_size], bidirectional=True, key=key)",
    "dropout": "rnnjax.networks.layers({cell}, input_size, [hidden_size, hidden_size], dropout=0.2, key=key)",
    "batch_first": "jax.vmap(lambda xs: rnnjax.unroll(cell, None, xs))(batch), with batch [B, T, I]",
}
OF_TRAINING = {
    "epochs": "steps=epochs * (examples // batch_size)",
    "batch_size": "rnnjax.training.minibatches((xs, targets), batch_size, seed=0) as batches",
    "callbacks": "report=, a function of each line of metrics",
}


def instead(advice: dict[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of a function or an `__init__`: a keyword in `advice` is a TypeError that says what to write.

    `{cell}` in the advice stands for the name of the class or function.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = getattr(function, "__qualname__", repr(function)).removesuffix(".__init__")

        @wraps(function)
        def call(*arguments: P.args, **options: P.kwargs) -> R:
            for given in options:
                if given in advice:
                    raise TypeError(f"{given}: {name} has no such argument. Write {advice[given].format(cell=name)}")
            return function(*arguments, **options)

        return call

    return decorate
