"""The layer around a matrix state that the linear recurrent networks of the literature are settings of."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from ... import check, initialise, random
from ...arrays import DType, Inputs, carry_dtype, cast
from ...cell import initial_or_zeros, learnable_zeros
from ...cells.matrix_recurrence import check_key_heads
from ...checked import Checked
from ...exporting import exportable
from ...matrix_cell import Matrix, Transition
from ...named import as_module
from ...network import AbstractNetwork, Options
from ...unroll import unroll
from ..depthwise_convolution import DepthwiseConvolution
from ..window import Remembered, Window
from .folding import fold_options, fold_rows, last_micro_steps, recurrence_of, spread
from .maps import unchanged
from .projected import Coefficient, Projected, by_row
from .rows import check_callable, check_learned, check_maps, check_reads, check_rows


@exportable
class MixerState(NamedTuple):
    """The last inputs of the convolution, None without one, and for each head a matrix of keys by values."""

    inputs: Remembered | None
    S: Inexact[Array, "N K V"]


class Read(NamedTuple):
    """What the outputs are made of beside the reads, over time; None where a mixer has no such part."""

    skip: Float[Array, "T N V"] | None
    gate: Float[Array, "T N V"] | None


class MatrixMixer(AbstractNetwork):
    """A layer whose state is a matrix for each head: the modules passed make it one of the linear recurrent networks.

        q, k, v = query_map(c(W_q x)), key_map(c(W_k x)), value_map(c(W_v x))    c: a causal depthwise convolution
        S_t = (I - k (e * k)') (a * S_{t-1}) + k (w * v)'                        a decay, w write, e erase: of x
        y_t = W_o (norm(S_t' (scale q) + skip) * gate)

    for each of N heads; q, k: [K], v: [V], S: [K, V]. `decay` and `erase` are a number for each head, or a vector of
    its keys; `write` is a number for each head, or a vector of its values. `DeltaNet`, `GatedDeltaNet`, `Mamba2` and
    the other named layers are settings of it. The recurrence is a `rnnjax.MatrixRecurrence`, whose docstring says which
    engine `Auto` takes; where that is `Scan`, as for complex keys, `engine=rnnjax.Chunked()` stores fewer states for
    the gradient. A `query_map` has the queries alone, and so Comba (arXiv:2506.02475), which reads with q - D k, is not
    a setting.

    Inputs and outputs are [T, I]. The state has the inputs of the last steps of the convolution, so feeding a sequence
    in chunks gives the same result as feeding it whole. Coefficients, state and norm are float32 or wider; for narrower
    weights the products with them are not.

    With n micro-steps the rows of keys, values, `write` and `erase` are [T, n N, ..]: each input erases and writes n
    times, one after the other, of which the first decays, and the query reads after the last.
    """

    input_weight: Float[Array, "I C"]  # of queries, keys and values
    output_weight: Float[Array, "O I"]
    convolution: DepthwiseConvolution | None
    initial_state: Matrix | None
    query_map: Callable[[Array], Array] = eqx.field(converter=as_module)
    key_map: Callable[[Array], Array] = eqx.field(converter=as_module)
    value_map: Callable[[Array], Array] = eqx.field(converter=as_module)
    decay: Coefficient | None = eqx.field(converter=as_module)
    write: Coefficient | None = eqx.field(converter=as_module)
    erase: Coefficient | None = eqx.field(converter=as_module)
    skip: Coefficient | None = eqx.field(converter=as_module)
    gate: Coefficient | None = eqx.field(converter=as_module)
    norm: Callable[[Array], Array] | None = eqx.field(converter=as_module)
    gate_first: bool = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    key_heads: int = eqx.field(static=True)
    key_size: int = eqx.field(static=True)
    value_size: int = eqx.field(static=True)
    micro_steps: int = eqx.field(static=True)
    state_shape: tuple[int, int, int] = eqx.field(static=True)
    is_complex: bool = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        *,
        heads: int,
        key_size: int,
        value_size: int,
        key: PRNGKeyArray,
        key_heads: int | None = None,
        query_map: Checked[Callable[[Array], Array]] = unchanged,
        key_map: Checked[Callable[[Array], Array]] = unchanged,
        value_map: Checked[Callable[[Array], Array]] = unchanged,
        scale: float | None = None,
        decay: Checked[Coefficient | None] = None,
        write: Checked[Coefficient | None] = None,
        erase: Checked[Coefficient | None] = None,
        skip: Checked[Coefficient | None] = None,
        gate: Checked[Coefficient | None] = None,
        norm: Checked[Callable[[Array], Array] | None] = None,
        gate_first: bool = False,
        convolution: int | None = None,
        convolution_bias: bool = False,
        micro_steps: int = 1,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the projections and the convolution; the modules are used as they are.

        heads, key_size, value_size   N, K, V
        key_heads                     heads of queries and keys, a divisor of `heads`: head n uses row
                                      n // (heads / key_heads); None: N
        query_map, key_map, value_map functions of vectors on the last axis, after the convolution; they may change
                                      the size, and be complex
        scale                         of the queries; None: K^-1/2
        decay                         a: `Projected` to [T, N, 1] or [T, N, K]; None: 1
        write                         w: `Projected` to [T, N, 1] or [T, N, V]; None: 1
        erase                         e: `Projected` to [T, N, 1] or [T, N, K]; None: nothing is erased. `decay` and
                                      `erase` may use `projected.write`
        skip, gate                    `Projected` to [T, N, V]; None: none
        norm                          [N, V] of one step to [N, V]; None: none
        gate_first                    multiply by the gate before the norm, not after
        convolution                   steps of the convolution; None: none
        micro_steps                   n
        input_initialiser             draws the projections of queries, keys and values, and the output's
        The other arguments are as in `LSTM`.
        """
        key_heads = heads if key_heads is None else key_heads
        check.sizes(input_size=input_size, heads=heads, key_size=key_size, value_size=value_size)
        check.sizes(key_heads=key_heads, micro_steps=micro_steps)
        check.flags(gate_first=gate_first, convolution_bias=convolution_bias, learn_initial=learn_initial)
        check.dtype(dtype)
        check_key_heads(heads, key_heads)
        check_callable(query_map=query_map, key_map=key_map, value_map=value_map)
        check_callable(decay=decay, write=write, erase=erase, skip=skip, gate=gate, norm=norm)
        self.heads, self.key_heads, self.micro_steps = heads, key_heads, micro_steps
        self.key_size, self.value_size = key_size, value_size
        self.query_map, self.key_map, self.value_map = query_map, key_map, value_map
        self.decay, self.write, self.erase, self.skip, self.gate = decay, write, erase, skip, gate
        self.norm, self.gate_first = norm, gate_first
        self.scale = key_size**-0.5 if scale is None else check.number("scale", scale)
        keys = random.split(key, 5)
        columns = [rows * size for rows, size in self._projections]
        draw = lambda key, size: random.known(input_initialiser(key, (input_size, size), carry_dtype(dtype)))  # noqa: E731
        drawn = [draw(*each) for each in zip(keys[:3], columns, strict=True)]
        self.input_weight = random.array(random.numpy_for(*drawn).concatenate(drawn, axis=1), dtype)
        self.convolution = _draw_convolution(sum(columns), convolution, convolution_bias, keys[3], dtype)
        width = heads * value_size
        drawn = input_initialiser(keys[4], (width, input_size), carry_dtype(dtype))
        self.output_weight = random.array(random.known(drawn), dtype)
        steps = self._check_modules()
        self.state_shape = heads, steps.key.shape[-1], steps.value.shape[-1]
        self.is_complex = check_learned(learn_initial, steps.key.dtype)
        self.initial_state = learnable_zeros(learn_initial, Matrix, self.state_shape, dtype)

    @property
    def _projections(self) -> tuple[tuple[int, int], ...]:
        """Rows and sizes of queries, keys and values."""
        n = self.micro_steps
        keys = self.key_heads, self.key_size
        return keys, (n * keys[0], keys[1]), (n * self.heads, self.value_size)

    def _check_modules(self) -> Transition:
        """Shapes and dtypes of one step's coefficients. Raise unless all modules return arrays of their sizes."""
        inputs, columns = self.input_weight.shape
        one = lambda size: jax.ShapeDtypeStruct((1, size), self.input_weight.dtype)  # noqa: E731
        steps, read = jax.eval_shape(lambda *arrays: self.coefficients(*arrays), one(inputs), one(columns))
        reads = jax.ShapeDtypeStruct((1, self.heads, steps.value.shape[-1]), carry_dtype(self.input_weight.dtype))
        jax.eval_shape(lambda *arrays: self._outputs(*arrays), reads, read)
        return steps

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_weight.shape[:1], self.input_weight.dtype)

    def initial(self) -> MixerState:
        inputs = None if self.convolution is None else self.convolution.initial().inputs
        wide = carry_dtype(self.input_weight.dtype)
        dtype = np.result_type(wide, np.complex64) if self.is_complex else wide
        return MixerState(inputs, initial_or_zeros(Matrix, self.initial_state, self.state_shape, dtype).S)

    def hidden(self, state: MixerState) -> None:
        """None: attention and decoders read a vector of hidden units, and a matrix state has none."""
        del state

    def run(self, state: MixerState, xs: Inputs, options: Options) -> tuple[MixerState, Inputs]:
        projected, inputs = options.over_time(self._project, xs), state.inputs
        if self.convolution is not None:
            assert inputs is not None
            (inputs,), projected = unroll(self.convolution, Window(inputs), projected, **options._asdict())
        steps, read = options.over_time(self.coefficients, xs, projected)
        folded = fold_options(options, self.micro_steps, xs.shape[0])
        recurrence = recurrence_of(steps, None if self.initial_state is None else Matrix(self.initial().S))
        after, reads = unroll(recurrence, Matrix(state.S), fold_rows(steps), **folded._asdict())
        reads = last_micro_steps(reads, self.micro_steps).real
        return MixerState(inputs, after.S), options.over_time(self._outputs, reads, read)

    def _project(self, xs: Inputs) -> Float[Array, "T C"]:
        return xs @ self.input_weight

    def coefficients(self, xs: Inputs, projected: Float[Array, "T C"]) -> tuple[Transition, Read]:
        """The coefficients of the recurrence, [T, n, N, ..], and of the outputs."""
        made = self._mapped(xs, projected)
        rows = self.micro_steps * self.heads
        made = made._replace(write=check_rows("write", self.write, made, rows, 1, made.value.shape[-1]))
        key_size = made.key.shape[-1]
        decay = check_rows("decay", self.decay, made, self.heads, 1, key_size)
        erase = check_rows("erase", self.erase, made, rows, 1, key_size)
        skip = check_rows("skip", self.skip, made, self.heads, made.value.shape[-1])
        gate = check_rows("gate", self.gate, made, self.heads, self.value_size)
        return spread(made, decay, erase, self.scale, self.heads, self.micro_steps), Read(skip, gate)

    def _mapped(self, xs: Inputs, projected: Float[Array, "T C"]) -> Projected:
        wide = projected.astype(carry_dtype(projected.dtype))
        queries, keys, _ = (rows * size for rows, size in self._projections)
        parts = jnp.split(wide, (queries, queries + keys), axis=1)
        maps = self.query_map, self.key_map, self.value_map
        query, key, value = (
            function(by_row(part, rows))
            for function, part, (rows, _) in zip(maps, parts, self._projections, strict=True)
        )
        queries, keys, values = (rows for rows, _ in self._projections)
        return check_maps(Projected(xs, query, key, value), (queries, keys, values))

    def _outputs(self, reads: Float[Array, "T N V"], read: Read) -> Inputs:
        ys = reads if read.skip is None else reads + read.skip
        gate = lambda ys: ys if read.gate is None else ys * read.gate  # noqa: E731
        if self.gate_first:
            ys = gate(ys)
        if self.norm is not None:
            ys = jax.vmap(self.norm)(ys)
        check_reads(ys, self.heads, self.value_size)
        ys = ys if self.gate_first else gate(ys)
        return (
            cast(ys.reshape(ys.shape[0], self.heads * self.value_size), self.output_weight.dtype) @ self.output_weight
        )


def _draw_convolution(
    size: int, steps: int | None, bias: bool, key: PRNGKeyArray, dtype: DType
) -> DepthwiseConvolution | None:
    """Weights and, as torch draws them, within 1/sqrt(steps); the bias is zero."""
    if steps is None:
        return None
    check.sizes(convolution=steps)
    bound = steps**-0.5
    uniform = initialise.interval(-bound, bound)
    return DepthwiseConvolution(size, window=steps, key=key, bias=bias, input_initialiser=uniform, dtype=dtype)
