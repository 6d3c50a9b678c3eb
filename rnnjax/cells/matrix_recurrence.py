"""The matrix-state recurrence without weights: its coefficients are its inputs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .. import check
from ..arrays import DType, PyTree, carry_dtype, cast
from ..cell import Shapes, initial_or_zeros, learnable_zeros
from ..matrix_cell import AbstractMatrixCell, Matrix, Transition


class MatrixRecurrence(AbstractMatrixCell):
    """A matrix state for each head, of inputs that are a `Transition` over time: a matrix cell without weights.

        S_t = decay * S_{t-1} - erase_key (erase' S_{t-1}) + key value'            S: [N, K, V]
        y_t = S_t' query                                                           y: [N, V]

        recurrence = rnnjax.cells.MatrixRecurrence(heads=4, key_size=64, value_size=64, scalar_decay=True)
        state, ys = rnnjax.unroll(recurrence, None, xs)

    where `xs = rnnjax.cells.Transition(decay, key, value, query)`. `Auto` takes `Chunked` from 8 steps on where the CPU
    kernel is installed. Elsewhere it takes `Scan`, whose gradient stores the state of each step: pass
    `engine=rnnjax.engines.Chunked()`, as for complex numbers.

    `decay` may be any number: zero, negative, complex, and above one in modulus, where the state may overflow. With
    `key=k`, `erase=b k` and `value=b v`, where k has norm 1, it is the delta rule: what k stood for is moved by b
    towards v. Rows of `key`, `query`, `erase` and `erase_key` may be shared by several heads. The arithmetic is float32
    or wider; outputs have the dtype of the inputs.
    """

    initial_state: Matrix | None
    reads_before: bool = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    key_heads: int = eqx.field(static=True)
    key_size: int = eqx.field(static=True)
    value_size: int = eqx.field(static=True)
    scalar_decay: bool = eqx.field(static=True)
    erases: bool = eqx.field(static=True)
    has_erase_key: bool = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        heads: int,
        key_size: int,
        value_size: int,
        *,
        reads_before: bool = False,
        scalar_decay: bool = False,
        erases: bool = False,
        has_erase_key: bool = False,
        key_heads: int | None = None,
        learn_initial: bool = False,
        dtype: DType = jnp.float32,
    ):
        """Choose the form.

        heads, key_size, value_size    N, K, V
        reads_before                   y_t = S_{t-1}' query: the query reads the state before the step
        scalar_decay                   `decay` is [T, N, 1] in place of [T, N, K]
        erases, has_erase_key          whether the inputs have `erase` and `erase_key`; without the latter it is `key`
        key_heads                      heads of key, query, erase and erase_key; None: N. N must be a multiple of it:
                                       head n uses row n // (N / key_heads)
        learn_initial                  train the initial state instead of zeros
        dtype                          of inputs and outputs, real or complex
        """
        check.sizes(heads=heads, key_size=key_size, value_size=value_size)
        flags = {"scalar_decay": scalar_decay, "erases": erases, "has_erase_key": has_erase_key}
        check.flags(reads_before=reads_before, learn_initial=learn_initial, **flags)
        key_heads = heads if key_heads is None else key_heads
        check.sizes(key_heads=key_heads)
        check_key_heads(heads, key_heads)
        if has_erase_key and not erases:
            raise ValueError("has_erase_key: expected erases=True with it, got False. Pass both, or neither")
        self.reads_before, self.scalar_decay = reads_before, scalar_decay
        self.erases, self.has_erase_key = erases, has_erase_key
        self.heads, self.key_heads, self.key_size, self.value_size = heads, key_heads, key_size, value_size
        self.dtype = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
        if not jnp.issubdtype(self.dtype, jnp.inexact):
            raise TypeError(f"dtype: expected a floating or complex dtype, got {self.dtype}. Pass jnp.float32, say")
        self.initial_state = learnable_zeros(learn_initial, Matrix, self._shape, dtype)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.heads, self.key_size, self.value_size

    @property
    def weight_shapes(self) -> Shapes:
        return {"initial_state": self._shape}

    def input_type(self) -> Transition:
        def one(*shape: int) -> Any:
            return jax.ShapeDtypeStruct(shape, self.dtype)

        key = one(self.key_heads, self.key_size)
        return Transition(
            one(self.heads, 1 if self.scalar_decay else self.key_size),
            key,
            one(self.heads, self.value_size),
            key,
            key if self.erases else None,
            key if self.has_erase_key else None,
        )

    def initial(self) -> Matrix:
        return initial_or_zeros(Matrix, self.initial_state, self._shape, self.dtype)

    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        return xs

    def coefficients(self, u: Transition) -> Transition:
        wide = cast(u, carry_dtype(self.dtype))
        shared = self.heads // self.key_heads
        return jax.tree.map(lambda leaf: leaf if len(leaf) == self.heads else jnp.repeat(leaf, shared, 0), wide)

    def readout(self, states: Inexact[Array, "T N V"], xs: PyTree[Array]) -> Inexact[Array, "T N V"]:
        del xs
        return states.astype(self.dtype)


def check_key_heads(heads: int, key_heads: int) -> None:
    """Raise unless the same number of heads shares each key."""
    if heads % key_heads:
        raise ValueError(
            f"key_heads: expected a divisor of heads={heads}, got {key_heads}. "
            "Let the same number of heads share each key"
        )
