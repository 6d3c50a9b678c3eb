"""How every test runs: which tests, float64 at hand, strict promotion, and what is counted."""

import environment  # noqa: F401  before JAX, which reads it when it is imported

# isort: split
import gc
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import jax
import jaxtyping
import meter
import order
import pytest
from kernel import NO_KERNEL, needs_kernel

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="the whole suite: also the tests marked `slow`")
    parser.addoption(
        "--slow", action="store_true", help="only the tests marked `slow`, which the quick tier leaves out"
    )
    parser.addoption("--report", metavar="FILE", help="write programs and seconds, file by file, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(meter.Meter(config))
    if config.pluginmanager.has_plugin("xdist"):
        config.option.loadscopereorder = False  # xdist's own order, by the number of tests


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tier, unless a test is named; a file is one worker's, with what it compiles."""
    named = any("::" in argument for argument in config.args)
    if not config.getoption("--all") and not named:
        wanted = config.getoption("--slow")
        left_out = [item for item in items if (item.get_closest_marker("slow") is not None) != wanted]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if (item.get_closest_marker("slow") is not None) == wanted]
    for item in items:
        if NO_KERNEL and item.path.name == "test_cpu.py":
            item.add_marker(needs_kernel)
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    if hasattr(config, "workerinput"):  # a worker of xdist, which gives out groups as they are collected
        items[:] = order.longest_first(items)


def pytest_collection_finish() -> None:
    """Modules and tests are there to the end: the collector of garbage need not look through them time and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[None]:
    """Skip a test that the missing kernel refuses, where it may be missing; everywhere else that is a failure."""
    try:
        return (yield)
    except ValueError as error:
        if NO_KERNEL and "The CPU kernel is not here" in str(error):
            pytest.skip("there is no CPU kernel")
        raise


TESTS_RUN = count(1)
MAPPINGS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def release_programs():
    """Drop compiled programs before their memory mappings reach 65,530: a process of Linux may have no more."""
    yield
    if next(TESTS_RUN) % 10 == 0 and MAPPINGS.is_file() and MAPPINGS.read_bytes().count(b"\n") > 25_000:
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
