"""`check_cell`: the library's cells hold all laws, and for each law a cell that is broken on purpose is caught."""

from typing import Any

import grid
import jax
import jax.numpy as jnp
import new_cell
import numpy as np
import pytest

import rnnjax
from rnnjax.diagnose import cell_report, check_cell
from rnnjax.diagnose.cell_laws import laws_of

H = 3


class Plain(rnnjax.AbstractCell):
    """h = tanh(w * h + x), which holds all laws; each cell below breaks one of its methods."""

    weight: jax.Array

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((H,), jnp.float32)

    def initial(self) -> rnnjax.Hidden:
        return rnnjax.Hidden(jnp.zeros(H))

    def project(self, xs: jax.Array) -> jax.Array:
        return xs

    def step(self, state: Any, u: jax.Array) -> Any:
        return rnnjax.Hidden(jnp.tanh(self.weight * state.h + u))

    def readout(self, states: Any, xs: Any) -> jax.Array:
        del xs
        return states.h


class OtherDtype(Plain):
    def step(self, state: Any, u: jax.Array) -> Any:
        return rnnjax.Hidden(super().step(state, u).h.astype(jnp.float16))


class NotFinite(Plain):
    def step(self, state: Any, u: jax.Array) -> Any:
        return rnnjax.Hidden(super().step(state, u).h + jnp.sqrt(0 * u))


class Impure(Plain):
    def step(self, state: Any, u: jax.Array) -> Any:
        return rnnjax.Hidden(super().step(state, u).h + np.random.default_rng().random())


class LooksBack(Plain):
    def project(self, xs: jax.Array) -> jax.Array:
        return xs - jnp.roll(xs, 1, 0)


class LooksAhead(Plain):
    def readout(self, states: Any, xs: Any) -> jax.Array:
        del xs
        return states.h - states.h.mean(0)


class OtherEachTime(Plain):
    def initial(self) -> rnnjax.Hidden:
        return rnnjax.Hidden(jnp.asarray(np.random.default_rng().random(H).astype("float32")))


@jax.custom_batching.custom_vmap
def doubled(h: jax.Array) -> jax.Array:
    return 2 * h


@doubled.def_vmap
def _(size: int, batched: Any, h: jax.Array) -> Any:
    del size
    return 3 * h, batched[0]


class BatchedWrongly(Plain):
    def readout(self, states: Any, xs: Any) -> jax.Array:
        del xs
        return doubled(jax.lax.stop_gradient(states.h))


class AdvancesByItself(rnnjax.Elman):
    def advance(self, u: Any, v: Any, state: Any) -> Any:
        return rnnjax.Hidden(super().advance(u, v, state).h / 2)


class StepsByItself(rnnjax.Elman):
    def step(self, state: Any, u: jax.Array) -> Any:
        return rnnjax.Hidden(1.5 * super().step(state, u).h)


class StepsApart(rnnjax.LinearRNN):
    def step(self, state: Any, u: Any) -> Any:
        return rnnjax.Hidden(jnp.tanh(super().step(state, u).h))


class NotDiagonal(rnnjax.IndRNN):
    def step(self, state: Any, u: Any) -> Any:
        return super().step(rnnjax.Hidden(jnp.roll(state.h, 1)), u)


def plain(broken: type = Plain) -> Any:
    return broken(jnp.full(H, 0.5))


def sized(broken: type) -> Any:
    return broken(H, 4, key=grid.KEY)


BROKEN = [
    ("state", OtherDtype, plain),
    ("finite", NotFinite, plain),
    ("step", Impure, plain),
    ("streaming", LooksBack, plain),
    ("length", LooksAhead, plain),
    ("resets", OtherEachTime, plain),
    ("reverse", LooksAhead, plain),
    ("vmap", BatchedWrongly, plain),
    ("pointwise", StepsByItself, sized),
    ("pointwise", AdvancesByItself, sized),
    ("coefficients", StepsApart, sized),
    ("diagonal", NotDiagonal, sized),
    ("engine Associative", StepsApart, sized),
]


@pytest.mark.usefixtures("as_it_comes")
@pytest.mark.parametrize(("law", "broken", "build"), BROKEN)
def test_a_broken_law_is_named(law, broken, build, monkeypatch):
    """With its own laws of a kind, "state" and "finite", alone: each other one costs a program or two."""
    monkeypatch.setattr(cell_report, "laws_of", lambda cell: [each for each in laws_of(cell) if each.name == law])
    report = check_cell(build(broken))
    assert law in report.broken
    (line,) = (line for line in str(report).splitlines() if line.split()[:2] == ["BROKEN", *law.split()][:2])
    assert "look at" in line or "Return its" in line
    assert repr(report) == str(report)


class Raises(Plain):
    def readout(self, states: Any, xs: Any) -> jax.Array:
        return states.missing + xs


@pytest.mark.usefixtures("as_it_comes")
def test_what_a_cell_raises_is_in_the_report(monkeypatch):
    monkeypatch.setattr(cell_report, "laws_of", lambda cell: list(laws_of(cell))[:1])
    report = check_cell(plain(Raises))
    assert report.broken == ("finite", "step")
    assert "raised AttributeError: 'Hidden' object has no attribute 'missing'" in str(report)


class HasNoInput(Plain):
    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.missing.shape, jnp.float32)


class HasAnotherInput(Plain):
    def input_type(self) -> Any:
        return (H,)


@pytest.mark.usefixtures("as_it_comes", "annotations_unchecked")
def test_an_input_type_that_raises_is_in_the_report():
    report = check_cell(plain(HasNoInput))
    assert report.broken == ("input_type",)
    assert "raised AttributeError: 'HasNoInput' object has no attribute 'missing'" in str(report)
    report = check_cell(plain(HasAnotherInput))
    assert report.broken == ("input_type",)


def test_what_is_no_cell_is_refused():
    with pytest.raises(TypeError, match=r"cell: expected an AbstractCell, got .*Pass a cell, such as rnnjax.LSTM"):
        check_cell(jnp.tanh)


SOUND = {
    "lru": lambda: rnnjax.LRU(H, 4, key=grid.KEY),
    "diagonal_lstm": lambda: rnnjax.DiagonalLSTM(H, 4, key=grid.KEY, dtype=jnp.bfloat16),
    "of_the_example": lambda: new_cell.UpdateGateRNN(H, 4, key=grid.KEY),
}


@pytest.mark.slow
@pytest.mark.usefixtures("as_it_comes")
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_cell_holds_all_laws(name):
    report = check_cell(SOUND[name]())
    assert report.broken == ()
    assert "holds all" in str(report)
    tried = {verdict.law for verdict in report.verdicts if verdict.holds}
    assert {"state", "finite", "step", "streaming", "length", "resets", "reverse", "vmap", "engine Newton"} <= tried
