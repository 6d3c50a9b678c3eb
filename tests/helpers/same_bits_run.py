"""Whether a fused gradient has the same bits in every call: `1 result` for each dtype and batch."""

import hashlib
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import rnnjax

CALLS, STEPS, UNITS = 40, 100, 256


def main() -> None:
    """Beside a thread of other work, so that helpers come late, or not at all."""
    jax.config.update("jax_enable_x64", True)
    ended = threading.Event()
    threading.Thread(target=_work, args=(ended,), daemon=True).start()
    for dtype in ("float32", "bfloat16", "float64"):
        for batch in (1, 2, 3):
            print(len(results(dtype, batch)), "result", flush=True)
    ended.set()


def results(dtype: str, batch: int) -> set[str]:
    """The gradients of many calls, as digests."""
    cell = rnnjax.LSTM(8, UNITS, key=jax.random.key(0), dtype=jnp.dtype(dtype))
    xs = np.random.default_rng(0).normal(size=(batch, STEPS, 8)).astype(jnp.dtype(dtype))

    def loss(cell: rnnjax.LSTM) -> jax.Array:
        run = lambda xs: rnnjax.unroll(cell, None, xs, engine=rnnjax.Fused())[1]  # noqa: E731
        return jax.vmap(run)(xs).astype(jnp.float64).sum()

    gradient = eqx.filter_jit(eqx.filter_grad(loss))
    return {_digest(gradient(cell)) for _ in range(CALLS)}


def _digest(tree: rnnjax.LSTM) -> str:
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in arrays)).hexdigest()


def _work(ended: threading.Event) -> None:
    """In turns with nothing."""
    values = np.ones((300, 300))
    while not ended.wait(0.005):
        values @ values


if __name__ == "__main__":
    main()
