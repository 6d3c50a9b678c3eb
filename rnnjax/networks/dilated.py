"""Dilated recurrence: a layer that takes its state from several steps ago."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .. import check
from ..arrays import Flags, PyTree, State, count_steps, select
from ..checked import Checked
from ..network import Options
from ..unroll import unroll
from .layer import AbstractWrapper, Layer, check_layer


class Dilated(AbstractWrapper):
    """A layer whose state at step t comes from step t - dilation (Chang et al. 2017, arXiv:1710.02224).

        h_t = step(h_{t - d}, x_t)                          with d = `dilation`; of 1 it is the layer itself

    So a sequence is d interleaved sequences of every d-th step, which run as a batch: T / d steps one after the other,
    with any engine. The paper's network has dilations that grow exponentially:

        Stack([Dilated(LSTM(8, 32, key=a), 1), Dilated(LSTM(32, 32, key=b), 2), Dilated(LSTM(32, 32, key=c), 4)])

    The state is that of the layer with a leading axis of d: the first entry is the one that the next step takes, the
    last one comes from the last step. Before the start all entries are the layer's initial state. Feeding a sequence in
    chunks of any length, passing the state along, gives the same result as feeding it whole. A reset sets all entries
    to the initial state. With `resets`, an input that is not finite makes every d-th step after it NaN, up to the next
    reset. With a key, each of the interleaved sequences has a key of its own.
    """

    layer: Layer
    dilation: int = eqx.field(static=True)

    def __init__(self, layer: Checked[Layer], dilation: Checked[int]):
        """Raises TypeError unless `layer` is a cell or a network, and ValueError unless `dilation` is 1 or more."""
        check_layer("layer", layer)
        check.sizes(dilation=dilation)
        self.layer = layer
        self.dilation = int(dilation)

    def initial(self) -> State:
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (self.dilation, *jnp.shape(leaf))), self.layer.initial()
        )

    def hidden(self, state: State) -> Array | None:
        return self.layer.hidden(jax.tree.map(lambda leaf: leaf[-1], state))

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        d, T = self.dilation, count_steps(xs)
        if T == 0:
            return state, unroll(self.layer, None, xs, engine=options.engine)[1]
        length = T if options.length is None else options.length
        lengths = None if options.length is None and T % d == 0 else (length + d - 1 - jnp.arange(d)) // d
        recent = None if options.resets is None else _fold(_any_of_last(options.resets, d), d)
        keys = None if options.key is None else jax.random.split(options.key, d)

        def run_one(state, xs, length, resets, key):
            return unroll(self.layer, state, xs, length=length, resets=resets, engine=options.engine, key=key)

        folded = jax.tree.map(lambda leaf: _fold(leaf, d), xs)
        last, ys = jax.vmap(run_one, (0, 1, 0, 1, 0), (0, 1))(state, folded, lengths, recent, keys)
        last = jax.tree.map(lambda leaf: jnp.roll(leaf, -(length % d), 0), last)  # the entry of the next step first
        if options.resets is not None:
            last_reset = jnp.max(jnp.where(options.resets, jnp.arange(T), -d))
            is_reset = last_reset > length - d + jnp.arange(d)  # after the last step that an entry took
            last = select(is_reset, self.initial(), last)
        return last, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:T], ys)


def _fold(values: Array, d: int) -> Array:
    """[T, ...] as [ceil(T / d), d, ...]; after the end are zeros."""
    padding = -len(values) % d
    if padding:
        values = jnp.concatenate([values, jnp.zeros((padding, *values.shape[1:]), values.dtype)])
    return values.reshape(-1, d, *values.shape[1:])


def _any_of_last(flags: Flags, d: int) -> Flags:
    """Whether a flag is true at one of the last d steps, this one included."""
    steps = jnp.arange(len(flags))
    return steps - jax.lax.cummax(jnp.where(flags, steps, -d)) < d
