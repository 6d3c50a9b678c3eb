"""Over devices: eight forced ones on this CPU, and two processes; and what is refused."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

import rnnjax
from rnnjax.training import launch

HELPERS = Path(__file__).parents[1] / "helpers"
EXAMPLES = HELPERS.parents[1] / "examples"
LAUNCH = ("-m", "rnnjax.training.launch", "--processes", "2")


def run(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Python with arguments, in a process of its own."""
    environment = os.environ | settings
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


# The checks of `devices_run`, all that are asked for in one process

CHECKS = (
    *(
        "fused",
        "associative",
        "newton",
        "what_fades_and_what_overflows",
        "training_over_batch",
        "an_estimator_over_batch",
        "a_key_for_each_device",
        "an_unknown_token_on_one_device",
    ),
    *("parts_are_refused_as_parts", "what_newton_refuses", "a_batch_that_the_devices_do_not_divide"),
)
SLOW_CHECKS = (
    *("scan", "scan_in_reverse", "fused_in_reverse", "checkpointed", "layers"),
    *("associative_in_reverse", "associative_forward_mode", "batch_and_time"),
    *("chunked", "chunked_in_reverse", "what_is_not_finite_ends_at_a_reset_of_another_part"),
    *("newton_in_reverse", "newton_of_blocks", "newton_diagonal", "newton_unsolved", "newton_unsolved_on_one_device"),
    *("memory", "training_over_batch_and_time"),
)


@pytest.fixture(scope="module")
def failures(request) -> dict[str, str]:
    """How each check failed that a test of this session asks about, "" if it held; and all that was said."""
    asked = [item.callspec.params["check"] for item in request.session.items if "failures" in item.fixturenames]
    ended = run(HELPERS / "devices_run.py", *asked, JAX_NUM_CPU_DEVICES="8", JAX_ENABLE_X64="1")
    lines = map(json.loads, ended.stdout.splitlines())
    return {check: ended.stdout + ended.stderr for check in asked} | {line["check"]: line["failure"] for line in lines}


@pytest.mark.parametrize("check", [*CHECKS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CHECKS)])
def test_eight_devices_are_one(check, failures):
    assert failures[check] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([EXAMPLES / "sequence_parallel.py", "--steps", "64"], "on each of 8; gradients differ by "),
        ([EXAMPLES / "data_parallel.py", "--steps", "3", "--devices", "8"], "3 steps over 8 devices of 1 processes: "),
        ([*LAUNCH, EXAMPLES / "data_parallel.py", "--steps", "3"], "[1] mean squared error on new sequences after 3 "),
    ],
    ids=["sequence", "data", "processes"],
)
def test_the_example_runs(words, shown):
    ended = run(*words)
    assert ended.returncode == 0, ended.stderr
    assert shown in ended.stdout


@pytest.mark.slow
def test_two_processes_are_one_and_a_killed_one_ends_both_and_is_resumed(tmp_path):
    """One process with two devices, two with one each, and two that are killed and resumed: the same bits."""
    script = HELPERS / "processes_run.py"
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    alone = run(script, tmp_path / "one", **compiled)
    assert alone.returncode == 0, alone.stderr
    killed = run(*LAUNCH, script, tmp_path / "two", "kill", **compiled)
    assert killed.returncode == 1, killed.stderr
    assert "launch: process 1 of 2 was killed by SIGKILL; the others were stopped" in killed.stderr
    assert [line["step"] for line in rnnjax.training.read_metrics(tmp_path / "two" / "metrics.jsonl")] == [2, 4]
    resumed = run(*LAUNCH, script, tmp_path / "two", "resume", **compiled)
    assert resumed.returncode == 0, resumed.stderr
    assert "process 0 of 2 took 8 steps, carries [(4, 8)]" in resumed.stdout
    assert "[1] process 1 of 2 took 8 steps, carries [(4, 8)]" in resumed.stdout
    assert (tmp_path / "one" / "checkpoint").read_bytes() == (tmp_path / "two" / "checkpoint").read_bytes()


def test_a_launched_process_that_fails_is_named(tmp_path):
    """Even while the others would run for ever."""
    script = tmp_path / "script.py"
    script.write_text("import jax, sys, time\nsys.exit('no disk') if jax.process_index() else time.sleep(600)\n")
    ended = run(*LAUNCH, script)
    assert ended.returncode == 1
    assert "[1] no disk\n" in ended.stdout
    assert "launch: process 1 of 2 failed with exit status 1; the others were stopped" in ended.stderr


def test_the_port_of_a_job_is_taken_by_no_other():
    with launch._reserve_port() as holder, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(holder.getsockname())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0", __file__], "--processes: expected 1 or more, got 0"),
        (["--processes", "2", "nowhere.py"], "script: expected a Python file, found none at nowhere.py"),
    ],
)
def test_launch_refuses(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch", *arguments])
    with pytest.raises(SystemExit):
        launch.main()
    assert message in capsys.readouterr().err


# What is refused


@lru_cache
def one_device(axis: str = "time", kind: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh((1,), (axis,), axis_types=(kind,))


BAD_ENGINES: dict[str, tuple[Callable[[], tuple[Any, ...]], type[Exception], str]] = {
    "axis": (
        lambda: (rnnjax.Scan(), one_device(), "tiem"),
        ValueError,
        r"axis: expected one of the mesh's, \('time',\), got 'tiem'. Name one of these, or make a mesh with it: "
        r"jax.make_mesh\(\(1,\), \('tiem',\)",
    ),
    "mesh": (
        lambda: (rnnjax.Scan(), 8, "time"),
        TypeError,
        "mesh: expected a jax.sharding.Mesh, as jax.make_mesh makes, got 8",
    ),
    "explicit": (
        lambda: (rnnjax.Scan(), one_device(kind=AxisType.Explicit), "time"),
        ValueError,
        "mesh: expected axes of the type Auto, .* Make the mesh by jax.make_mesh",
    ),
    "engine": (
        lambda: ("scan", one_device(), "time"),
        TypeError,
        "engine: expected an engine to run each part by, such as Scan",
    ),
    "nested": (
        lambda: (rnnjax.Sharded(rnnjax.Scan(), one_device(), "time"), one_device(), "time"),
        TypeError,
        "engine: expected an engine to run each part by",
    ),
}


@pytest.mark.parametrize("name", BAD_ENGINES)
@pytest.mark.usefixtures("annotations_unchecked")
def test_sharded_refuses(name):
    arguments, error, message = BAD_ENGINES[name]
    with pytest.raises(error, match=message):
        rnnjax.Sharded(*arguments())


def test_sharded_refuses_what_its_engine_refuses_of_a_part():
    """All in a mesh of one: what a part of several is asked, `devices_run` sees."""
    engine = rnnjax.Sharded(rnnjax.Associative(), one_device(), "time")
    with pytest.raises(ValueError, match="engine: Associative cannot run LSTM: it needs an AbstractLinearCell"):
        rnnjax.unroll(grid.build("lstm"), None, grid.inputs(4), engine=engine)


def fit_over(mesh: object, carry: object = None, batch: object = np.zeros((2, 3))) -> rnnjax.training.Fitted:
    loss = lambda model, carry, batch, key: (jnp.mean(model * batch), carry)  # noqa: ARG005, E731
    options = {"steps": 1, "key": grid.KEY, "carry": carry, "mesh": mesh, "progress": False}
    return rnnjax.training.fit(grid.place(np.ones(3)), loss, lambda _: batch, optax.sgd(0.1), **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda: (8,), TypeError, "mesh: expected a jax.sharding.Mesh"),
        (
            lambda: (one_device(), np.zeros(())),
            ValueError,
            "carry: expected arrays whose first axis, the batch's, the 1 devices",
        ),
        (
            lambda: (one_device(), None, 1.0),
            ValueError,
            "batches: expected arrays whose first axis, the batch's, the 1 devices",
        ),
    ],
    ids=["mesh", "carry", "batches"],
)
@pytest.mark.usefixtures("annotations_unchecked")
def test_fit_refuses_a_mesh(arguments, error, message):
    with pytest.raises(error, match=message):
        fit_over(*arguments())


def test_a_carry_of_keys_is_split_and_gathered():
    keys = jax.random.wrap_key_data(np.arange(4, dtype=np.uint32).reshape(2, 2))
    carry = fit_over(one_device("batch"), keys).carry
    assert carry.dtype == keys.dtype
    np.testing.assert_array_equal(jax.random.key_data(carry), np.arange(4).reshape(2, 2))
