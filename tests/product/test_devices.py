"""Over devices: eight forced ones on this CPU, and two processes; and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import grid
import jax
import jax.numpy as jnp
import jaxtyping
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
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


CHECKS = (
    *("hand_off", "checkpointed", "associative", "what_fades_and_what_overflows"),
    *("newton", "memory", "data_parallel"),
)


@pytest.mark.parametrize("check", CHECKS)
def test_eight_devices_are_one(check):
    ended = run(HELPERS / "devices_run.py", check, JAX_NUM_CPU_DEVICES="8", JAX_ENABLE_X64="1")
    assert ended.returncode == 0, ended.stdout + ended.stderr


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
    assert [line["step"] for line in rnnjax.read_metrics(tmp_path / "two" / "metrics.jsonl")] == [2, 4]
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

MESH = jax.make_mesh((1,), ("time",), axis_types=(AxisType.Auto,))
BAD_ENGINES = {
    "axis": (
        (rnnjax.Scan(), MESH, "tiem"),
        ValueError,
        r"axis: expected one of the mesh's, \('time',\), got 'tiem'. Name one of these, or make a mesh with it: "
        r"jax.make_mesh\(\(1,\), \('tiem',\)",
    ),
    "mesh": (
        (rnnjax.Scan(), 8, "time"),
        TypeError,
        "mesh: expected a jax.sharding.Mesh, as jax.make_mesh makes, got 8",
    ),
    "explicit": (
        (rnnjax.Scan(), jax.make_mesh((1,), ("time",), axis_types=(AxisType.Explicit,)), "time"),
        ValueError,
        "mesh: expected axes of the type Auto, .* Make the mesh by jax.make_mesh",
    ),
    "engine": (("scan", MESH, "time"), TypeError, "engine: expected an engine to run each part by, such as Scan"),
    "nested": (
        (rnnjax.Sharded(rnnjax.Scan(), MESH, "time"), MESH, "time"),
        TypeError,
        "engine: expected an engine to run each part by",
    ),
}


@pytest.mark.parametrize("name", BAD_ENGINES)
def test_sharded_refuses(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user
    arguments, error, message = BAD_ENGINES[name]
    with pytest.raises(error, match=message):
        rnnjax.Sharded(*arguments)


def test_sharded_refuses_what_its_engine_refuses_of_a_part():
    """All in a mesh of one: what a part of several is asked, `devices_run` sees."""
    engine = rnnjax.Sharded(rnnjax.Associative(), MESH, "time")
    with pytest.raises(ValueError, match="engine: Associative cannot run LSTM: it needs an AbstractLinearCell"):
        rnnjax.unroll(grid.build("lstm"), None, grid.inputs(4), engine=engine)


def fit_over(mesh: object, carry: object = None, batch: object = np.zeros((2, 3))) -> rnnjax.Fitted:
    loss = lambda model, carry, batch, key: (jnp.mean(model * batch), carry)  # noqa: ARG005, E731
    options = {"steps": 1, "key": grid.KEY, "carry": carry, "mesh": mesh, "progress": False}
    return rnnjax.fit(jnp.ones(3), loss, lambda _: batch, optax.sgd(0.1), **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((8,), TypeError, "mesh: expected a jax.sharding.Mesh"),
        ((MESH, jnp.zeros(())), ValueError, "carry: expected arrays whose first axis, the batch's, the 1 devices"),
        ((MESH, None, 1.0), ValueError, "batches: expected arrays whose first axis, the batch's, the 1 devices"),
    ],
)
def test_fit_refuses_a_mesh(arguments, error, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user
    with pytest.raises(error, match=message):
        fit_over(*arguments)


def test_a_carry_of_keys_is_split_and_gathered():
    keys = jax.random.split(grid.KEY, 2)
    assert (fit_over(Mesh(jax.devices()[:1], ("batch",)), keys).carry == keys).all()
