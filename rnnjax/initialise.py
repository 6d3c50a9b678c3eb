"""Initial weights. An initialiser draws the block of ONE gate and one head, so per-gate laws hold by construction.

An initialiser of weights is any `(key, shape, dtype) -> array` with `shape = [in, out]`, those of
`jax.nn.initializers` included: an orthogonal one gives every gate an orthogonal block, a Glorot one counts the fan of
one gate. An initialiser of biases is any `(key, gates, hidden_size, dtype) -> [G, H]`, `gates` naming the gates in
order by their letters: `i` writes, `f` and `z` keep (a cell that has `i` but not `f` keeps with `1 - i`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .arrays import Bias, InputWeight, RecurrentWeight, carry_dtype

Initialiser = Callable[..., Array]

orthogonal = jax.nn.initializers.orthogonal()
glorot = jax.nn.initializers.glorot_uniform()
lecun = jax.nn.initializers.lecun_normal()


def uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype) -> Array:
    """Uniform within 1/sqrt(H), H being the last axis of `shape`: torch's for every weight and bias."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def identity(key: PRNGKeyArray, shape: tuple[int, ...], dtype) -> Array:
    """The identity: with `Elman(activation=jax.nn.relu)` the IRNN (Le et al. 2015, arXiv:1504.00941)."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def interval(least: float, most: float) -> Initialiser:
    """Weights uniform between `least` and `most`, for the diagonal of an R."""
    if not least <= most:
        raise ValueError(f"least, most: expected least <= most, got {least} and {most}")
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, least, most)


def zeros(key: PRNGKeyArray, gates: str, hidden_size: int, dtype) -> Bias:
    """Biases of zero."""
    del key
    return jnp.zeros((len(gates), hidden_size), dtype)


def uniform_bias(key: PRNGKeyArray, gates: str, hidden_size: int, dtype) -> Bias:
    """Biases uniform within 1/sqrt(H), as torch draws them."""
    return uniform(key, (len(gates), hidden_size), dtype)


def forget(value: float = 1.0) -> Initialiser:
    """Biases of zero, but `value` on the gate that keeps, stored where it can be seen and trained.

    Gers et al. 2000, "Learning to forget"; Jozefowicz et al. 2015.
    """

    def draw(key: PRNGKeyArray, gates: str, hidden_size: int, dtype) -> Bias:
        del key
        return _biases(gates, hidden_size, dtype, keep=value, write=0.0)

    return draw


def chrono(longest: int) -> Initialiser:
    """Biases for memories of up to `longest` steps: keep ~ log U(1, longest - 1), write = -keep.

    Tallec & Ollivier 2018, "Can recurrent neural networks warp time?", arXiv:1804.11188. For LSTM, GRU and their kin.
    """
    if longest <= 2:
        raise ValueError(f"longest: expected more than 2 steps, got {longest}")

    def draw(key: PRNGKeyArray, gates: str, hidden_size: int, dtype) -> Bias:
        keep = jnp.log(jax.random.uniform(key, (hidden_size,), dtype, 1.0, longest - 1.0))
        return _biases(gates, hidden_size, dtype, keep=keep, write=-keep)

    return draw


def time_constants(shortest: float = 1.0, longest: float = 1000.0) -> Initialiser:
    """Factors a = exp(-1 / tau) in (0, 1), with time constants tau log-uniform in [shortest, longest] steps.

    All stay below one in a dtype that cannot tell the longest from infinity: bfloat16 ends at tau of about 256 steps.
    """
    if not 0 < shortest <= longest < np.inf:
        raise ValueError(
            f"shortest: expected 0 < shortest <= longest steps, got shortest={shortest!r} and longest={longest!r}"
        )

    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype) -> Array:
        bounds = np.log(shortest), np.log(longest)
        tau = jnp.exp(jax.random.uniform(key, shape, carry_dtype(dtype), *bounds))
        return jnp.minimum(jnp.exp(-1 / tau).astype(dtype), 1 - jnp.finfo(dtype).epsneg)

    return draw


def hippo_normal(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [size / 2] and eigenvectors [size, size / 2] of HiPPO-N, those above the real axis of each pair.

    The normal part of HiPPO-LegS, whose state holds the past in Legendre polynomials: -1/2 on the diagonal, and
    beside it the antisymmetric -+ sqrt(n + 1/2) sqrt(k + 1/2) (Gu et al. 2022, arXiv:2206.11893). `size` is even.
    """
    root = np.sqrt(np.arange(size) + 0.5)
    products = np.outer(root, root)
    antisymmetric = np.triu(products, 1) - np.tril(products, -1)
    frequencies, vectors = np.linalg.eigh(-1j * antisymmetric)  # ascending, in pairs about zero
    above = slice(size // 2, None)
    return -0.5 + 1j * frequencies[above], vectors[:, above]


def _biases(gates: str, hidden_size: int, dtype, *, keep, write) -> Bias:
    if "f" not in gates and "z" not in gates:
        write = -keep  # the one gate there is keeps with 1 - i
    rows = {"f": keep, "z": keep, "i": write}
    return jnp.stack([jnp.broadcast_to(jnp.asarray(rows.get(gate, 0.0), dtype), hidden_size) for gate in gates])


def input_weight(
    initialiser: Initialiser, key: PRNGKeyArray, inputs: int, gates: str, units: int, dtype
) -> InputWeight:
    """W, one draw a gate."""
    check_dtype(dtype)
    return _per_gate(initialiser, key, (inputs, units), len(gates), dtype)


def recurrent_weight(
    initialiser: Initialiser, key: PRNGKeyArray, gates: str, units: int, heads: int, dtype
) -> RecurrentWeight:
    """R, one draw a gate and head."""
    block = (units // heads, units // heads)
    draw = lambda key: _per_gate(initialiser, key, block, len(gates), dtype)  # noqa: E731
    return jax.vmap(draw)(jax.random.split(key, heads))


def diagonal_weight(initialiser: Initialiser, key: PRNGKeyArray, gates: str, units: int, dtype) -> Bias:
    """The diagonal of each gate's R, [G, H]."""
    return initialiser(key, (len(gates), units), carry_dtype(dtype)).astype(dtype)


def _per_gate(initialiser: Initialiser, key: PRNGKeyArray, shape: tuple[int, int], gates: int, dtype) -> Array:
    """[in, gates, out]; drawn in float32 or wider, since decompositions know nothing narrower."""
    drawn = carry_dtype(dtype)
    blocks = jax.vmap(lambda key: initialiser(key, shape, drawn), out_axes=1)(jax.random.split(key, gates))
    return blocks.astype(dtype)


def check_sizes(**sizes: int) -> None:
    """Raise unless every size is a positive integer and `heads`, where given, divides `hidden_size`."""
    for name, size in sizes.items():
        if not _is_size(size):
            raise ValueError(f"{name}: expected a positive integer, got {size!r}")
    if "heads" in sizes and sizes["hidden_size"] % sizes["heads"]:
        raise ValueError(f"heads: expected a divisor of hidden_size={sizes['hidden_size']}, got {sizes['heads']}")


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple, an integer being the size of one axis; raise unless all sizes are positive integers."""
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not all(_is_size(size) for size in sizes):
        raise ValueError(f"{name}: expected a positive integer or a tuple of them, got {shape!r}")
    return tuple(int(size) for size in sizes)


def _is_size(size: Any) -> bool:
    return isinstance(size, int | np.integer) and not isinstance(size, bool) and bool(size >= 1)


def check_dtype(dtype) -> None:
    """Raise unless weights can be of `dtype`."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype: expected a floating one, such as jnp.float32, got {jnp.dtype(dtype)}")
