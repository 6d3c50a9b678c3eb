"""The kernels compiled in earnest for devices that are not here: `tests/helpers/compile_run.py cuda|tpu`, no test.

For `cuda` it needs `pip install 'jax[cuda12]'`, for `tpu` `pip install libtpu`, and neither a GPU nor a TPU: XLA,
Mosaic, Triton and ptxas do all of their work. What does not fit into registers or memory fails here.
"""

import os
import sys
from typing import Any

os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "CUDA_VISIBLE_DEVICES": "-1", "TPU_SKIP_MDS_QUERY": "1"}

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

import rnnjax

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
ENGINE = rnnjax.Fused(cpu=None, cuda=rnnjax.kernels.GPU(), tpu=rnnjax.kernels.TPU(memory=128))
CASES = {  # cell, B, T, I, units, heads, dtype, marks
    "cuda": (
        (rnnjax.LSTM, 16, 1024, 768, 64, 12, "bfloat16", False),
        (rnnjax.LSTM, 5, 33, 7, 32, 3, "float32", True),
        (rnnjax.GRU, 40, 100, 7, 120, 1, "float16", True),
        (rnnjax.LSTM, 16, 1024, 768, 512, 1, "bfloat16", False),
        (rnnjax.LSTM, 16, 64, 768, 144, 1, "bfloat16", True),
        (rnnjax.GRU, 16, 1024, 512, 512, 1, "bfloat16", True),
        (rnnjax.Elman, 70, 64, 512, 512, 1, "float32", True),
    ),
    "tpu": (
        (rnnjax.LSTM, 16, 64, 128, 256, 1, "bfloat16", False),
        (rnnjax.GRU, 5, 33, 7, 12, 2, "float32", True),
        (rnnjax.LSTM, 64, 100, 128, 1024, 1, "bfloat16", True),
        (rnnjax.Elman, 300, 20, 128, 4096, 1, "bfloat16", False),
        (rnnjax.LSTM, 8, 20, 128, 3840, 1, "bfloat16", True),
    ),
}

MATRICES: tuple[tuple[int, int, int, int, int, dict[str, Any], bool], ...] = (  # B, T, heads, K, V, options, marks
    (4, 1024, 4, 64, 64, {"scalar_decay": True}, False),
    (4, 1024, 4, 64, 64, {"erases": True, "has_erase_key": True, "learn_initial": True}, True),
    (2, 100, 6, 256, 512, {"erases": True, "scalar_decay": True}, True),
    (3, 33, 2, 512, 130, {"erases": True, "reads_before": True}, True),
    (3, 5, 2, 5, 3, {"reads_before": True}, False),
)


def main() -> None:
    (platform,) = sys.argv[1:]
    target = {"target_config": H100, "topology": "1x1x1"} if platform == "cuda" else {}
    name = "" if platform == "cuda" else "v5e:2x2"
    device = topologies.get_topology_desc(platform=platform, topology_name=name, **target).devices[0]
    place = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array([device]), ("d",)), jax.sharding.PartitionSpec())
    abstract = jax.sharding.AbstractDevice(device_kind=device.device_kind, num_cores=None, platform=platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=abstract)):
        for case in CASES[platform]:
            lowered, described = lower(place, *case)
            memory = lowered.compile().memory_analysis().temp_size_in_bytes / 2**20
            print(case[0].__name__, *case[1:], f"{memory:.0f} MiB:", described[platform], flush=True)
        for matrices in MATRICES:
            memory = lower_matrices(place, *matrices).compile().memory_analysis().temp_size_in_bytes / 2**20
            print("MatrixRecurrence", *matrices, f"{memory:.0f} MiB", flush=True)


def lower(place: Any, cell: type, B: int, T: int, I: int, units: int, heads: int, dtype: str, marked: bool) -> Any:  # noqa: E741
    """The gradient of a batch, lowered, and how it runs."""
    shaped = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=place)  # noqa: E731
    made = eqx.filter_eval_shape(
        lambda: cell(I, units * heads, heads=heads, dtype=jnp.dtype(dtype), key=jax.random.key(0))
    )
    weights, static = eqx.partition(made, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    weights = jax.tree.map(lambda leaf: shaped(leaf.shape, leaf.dtype), weights)
    described: dict[str, str] = {}

    def loss(weights: Any, xs: jax.Array, length: jax.Array, resets: jax.Array) -> jax.Array:
        cell = eqx.combine(weights, static)
        described.update({platform: str(plan) for platform, plan in ENGINE.plan(cell, xs[0]).kernels})
        marks = {"length": length, "resets": resets} if marked else {}
        run = jax.vmap(lambda xs, marks: rnnjax.unroll(cell, None, xs, engine=ENGINE, **marks)[1])
        return run(xs, marks).astype(jnp.float32).sum()

    batch = shaped((B, T, I), jnp.dtype(dtype)), shaped((B,), jnp.int32), shaped((B, T), bool)
    return jax.jit(jax.grad(loss)).lower(weights, *batch), described


def lower_matrices(
    place: Any, B: int, T: int, heads: int, K: int, V: int, options: dict[str, Any], marked: bool
) -> Any:
    """The gradient of a batch of a matrix-state recurrence, lowered."""
    cell = rnnjax.cells.MatrixRecurrence(heads, K, V, **options)
    shaped = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=place)  # noqa: E731
    xs = jax.tree.map(lambda leaf: shaped((B, T, *leaf.shape), leaf.dtype), cell.input_type())

    def loss(xs: Any, length: jax.Array, resets: jax.Array) -> jax.Array:
        marks = {"length": length, "resets": resets} if marked else {}
        engine = rnnjax.Chunked(pallas=True)
        return jax.vmap(lambda xs, marks: rnnjax.unroll(cell, None, xs, engine=engine, **marks)[1])(xs, marks).sum()

    return jax.jit(jax.value_and_grad(loss)).lower(xs, shaped((B,), jnp.int32), shaped((B, T), bool))


if __name__ == "__main__":
    main()
