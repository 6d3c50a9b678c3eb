"""How every test runs: float64 at hand, strict promotion, and a compiler that spends no time on speed."""

import os
from itertools import count

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import jaxtyping
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

TESTS_RUN = count(1)


@pytest.fixture(autouse=True)
def release_executables():
    """Drop compiled programs now and then: each holds memory mappings, and a process may only have so many."""
    yield
    if next(TESTS_RUN) % 50 == 0:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def no_data_at_hand(monkeypatch):
    """Tests have none but their own, before all of which this comes."""
    monkeypatch.delenv("RNNJAX_DATA", raising=False)


@pytest.fixture
def promoting():
    """Some of optax adds integers, or float32 to float64, as strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def as_it_comes():
    """As examples are run: optax relies on promotion, and Equinox draws weights in the default dtype."""
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        yield


@pytest.fixture
def annotations_unchecked(monkeypatch):
    """As users run it: under test the annotations of some arguments would complain first, in words of their own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
