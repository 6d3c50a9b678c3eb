"""Mamba-2: a selective state space with one decay for each head."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.nn import silu, softplus
from jaxtyping import Array, Float, PRNGKeyArray

from ... import check, initialise, random
from ...arrays import DType
from ...cells.s6 import draw_step_bias
from .decays import WriteDecay, draw_log_rate
from .matrix_mixer import MatrixMixer
from .norms import GroupedNorm
from .projected import Gate, Linear, Projected


class Skip(eqx.Module):
    """D v: the value itself, times a weight for each head."""

    weight: Float[Array, " N"]

    def __call__(self, projected: Projected) -> Float[Array, "T N V"]:
        return self.weight.astype(projected.value.dtype)[None, :, None] * projected.value


class Mamba2(MatrixMixer):
    """Dao & Gu 2024, "Transformers are SSMs", arXiv:2405.21060.

        C, B, u = silu(c(W x))                     c: a depthwise convolution of 4 steps, with a bias
        d       = softplus(W x + p)                a step size for each head
        S_t     = exp(-exp(L) d) S_{t-1} + B (d u)'                       S: [K, P] for each of N = E I / P heads
        y_t     = W_o norm((S_t' C + D u) * silu(W x))                    x, y: [I]; B, C: [K]; u: [P]

    C, B and u are queries, keys and values; queries are not scaled, and the heads of one of G groups share B and C. The
    norm comes after the gate, over the heads of a group together. As in the released code (mamba), the input is
    multiplied by d B, where the paper has the exact integral. There the order of the projection is gate, u, B, C, d;
    its weights are torch's, and the convolution's bias is drawn, too. Head n is of group n // (N / G) there and here;
    the path without kernels of flash-linear-attention has n % G.
    """

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        expansion: int = 2,
        head_size: int = 64,
        states: int = 128,
        groups: int = 1,
        convolution: int | None = 4,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights: exp(L) is uniform from 1 to 16, softplus(p) log-uniform from 0.001 to 0.1, D is one.

        expansion    E
        head_size    P, a divisor of E I
        states       K
        groups       G, a divisor of N
        The other arguments are as in `MatrixMixer`.
        """
        check.sizes(input_size=input_size, expansion=expansion, head_size=head_size, states=states, groups=groups)
        check.flags(learn_initial=learn_initial)
        check.dtype(dtype)
        width = expansion * input_size
        heads = width // head_size
        if width % head_size or heads % groups:
            raise ValueError(
                f"head_size: expected a divisor of expansion * input_size={width}, such that groups={groups} divides "
                f"the number of heads, got {head_size}. Pass another head_size, or groups=1"
            )
        own, steps, rates, biases, gates = random.split(key, 5)
        options = {"input_initialiser": input_initialiser, "dtype": dtype}
        step_bias = draw_step_bias(biases, heads, dtype)
        super().__init__(
            input_size,
            heads=heads,
            key_size=states,
            value_size=head_size,
            key=own,
            key_heads=groups,
            query_map=silu,
            key_map=silu,
            value_map=silu,
            scale=1.0,
            decay=WriteDecay(draw_log_rate(rates, heads, 1.0, dtype)),
            write=Gate(Linear(input_size, heads, key=steps, bias=step_bias, **options), softplus, heads),
            skip=Skip(random.array(np.ones(heads), dtype)),
            gate=Gate(Linear(input_size, width, key=gates, **options), silu, heads),
            norm=GroupedNorm(width, groups, dtype=dtype),
            gate_first=True,
            convolution=convolution,
            convolution_bias=convolution is not None,
            learn_initial=learn_initial,
            **options,
        )
