"""The environment of the tests and of the processes they start: a compiler that spends no time on speed, a cache."""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]


def cache_of_programs() -> Path:
    """A folder for compiled programs, which are good for one kind of processor."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else [platform.processor()]
    features = "".join(
        sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))} or lines)
    )
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "rnnjax-tests" / f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


QUICK_COMPILER = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # as one module: to split small programs takes a tenth longer
]
if version("jaxlib").startswith("0.10."):
    QUICK_COMPILER += ["--xla_cpu_opt_preset=FAST_COMPILE", "--xla_cpu_use_fusion_emitters=false"]
# Later ones have only the emitter that takes several times as long for each loop, and FAST_COMPILE fuses fewer loops.

# In the environment rather than in `jax.config`: some tests run a script in a process of its own.
os.environ["XLA_FLAGS"] = " ".join([*QUICK_COMPILER, os.environ.get("XLA_FLAGS", "")])  # the user's flags decide
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(ROOT / "examples"), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
).rstrip(os.pathsep)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # there is a worker for each core already
if os.environ.get("RNNJAX_TEST_CACHE") != "off":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_of_programs()))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
