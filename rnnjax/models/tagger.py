"""Many-to-many: an answer at every step, such as tags, the next value, or the notes that sound next."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check
from ..arrays import IntegerLike, PyTree, State, widen
from ..cell import AbstractCell
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..map_steps import map_steps
from ..marks import blank, fill, valid_steps
from ..named import as_module
from ..network import AbstractNetwork
from ..unroll import unroll
from .batches import Batch, sequences
from .classifier import run_batch
from .objectives import cross_entropy


class Tagger(eqx.Module):
    """One answer for every step: `y_t = head(network(xs)_t)`.

    network    any cell or network, by any engine; `Bidirectional` where a step may look ahead
    head       what makes the answer of one step: `eqx.nn.Linear`, `eqx.nn.MLP`, any function
    """

    network: AbstractCell | AbstractNetwork
    head: Callable[[Array], Array] = eqx.field(converter=as_module)

    def __call__(
        self,
        xs: PyTree[Array],
        *,
        length: Checked[IntegerLike | None] = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> Array:
        """The answers over time for one sequence, zeros from `length` on; arguments as `unroll` takes them."""
        return self.run(None, xs, length=length, engine=engine, key=key)[1]

    def run(
        self,
        state: State | None,
        xs: PyTree[Array],
        *,
        length: Checked[IntegerLike | None] = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, Array]:
        """The state after `xs`, and the answers: for a sequence that goes on."""
        state, ys = unroll(self.network, state, xs, length=length, engine=engine, key=key)
        T = ys.shape[0]
        valid = check.length(length, T)
        return state, blank(map_steps(self.head, fill(ys, valid, T)), valid, T)


def average_steps(losses: Float[Array, "B T"], valid: Bool[Array, "B T"]) -> Float[Array, ""]:
    """The mean over all valid steps of a batch, long sequences counting for more; zero where there is none."""
    return losses.sum() / jnp.maximum(valid.sum(), 1).astype(losses.dtype)


def total_steps(losses: Float[Array, "B T"], valid: Bool[Array, "B T"]) -> Float[Array, ""]:
    """The sum over time, averaged over the sequences: the gradient of a step does not shrink with T."""
    return losses.sum() / valid.shape[0]


def tagger_loss(
    model: Tagger,
    carry: PyTree,
    batch: Checked[Batch],
    key: PRNGKeyArray | None,
    *,
    objective: Callable[[Array, Array], Array] = cross_entropy,
    over_steps: Callable[[Array, Array], Array] = average_steps,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], PyTree]:
    """`objective(answer, target)` over the valid steps of a batch, and the carry: a loss for `fit`.

    batch        `Sequences`, `(xs, targets, lengths)`, or `(xs, targets)` if all steps count: targets are [B, T, ...]
    key          for dropout in the network, drawn anew for each sequence; None: nothing is dropped
    over_steps   `average_steps` or `total_steps`, of losses that are zero where a step is not valid

    Targets of ignored steps may be anything, even NaN and labels outside of the classes.
    """
    xs, targets, lengths = sequences(batch)
    answers = run_batch(model, xs, lengths, key, engine)
    B, T = answers.shape[:2]
    if lengths is None:
        valid = jnp.ones((B, T), bool)
    else:
        valid = jax.vmap(lambda length: valid_steps(length, T))(lengths)
        targets = jax.vmap(lambda leaf, length: blank(leaf, length, T))(targets, lengths)
    losses = objective(answers, targets)
    return over_steps(jnp.where(valid, losses, jnp.zeros_like(losses)), valid), carry


@eqx.filter_jit
def forecast(model: Tagger, xs: Float[Array, "T I"], steps: int, *, engine: AbstractEngine = Auto()) -> Array:
    """The `steps` values that follow `xs`, [steps, I], each answer read as the next input.

    For a `Tagger` that was trained to say the next value, whose answers are like its inputs.
    """
    if xs.shape[0] == 0:
        raise ValueError("xs: expected at least one step to go on from, got none. Pass a longer sequence")
    state, ys = model.run(None, xs, engine=engine)
    if ys.shape[1:] != xs.shape[1:]:
        raise ValueError(
            f"model: expected answers like its inputs {list(xs.shape[1:])}, got {list(ys.shape[1:])}. "
            "Build a Tagger whose outputs are of the size of its inputs"
        )

    wide, narrow = widen(model)

    def step(carry: tuple[State, Array], _: None) -> tuple[tuple[State, Array], Array]:
        state, x = carry
        state, (y,) = narrow(wide).run(state, x[None], engine=engine)
        return (state, y.astype(x.dtype)), x

    first = ys[-1].astype(xs.dtype)
    _, values = jax.lax.scan(step, (state, first), length=steps)
    return values
