"""Long short-term memory, with peepholes, a coupled gate or a clipped cell where asked."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, InputWeight, PyTree, RecurrentWeight, Unit, UnitGates, Units
from ..cell import learnable_zeros
from ..checked import Checked
from ..exporting import exportable
from ..gated_cell import AbstractCandidateCell, unchanged
from ..hints import OF_LAYERS, instead
from ..named import named


@exportable
class LSTMState(NamedTuple):
    """Hidden and cell state."""

    h: Units
    c: Units


class Peepholes(NamedTuple):
    """What each gate sees of the cell state; `f` holds one vector, or none where the gates are coupled."""

    i: Units
    f: tuple[Units, ...]
    o: Units


class Activations(NamedTuple):
    """The functions of an LSTM: of its gates i, f, o, of its candidate g, and of c_t in its output h_t."""

    gate: Callable[[Array], Array] = sigmoid
    candidate: Callable[[Array], Array] = jnp.tanh
    output: Callable[[Array], Array] = jnp.tanh


DEFAULT = Activations()


class LSTM(AbstractCandidateCell):
    """Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; gate order i, f, g, o, as in torch.

        i, f, o = sigmoid(W x_t + R h_{t-1} + b)         g = tanh(W x_t + R h_{t-1} + b)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)

    Options, which combine:
        peepholes   i and f see p * c_{t-1}, o sees p * c_t (Gers et al. 2002, JMLR 3:115)
        coupled     f = 1 - i, three gates i, g, o (CIFG; Greff et al. 2015, arXiv:1503.04069)
        clip        c_t is held within [-clip, clip] (Sak et al. 2014, arXiv:1402.1128)
        activation, output_activation, gate_activation
                    any elementwise functions in place of the tanh of g, the tanh of c_t, and the sigmoid; behind
                    `rnnjax.cells.clipped`, of pre-activations within a bound
    With an output projection there is a second matrix in the loop: that is `ProjectedLSTM`.

    Shapes; the columns are those of i, then of f, g and o, or of i, g and o where the gates are coupled (G = 3, not 4):
        input_weight       W [I, G H]
        recurrent_weight   R [H, G H], or [N, D, G D] of N heads with D = H / N units each
        bias               b [G H], or None
        peepholes          p [H] of each gate but g, or None
        initial_state      h [H] and c [H], or None
    `rnnjax.convert` reads and writes the layouts of other libraries.
    """

    state_type: ClassVar[type] = LSTMState

    input_weight: InputWeight
    recurrent_weight: RecurrentWeight
    bias: Bias | None
    peepholes: Peepholes | None
    initial_state: LSTMState | None
    coupled: bool = eqx.field(static=True)
    clip: float | None = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)
    output_activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)
    gate_activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)

    @instead(OF_LAYERS)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        peepholes: bool = False,
        coupled: bool = False,
        clip: float | None = None,
        activation: Checked[Callable[[Array], Array]] = jnp.tanh,
        output_activation: Checked[Callable[[Array], Array] | None] = None,
        gate_activation: Checked[Callable[[Array], Array]] = sigmoid,
        heads: int = 1,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.orthogonal,
        bias_initialiser: initialise.Initialiser = initialise.forget(1.0),
        dtype: DType = jnp.float32,
    ):
        """Draw the weights.

        input_size, hidden_size   I and H
        output_activation         None: `activation`, of which the default is tanh
        heads                     R is block-diagonal with this many blocks; it must divide H
        bias                      whether there is a b
        learn_initial             whether the initial state is a weight (of zeros, to be trained) or the constant zero
        *_initialiser             see `rnnjax.initialise`
        dtype                     of weights, inputs and outputs; below float32 the state stays in float32
        """
        check.sizes(input_size=input_size, hidden_size=hidden_size, heads=heads)
        check.flags(peepholes=peepholes, coupled=coupled, bias=bias, learn_initial=learn_initial)
        check_clip(clip)
        output_activation = activation if output_activation is None else output_activation
        check.activations(activation=activation, output_activation=output_activation, gate_activation=gate_activation)
        self.coupled, keys = coupled, random.split(key, 4)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = initialise.recurrent_weight(
            recurrent_initialiser, keys[1], self.gates, hidden_size, heads, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None
        self.peepholes = draw_peepholes(keys[3], hidden_size, coupled, dtype) if peepholes else None
        self.initial_state = learnable_zeros(learn_initial, LSTMState, hidden_size, dtype)
        self.clip = clip
        self.activation = activation
        self.output_activation = output_activation
        self.gate_activation = gate_activation

    @property
    def gates(self) -> str:
        return gate_names(self.coupled)

    @property
    def unit_parameters(self) -> PyTree:
        return self.peepholes

    def write(
        self,
        parameters: Peepholes | None,
        u: UnitGates,
        v: UnitGates,
        state: LSTMState,
        through: Callable[[Unit], Unit],
    ) -> LSTMState:
        activations = Activations(self.gate_activation, self.activation, self.output_activation)
        return gate(parameters, u + v, state.c, self.clip, activations, through)


def gate(
    peepholes: Peepholes | None,
    gates: Float[Array, "G *units"],
    c: Float[Array, "*units"],
    clip: float | None,
    activations: Activations = DEFAULT,
    through: Callable[[Array], Array] = unchanged,
) -> LSTMState:
    """The elementwise half of every LSTM here: `gates` before their nonlinearities, three of them if coupled."""
    i, *f, g, o = gates
    if peepholes is not None:
        i = i + peepholes.i * c
        f = [forget + peephole * c for forget, peephole in zip(f, peepholes.f, strict=True)]
    i = activations.gate(i)
    keep = activations.gate(f[0]) if f else 1 - i
    c = keep * c + i * through(activations.candidate(g))
    if clip is not None:
        c = jnp.clip(c, -clip, clip)
    if peepholes is not None:
        o = o + peepholes.o * c
    return LSTMState(activations.gate(o) * activations.output(c), c)


def gate_names(coupled: bool) -> str:
    """The gates of an LSTM, in order."""
    return "igo" if coupled else "ifgo"


def check_clip(clip: float | None) -> None:
    """Raise unless `clip` is a bound or none."""
    if clip is not None and not check.number("clip", clip) > 0:
        raise ValueError(
            f"clip: expected a positive bound or None, got {clip!r}. "
            "Pass the largest absolute value that c may have, or None for no bound"
        )


def draw_peepholes(key: PRNGKeyArray, hidden_size: int, coupled: bool, dtype: DType) -> Peepholes:
    """Peepholes uniform within 1/sqrt(H), as other weights that see H units."""
    draws = [initialise.uniform(key, (hidden_size,), dtype) for key in random.split(key, 3)]
    return Peepholes(draws[0], () if coupled else (draws[1],), draws[2])
