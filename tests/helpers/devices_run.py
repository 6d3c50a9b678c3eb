"""For `test_devices`, in a process of its own: `JAX_NUM_CPU_DEVICES=8 JAX_ENABLE_X64=1 python devices_run.py CHECK`."""

import sys
from functools import partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

import rnnjax


class Rotating(rnnjax.AbstractLinearCell):
    """h_t = lambda h_{t-1} + W x_t, lambda complex; y is the real part."""

    input_weight: Array
    eigenvalues: Array
    start: rnnjax.Hidden | None = None

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_weight.shape[:1], self.input_weight.real.dtype)

    def initial(self) -> rnnjax.Hidden:
        return rnnjax.Hidden(jnp.zeros_like(self.eigenvalues))

    def project(self, xs: Array) -> Array:
        return xs.astype(self.input_weight.dtype) @ self.input_weight

    def coefficients(self, u: Array) -> tuple[Array, Array]:
        return self.eigenvalues, u

    def readout(self, states: rnnjax.Hidden, xs: Array) -> Array:
        del xs
        return states.h.real


def rotating() -> Rotating:
    """A cell of `H` units that forget slowly as they turn."""
    angle, weight = jnp.linspace(0.1, 3, grid.H), grid.inputs(2, grid.H)
    return Rotating((weight[0] + 1j * weight[1]).T, 0.95 * jnp.exp(1j * angle))


def time_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("time",), axis_types=(AxisType.Auto,))


def derivatives(engine: rnnjax.AbstractEngine, part: Any, state: PyTree, xs: Array, **options: Any) -> PyTree:
    """Outputs and last state, and the gradient of all of them by weights, initial state and inputs."""
    weights, static = eqx.partition(part, eqx.is_inexact_array)

    def loss(weights: PyTree, state: PyTree, xs: Array) -> tuple[Array, PyTree]:
        out = rnnjax.unroll(eqx.combine(weights, static), state, xs, engine=engine, **options)
        return grid.contract(out), out

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(weights, state, xs)


def ragged(engine: rnnjax.AbstractEngine, part: Any) -> PyTree:
    """A batch that the devices do not divide, ended and reset within their parts, and by the very last step."""
    lengths, resets = jnp.asarray([0, 5, 18, 19]), jnp.arange(19) % 5 == 3
    one = lambda state, xs, length: derivatives(engine, part, state, xs, length=length, resets=resets)  # noqa: E731
    return jax.vmap(one)(grid.random_state(part, 4), grid.inputs(4, 19), lengths)


def short(engine: rnnjax.AbstractEngine, part: Any) -> PyTree:
    """Fewer steps than devices, in reverse."""
    state = grid.random_state(part)
    return derivatives(engine, part, state, grid.inputs(3), length=jnp.asarray(2), reverse=True)


def forward_mode(engine: rnnjax.AbstractEngine, part: Any) -> PyTree:
    """A derivative along the inputs, of two steps a device."""
    xs = grid.inputs(16)
    run = partial(rnnjax.unroll, part, None, engine=engine)
    return jax.jvp(run, (xs,), (jnp.sin(xs),))


def equals_one_device(part: Any, engine: rnnjax.AbstractEngine, *views: Any) -> None:
    for view in views:
        compute = lambda engine, view=view: eqx.filter_jit(partial(view, engine))(part)  # noqa: E731
        grid.assert_close(compute(rnnjax.Sharded(engine, time_mesh(), "time")), compute(grid.ORACLE))


def check_hand_off() -> None:
    equals_one_device(grid.build("lstm_options"), rnnjax.Scan(), ragged, short)
    equals_one_device(grid.build("lstm_options"), rnnjax.Fused(), short)


def two_axes() -> None:
    """Batch and time, each over an axis of one mesh."""
    mesh = jax.make_mesh((2, 4), ("batch", "time"), axis_types=(AxisType.Auto,) * 2)
    cell, xs = grid.build("min_gru"), grid.inputs(4, 16)

    @eqx.filter_jit
    def compute(engine: rnnjax.AbstractEngine, **options: Any) -> PyTree:
        return jax.vmap(lambda xs: derivatives(engine, cell, None, xs), **options)(xs)

    over_both = compute(rnnjax.Sharded(rnnjax.Associative(), mesh, "time"), spmd_axis_name="batch")
    grid.assert_close(over_both, compute(grid.ORACLE))


def check_checkpointed() -> None:
    equals_one_device(grid.build("gru"), rnnjax.Checkpointed(), short)
    equals_one_device(grid.build("gru"), rnnjax.Fused(), ragged)


def check_associative() -> None:
    """A complex cell; and layers, each by the engine that fits it."""
    equals_one_device(rotating(), rnnjax.Associative(), ragged, short, forward_mode)
    equals_one_device(grid.build("stack"), rnnjax.Auto(), short)
    two_axes()
    engine = rnnjax.Sharded(rnnjax.Fused(shortest=3), time_mesh(), "time")
    assert engine.refusal(grid.build("lstm"), grid.inputs(17)) is None
    assert engine.refusal(grid.build("lstm"), grid.inputs(16)) == "Fused(shortest=3) leaves 2 steps of LSTM to Scan()."


def check_what_fades_and_what_overflows() -> None:
    """NaN is passed on by parts whose factors are too small to hold, and ends at a reset, as does what overflows."""
    cell, T = rnnjax.LinearRecurrence(rnnjax.Hidden(jnp.zeros(1))), 8000
    a, b = jnp.full((T, 1), 0.5), jnp.ones((T, 1))
    nan = rnnjax.Hidden(jnp.full(1, jnp.nan))
    run = jax.jit(partial(rnnjax.unroll, cell, engine=rnnjax.Sharded(rnnjax.Associative(), time_mesh(), "time")))
    assert np.isnan(run(nan, (a, b))[1]).all()
    assert np.isnan(run(None, (a, b.at[500].set(jnp.nan)))[1][500:]).all()
    wild = a.at[:900].set(10.0)
    ys = run(None, (wild, b), resets=jnp.arange(T) == 950)[1]
    np.testing.assert_allclose(ys[1000:], 2.0)


def check_newton() -> None:
    """A dense Jacobian, blocks of two, and damping; and what it cannot do part by part."""
    equals_one_device(grid.build("gru"), rnnjax.Newton(), ragged, short)
    equals_one_device(grid.build("diagonal_lstm"), rnnjax.Newton(rnnjax.Diagonal(), damping=0.1), ragged, forward_mode)
    equals_one_device(grid.build("diagonal_gru"), rnnjax.Newton(rnnjax.Diagonal()), ragged)
    parts = partial(rnnjax.Sharded, mesh=time_mesh(), axis="time")
    with pytest.raises(ValueError, match=r"the gradient of Newton.* goes step by step for GRU"):
        short(parts(rnnjax.Newton(rnnjax.Diagonal())), grid.build("gru"))
    with pytest.raises(ValueError, match=r"engine: Newton\(fall_back=True\) cannot run parts of time"):
        short(parts(rnnjax.Newton(fall_back=True)), grid.build("gru"))
    patient = rnnjax.Auto((rnnjax.Newton(fall_back=True), rnnjax.Scan()))
    assert parts(patient).refusal(grid.build("gru"), jax.ShapeDtypeStruct((16, grid.I), "float64")) is None
    hasty = parts(rnnjax.Newton(iterations=1))
    with pytest.raises(Exception, match="did not solve GRU within 1 iterations"):
        eqx.filter_jit(rnnjax.unroll)(grid.build("gru"), None, grid.inputs(16), engine=hasty)


def gradient(engine: rnnjax.AbstractEngine, cell: Any, xs: jax.ShapeDtypeStruct) -> Any:
    """The compiled gradient, by weights and inputs, of a sequence that ends before its last part does."""
    weights, static = eqx.partition(cell, eqx.is_inexact_array)

    def loss(weights: PyTree, xs: Array) -> Array:
        length = jnp.asarray(xs.shape[0] - 9)
        last, ys = rnnjax.unroll(eqx.combine(weights, static), None, xs, length=length, engine=engine)
        return jnp.sum(last.h**2) + jnp.sum(ys**2)

    return jax.jit(jax.grad(loss, (0, 1))).lower(weights, xs).compile()


def check_memory() -> None:
    """A device keeps its share, and nothing over time is gathered."""
    xs, sharding = jax.ShapeDtypeStruct((8192, grid.I), "float64"), NamedSharding(time_mesh(), P("time"))
    for engine, cell in ((rnnjax.Scan(), rnnjax.GRU), (rnnjax.Associative(), rnnjax.MinGRU)):
        cell = cell(grid.I, grid.H, key=grid.KEY, dtype=jnp.float64)
        whole = gradient(engine, cell, xs)
        spread = gradient(rnnjax.Sharded(engine, time_mesh(), "time"), cell, xs.update(sharding=sharding))
        share = spread.memory_analysis().temp_size_in_bytes / whole.memory_analysis().temp_size_in_bytes
        print(f"{type(cell).__name__}: {share:.3f} of the temporary memory")
        assert share <= 1 / 6
        assert not [line for line in spread.as_text().splitlines() if "all-gather(" in line and "8192" in line]


def tagger_loss(engine: rnnjax.AbstractEngine, model: Any, carry: PyTree, batch: Any, key: Any) -> tuple[Array, PyTree]:
    """Predict the next inputs of streams, the states carried on."""
    del key
    carry, ys = jax.vmap(lambda state, xs: rnnjax.unroll(model, state, xs, engine=engine))(carry, batch[0])
    return jnp.mean((ys[..., : grid.I] - batch[1]) ** 2), carry


def trained(engine: rnnjax.AbstractEngine, batches: Any, mesh: jax.sharding.Mesh | None) -> tuple[list, rnnjax.Fitted]:
    """The losses of a run, and what came of it."""
    losses = []
    cell = grid.build("gru")
    fitted = rnnjax.fit(
        cell,
        partial(tagger_loss, engine),
        batches,
        optax.sgd(0.5, momentum=0.9),
        steps=6,
        key=grid.KEY,
        carry=grid.random_state(cell, 8),
        validate=lambda model: losses.append(tagger_loss(grid.ORACLE, model, *state_and_batch(), None)[0]) or 0.0,
        every=1,
        progress=False,
        mesh=mesh,
    )
    return losses, fitted


def state_and_batch() -> tuple[PyTree, Any]:
    return grid.random_state(grid.build("gru"), 8), streams(0)


def streams(step: int) -> tuple[np.ndarray, np.ndarray]:
    whole = np.asarray(grid.inputs(8, 9, seed=step))
    return whole[:, :-1], whole[:, 1:]


def check_data_parallel() -> None:
    """Training over eight devices, and over two of batch by four of time, is training on one."""
    expected, alone = trained(rnnjax.Scan(), streams, None)
    assert expected[-1] < expected[0]
    both = jax.make_mesh((2, 4), ("batch", "time"), axis_types=(AxisType.Auto,) * 2)
    over_time = rnnjax.Sharded(rnnjax.Scan(), both, "time")
    for engine, mesh in ((rnnjax.Scan(), jax.make_mesh((8,), ("batch",))), (over_time, both)):
        losses, fitted = trained(engine, streams, mesh)
        grid.assert_close((losses, fitted[:2]), (expected, alone[:2]))
    message = "batches: expected arrays whose first axis, the batch's, the 8 devices of the mesh divide, got .*12,8,3"
    with pytest.raises(ValueError, match=message):
        trained(rnnjax.Scan(), lambda _: (np.zeros((12, 8, grid.I)),) * 2, jax.make_mesh((8,), ("batch",)))


if __name__ == "__main__":
    globals()[f"check_{sys.argv[1]}"]()
