"""The vector program of a cell: interpreted in NumPy, it gives what the cell gives, and its transposed derivative."""

import math
import re
from collections import Counter, namedtuple
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import new_cell
import numpy as np
import pytest
from grid import KEY
from jax import lax, nn

import rnnjax
from rnnjax.kernels.recurrence.contract import Pointwise
from rnnjax.kernels.recurrence.cpu.code import Code
from rnnjax.kernels.recurrence.cpu.program import Program, translate
from rnnjax.kernels.recurrence.pointwise.step import PreActivation

UNITS = 11
FLOAT64 = np.dtype("float64")

# In the order of the C++ kernel.
OPERATIONS = re.findall(
    r"\w+",
    """
    neg abs sign floor ceil round_even sqrt rsqrt exp expm1 log log1p tanh logistic sin cos tan asin acos atan sinh
    cosh erf erfc reciprocal add sub mul div max min pow atan2 lt le gt ge eq ne select multiply_add
""",
)
IN_NUMPY: dict[str, Callable[..., Any]] = {
    "neg": np.negative,
    "round_even": np.rint,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "logistic": lambda a: 1 / (1 + np.exp(-a)),
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "erf": np.vectorize(math.erf, "d"),
    "erfc": np.vectorize(math.erfc, "d"),
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "select": lambda a, b, c: np.where(c != 0, a, b),
    "multiply_add": lambda a, b, c: a * b + c,
}
TERNARY = ("select", "multiply_add")


def operands(operation: int) -> int:
    unary = OPERATIONS.index("reciprocal")
    return 3 if OPERATIONS[operation] in TERNARY else 1 if operation <= unary else 2


def interpret(code: Code, *inputs: np.ndarray) -> np.ndarray:
    """What the code leaves in its outputs; inputs and constants are read alone, and nothing before it is written."""
    given = [row for array in inputs for row in array]
    given += [np.full(UNITS, constant) for constant in code.constants]
    registers: list[np.ndarray | None] = [*given, *[None] * (code.registers - len(given))]
    for operation, destination, *sources in code.instructions:
        name, arity = OPERATIONS[operation], operands(operation)
        read = [registers[source] for source in sources[:arity]]
        assert destination >= len(given)
        assert all(value is not None for value in read)
        assert not any(sources[arity:])
        compute = IN_NUMPY[name] if name in IN_NUMPY else getattr(np, name)
        registers[destination] = np.asarray(compute(*read), FLOAT64)
    return np.array([registers[output] for output in code.outputs]).reshape(-1, UNITS)


class Made(rnnjax.AbstractGatedCell):
    """A cell of one equation, without weights."""

    equation: Callable[..., Any] = eqx.field(static=True)
    state_type: Any = eqx.field(static=True)
    gates: str = eqx.field(static=True, default="n")
    input_weight: None = None
    recurrent_weight: None = None
    bias: None = None
    initial_state: None = None

    def pointwise(self, parameters, u, v, state):
        return self.state_type(*self.equation(parameters, u, v, *state))


STATES = {fields: namedtuple("State", list("hcnm"[:fields])) for fields in (1, 2, 4)}


def made(equation: Callable[..., Any], gates: int = 1, fields: int = 1, parameters: int = 0) -> Pointwise:
    """`equation(parameters, u, v, *state) -> state`."""
    return Pointwise(Made(equation=equation, state_type=STATES[fields]), jax.tree.structure([0] * parameters), gates)


def of_cell(cell: Callable[..., Any], **options: Any) -> Callable[[], Pointwise]:
    return lambda: Pointwise.of(cell(3, 8, key=KEY, **options))


def of_equation(equation: Callable[..., Any], *sizes: int, **more: int) -> Callable[[], Pointwise]:
    return partial(made, equation, *sizes, **more)


def of_sum(function: Callable[..., Any], gates: int = 4) -> Callable[[], Pointwise]:
    """A function of the gates' sums [G, H] that gives the hidden state, itself added for good measure."""
    return of_equation(lambda _, u, v, h: (function(u + v) + 0.5 * h,), gates)


def stabilised(_, u, v, _h, c, n, m):
    """The sLSTM of xLSTM: exponential gates, held in range by the running maximum m."""
    i, f, z, o = u + v
    f = nn.log_sigmoid(f)
    highest = jnp.maximum(f + m, i)
    i, f = jnp.exp(i - highest), jnp.exp(f + m - highest)
    c, n = f * c + i * jnp.tanh(z), f * n + i
    return nn.sigmoid(o) * c / n, c, n, highest


def leaky(parameters, u, v, h):
    leak, gain = nn.sigmoid(parameters[0]), parameters[1]
    return ((1 - leak) * h + leak * jnp.tanh(gain * u[0] + v[0]),)


def six_gates(_, u, v, h, c):
    a, b, d, e, f, g = u + v
    return nn.sigmoid(a) * h + nn.relu(b) * jnp.tanh(c * d), nn.sigmoid(e) * c + f * g


@jax.custom_vjp
def lopsided(u, v):
    return u + v


lopsided.defvjp(lambda u, v: (u + v, None), lambda _, d: (d, 2 * d))


@jax.custom_jvp
def straight_through(x):
    return jnp.round(x)


straight_through.defjvp(lambda primals, tangents: (straight_through(*primals), tangents[0]))


def logic(x):
    a, b, c, d = x
    both = (a > b) & ~(c <= d) | jnp.isfinite(a) ^ (b >= c)
    return jnp.where(both & (a != c), a, jnp.astype(a < d, a.dtype) * b)


def rounding(x):
    a, b, c, d = 3 * x
    return a * jnp.round(b) + jnp.floor(c) * d + jnp.ceil(a) * jnp.sign(b) + straight_through(c)


def transcendental(x):
    a, b, c, d = x
    circular = jnp.sin(a) * jnp.cos(b) + jnp.tan(0.3 * c) + jnp.arcsin(0.2 * d) + jnp.arccos(0.2 * b) + jnp.arctan(c)
    hyperbolic = jnp.sinh(a) + jnp.cosh(b) + jnp.arctan2(c, d) + jnp.expm1(a) + jnp.log1p(b**2) + jnp.exp2(c)
    return circular + hyperbolic + lax.erf(a) * lax.erfc(b) + jnp.log(1 + d * d) + lax.rsqrt(1 + c**2)


def powers(x):
    a, b, c, d = x
    return (
        a**3
        - b**-2
        + jnp.abs(c) ** 2.5
        + d**4 * a**5
        + jnp.abs(a) ** b
        + jnp.sqrt(jnp.square(c) + 1)
        + (1 + d**2) ** -1
    )


def moved(x):
    """What moves entries about: gathers and scatters whose indices are known, and their transposes."""
    x = x.at[1].set(2 * x[0]).at[jnp.array([3])].add(x[2:3])
    picked = x[jnp.array([0, 2, 0])].sum(0) + jnp.take(x, 1, axis=0) + jnp.roll(x, 1, axis=0)[2]
    sliced = lax.dynamic_slice_in_dim(x, 1, 2).prod(0) + x[::-1][0] * x[::2][1] + jnp.split(x, 2)[1].max(0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((-1, 2, 1),))
    return picked + sliced + (padded * jnp.arange(1.0, 9.0).astype(x.dtype)).sum(0)


def shaped(x):
    wide = jnp.tile(x[:2], 2) * jnp.repeat(x[2:], 2, axis=0) + jnp.concatenate([x[1:], x[:1]])
    turned = jnp.transpose(x.reshape(-1, 2, 2), (1, 2, 0)).reshape(x.shape)
    odd = jnp.where(jnp.arange(4) % 2 == 1, jnp.sin(x), jnp.cos(x))
    return (wide + turned + odd + jnp.expand_dims(x[0], 0)).sum(0) + jnp.stack([x[0], x.min(0)])[1]


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "linear": rnnjax.cells.linear,
    "softplus": nn.softplus,
    "gelu": nn.gelu,
    "exact_gelu": partial(nn.gelu, approximate=False),
    "silu": nn.silu,
    "elu": nn.elu,
    "selu": nn.selu,
    "celu": nn.celu,
    "leaky_relu": nn.leaky_relu,
    "log_sigmoid": nn.log_sigmoid,
    "soft_sign": nn.soft_sign,
    "hard_tanh": nn.hard_tanh,
    "hard_silu": nn.hard_silu,
    "mish": nn.mish,
    "sine": jnp.sin,
    "exp": jnp.exp,
    "nan_to_num": jnp.nan_to_num,
}
CELLS: dict[str, Callable[[], Pointwise]] = {
    "lstm": of_cell(rnnjax.LSTM),
    "lstm_peepholes": of_cell(rnnjax.LSTM, peepholes=True),
    "lstm_coupled": of_cell(rnnjax.LSTM, coupled=True),
    "lstm_clipped": of_cell(rnnjax.LSTM, clip=0.3),
    "lstm_options": of_cell(rnnjax.LSTM, peepholes=True, coupled=True, clip=0.3),
    "gru": of_cell(rnnjax.GRU),
    "gru_without_bias": of_cell(rnnjax.GRU, bias=False),
    "update_gate_rnn": of_cell(new_cell.UpdateGateRNN),
    **{f"elman_{name}": of_cell(rnnjax.Elman, activation=activation) for name, activation in ACTIVATIONS.items()},
    "stabilised": of_equation(stabilised, 4, 4),
    "leaky": of_equation(leaky, 1, 1, 2),
    "six_gates": of_equation(six_gates, 6, 2),
    "no_recurrence": of_equation(lambda _, u, v, h: (jnp.tanh(u[0] + v[0]) + u[1] * h,), 2),
    "no_input": of_equation(lambda _, _u, v, _h: (jnp.tanh(v[0]) * v[1],), 2),
    "no_product": of_equation(lambda _, _u, _v, h: (0.9 * h,)),
    "both_and_their_sum": of_equation(lambda _, u, v, _h: (jnp.tanh(u[0] + v[0]) * u[0],)),
    "either_order": of_equation(lambda _, u, v, _h: (jnp.tanh(u[0] + v[0]) * (v[0] + u[0]),)),
    "seen_apart": of_equation(lambda _, u, v, _h: (jnp.tanh(u[0] + v[0]) * lax.stop_gradient(u[0]),)),
    "divided": of_sum(lambda x: x[0] / 3 + x[1] / 4 + x[2] / 0.1 + 1 / x[3]),
    "lopsided": of_equation(lambda _, u, v, h: (lopsided(u, v)[0] + h,)),
    "one_residual_for_two": of_equation(lambda _, u, v, _h, _c: (jnp.tanh(u[0] + 2 * v[0]), u[0] + 2 * v[0]), fields=2),
    "rematerialised": of_sum(jax.checkpoint(lambda x: jnp.sin(x[0] * jnp.tanh(x[1])))),
    "stopped": of_sum(lambda x: lax.stop_gradient(nn.sigmoid(x[0])) * x[1]),
    "where": of_sum(lambda x: jnp.where(x[0] > 0.1, x[1], jnp.where(x[2] < x[3], -x[2], 1.0))),
    "clip": of_sum(lambda x: jnp.clip(x[0], -0.3, 0.4) + lax.clamp(-0.2, x[1], 0.2)),
    "bounds": of_sum(lambda x: jnp.minimum(jnp.abs(x[0]), x[1]) - jnp.maximum(x[2], 0.2) / jnp.abs(x[3])),
    "softmax": of_sum(lambda x: (nn.softmax(x, axis=0) * jnp.tanh(x)).sum(0)),
    "logic": of_sum(logic),
    "finite": of_sum(lambda x: jnp.where(jnp.isfinite(x[0]), x[0], x[1])),
    "any_and_all": of_sum(lambda x: jnp.where((x > 0.2).any(0), x[0], x[1]) * jnp.where((x > -0.6).all(0), 1.5, x[2])),
    "rounding": of_sum(rounding),
    "powers": of_sum(powers),
    "transcendental": of_sum(transcendental),
    "moved": of_sum(moved),
    "shaped": of_sum(shaped),
}


@lru_cache
def pointwise_of(name: str) -> Pointwise:
    return CELLS[name]()


def translated(pointwise: Pointwise) -> Program:
    program = translate(pointwise, FLOAT64)
    assert isinstance(program, Program), program
    return program


def program_of(name: str) -> Program:
    return translated(pointwise_of(name))


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 800.0, -800.0]


def draw(pointwise: Pointwise, special: str) -> dict[str, np.ndarray]:
    """Random arguments, of which those of this name, if one has it, have special values."""
    counts = {
        "unit_parameters": pointwise.unit_parameters.num_leaves,
        "u": pointwise.gates,
        "v": pointwise.gates,
        "before": pointwise.fields,
        "dafter": pointwise.fields,
    }
    generator = np.random.default_rng(3)
    drawn = {name: 0.5 * generator.normal(size=(count, UNITS)) for name, count in counts.items()}
    if special:
        drawn[special][:, : len(SPECIAL)] = SPECIAL
    return drawn


def with_transpose(pointwise: Pointwise, unit_parameters, u, v, before, dafter):
    after, pull = jax.vjp(pointwise, unit_parameters, u, v, before)
    return after, *pull(dafter)


@lru_cache
def of_every_cell() -> Callable[..., dict[str, Any]]:
    """One compiled program for all cells, of the arguments of each."""
    return jax.jit(lambda given: {name: with_transpose(pointwise_of(name), **given[name]) for name in given})


@lru_cache
def by_jax(special: str) -> dict[str, Any]:
    """What every cell and its transposed derivative give for what `draw` gives for it."""
    return of_every_cell()({name: draw(pointwise_of(name), special) for name in CELLS})


@np.errstate(all="ignore")
def by_program(program: Program, unit_parameters, u, v, before, dafter):
    """As `with_transpose`, both halves of the program run in NumPy."""
    zero = np.zeros(UNITS)
    pre_activations = [
        (u[c.gate] if c.input else zero) + (v[c.gate] if c.recurrent else zero) for c in program.pre_activations
    ]
    after, residuals = np.split(interpret(program.forward, pre_activations, before, unit_parameters), [len(before)])
    cotangents = interpret(program.backward, residuals, before, dafter, unit_parameters)
    dpre_activations, dbefore, dunit_parameters = np.split(
        cotangents, [len(pre_activations), len(pre_activations) + len(before)]
    )
    du, dv = np.zeros_like(u), np.zeros_like(v)
    for pre_activation, cotangent in zip(program.pre_activations, dpre_activations, strict=True):
        du[pre_activation.gate] += cotangent if pre_activation.input else 0
        dv[pre_activation.gate] += cotangent if pre_activation.recurrent else 0
    return after, dunit_parameters, du, dv, dbefore


def check(name: str, special: str) -> None:
    got = by_program(program_of(name), **draw(pointwise_of(name), special))
    for one, other in zip(got, by_jax(special)[name], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CELLS)
def test_program_is_the_cell_and_its_transpose(name):
    check(name, "")


@pytest.mark.parametrize("special", ["u", "before", "dafter"])
@pytest.mark.parametrize(
    "name",
    [
        *("lstm", "gru", "stabilised", "elman_softplus", "elman_gelu", "where", "lstm_clipped"),
        *("elman_nan_to_num", "finite"),
    ],
)
def test_special_values_come_out_as_they_do_in_jax(name, special):
    check(name, special)


def count(code: Code) -> Counter:
    return Counter(OPERATIONS[operation] for operation, *_ in code.instructions)


# Columns; and of both halves the instructions, and the registers beside those of inputs and constants.
LENGTHS = {
    "lstm": (4, (8, 6), (25, 6)),
    "lstm_options": (3, (14, 6), (40, 8)),
    "gru": (4, (8, 6), (16, 6)),
    "elman_tanh": (1, (1, 1), (3, 1)),
    "elman_linear": (1, (0, 0), (0, 0)),
    "update_gate_rnn": (2, (5, 3), (11, 4)),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_programs_are_short(name):
    pre_activations, *halves = LENGTHS[name]
    program, fields, unit_parameters = (
        program_of(name),
        pointwise_of(name).fields,
        pointwise_of(name).unit_parameters.num_leaves,
    )
    assert len(program.pre_activations) == pre_activations
    given = (pre_activations + fields + unit_parameters, pre_activations + 2 * fields + unit_parameters)
    for code, inputs, (instructions, registers) in zip(program[1:], given, halves, strict=True):
        assert len(code.instructions) <= instructions
        assert code.registers - inputs - len(code.constants) <= registers


def test_a_quotient_is_a_product_where_that_is_exact():
    forward = program_of("divided").forward
    assert (count(forward)["div"], count(forward)["reciprocal"]) == (2, 1)
    assert 0.25 in forward.constants


def test_residuals_spare_the_backward_code_the_activations():
    lstm, gru = program_of("lstm"), program_of("gru")
    assert (count(lstm.forward)["logistic"], count(lstm.forward)["tanh"]) == (3, 2)
    assert (count(lstm.backward)["logistic"], count(lstm.backward)["tanh"]) == (0, 1)  # that of c
    assert (count(gru.backward)["logistic"], count(gru.backward)["tanh"]) == (0, 0)
    assert program_of("elman_tanh").forward.outputs == (2, 2)  # the state is the residual


def test_both_products_of_a_gate_share_a_column_where_only_their_sum_is_seen():
    both = [PreActivation(gate, True, True) for gate in range(2)]
    assert program_of("gru").pre_activations == (*both, PreActivation(2, True, False), PreActivation(2, False, True))
    assert program_of("either_order").pre_activations == (PreActivation(0, True, True),)
    for name in ("both_and_their_sum", "seen_apart", "lopsided", "no_input"):
        assert PreActivation(0, True, False) in program_of(name).pre_activations


def test_an_instruction_is_its_number_a_destination_and_three_operands():
    for code in program_of("lstm_options")[1:]:
        assert all(len(instruction) == 5 for instruction in code.instructions)
        assert all(0 <= number < code.registers for _, *numbers in code.instructions for number in numbers)
        assert max(code.outputs) < code.registers
    assert hash(program_of("lstm")) == hash(translated(Pointwise.of(rnnjax.LSTM(5, 9, key=KEY))))


@pytest.mark.parametrize(
    "function",
    [lambda x: jnp.tanh(x[0]), lambda x: nn.softplus(x[0]), moved],
    ids=["tanh", "softplus", "moved"],
)
def test_translation_works_while_something_else_is_being_traced_and_happens_once(function):
    pointwise, before = of_sum(function)(), translate.cache_info().misses  # a cell that nobody has translated yet
    traced = jax.jit(lambda: len(translated(pointwise).forward.instructions))
    assert traced() == len(translated(pointwise).forward.instructions)
    assert translate.cache_info().misses == before + 1


@pytest.mark.parametrize("name", ["lstm_clipped", "powers"])
def test_constants_are_of_the_dtype(name):
    program = translate(pointwise_of(name), np.dtype("float32"))
    assert isinstance(program, Program)
    assert program.forward.constants == tuple(float(np.float32(constant)) for constant in program.forward.constants)


def no_counterpart(name: str) -> str:
    return f"pointwise uses `{name}`, which has no counterpart in the vector program"


REFUSED = {
    "cumsum": (lambda x: jnp.cumsum(x)[1], no_counterpart("cumsum")),
    "sort": (lambda x: jnp.sort(x)[0], no_counterpart("sort")),
    "argmax": (lambda x: jnp.argmax(x).astype(x.dtype), no_counterpart("argmax")),
    "matmul": (lambda x: x @ jnp.ones(2), no_counterpart("dot_general")),
    "erf_inv": (lambda x: lax.erf_inv(x[0]), no_counterpart("erf_inv")),
    "loop": (lambda x: lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y), x[0]), no_counterpart("scan")),
    "away": (
        lambda x: lax.round(x[0], lax.RoundingMethod.AWAY_FROM_ZERO),
        no_counterpart("round` away from zero")[:30],
    ),
    "units": (lambda x: x[0, ::-1], "pointwise cannot be traced: IndexError: "),
    "vector": (lambda x: x[0] * jnp.arange(8.0), "pointwise cannot be traced: "),
    "integers": (lambda x: (x[0].astype("int32") + 1).astype(x.dtype), r"pointwise computes in int32 \(`convert_elem"),
    "half": (lambda x: x[0].astype("float16").astype(x.dtype), r"pointwise computes in float16 \(`convert_element_"),
    "other_dtype": (lambda x: x[0].astype("float32"), r"pointwise gives `after` in float32, and states are carried in"),
    "out_of_bounds": (lambda x: x.at[jnp.array(9)].get(mode="fill"), "pointwise has an index that is out of b"),
    "callback": (lambda x: (jax.debug.print("{}", x[0]), x[0])[1], no_counterpart(r"\w*")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name):
    function, reason = REFUSED[name]
    assert_refused(made(lambda _, u, v, _h: (function(u + v),), 2), reason)


def assert_refused(pointwise: Pointwise, reason: str) -> None:
    refusal = translate(pointwise, FLOAT64)
    assert isinstance(refusal, rnnjax.engines.Refusal)
    assert re.match(reason, str(refusal))
