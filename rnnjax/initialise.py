"""Initial weights. An initialiser draws the block of ONE gate and one head.

The blocks of all gates are then concatenated into one matrix, W [I, GH] or R [H, GH], and into one vector, b [GH].

An initialiser of weights is any `(key, shape, dtype) -> array` with `shape = [in, out]`, including those of
`jax.nn.initializers`: with an orthogonal one the block of every gate is orthogonal, and a Glorot one uses the fan of
one gate. The initialisers below compile nothing if the key is known (see `rnnjax/random.py`); those of JAX are compiled
operation by operation, once for each shape. An initialiser of biases is any
`(key, gates, hidden_size, dtype) -> [G, H]`, where `gates` has a letter for each gate in order: `i` writes, `f` and `z`
keep (a cell with `i` but without `f` keeps with `1 - i`).
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from . import check, random
from .arrays import Bias, DType, Gates, InputWeight, RecurrentWeight, carry_dtype

Initialiser = Callable[..., Array]


def glorot(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
    """Uniform with a variance of 2 / (in + out) (Glorot & Bengio 2010). Leading axes count in both, as in a kernel."""
    bound = math.sqrt(6 / (math.prod(shape[:-2]) * sum(shape[-2:])))
    return random.array(random.uniform(key, shape, dtype, -bound, bound), dtype)


def lecun(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
    """Normal, truncated at two standard deviations, with a variance of 1 / in (LeCun et al. 1998)."""
    deviation = 0.87962566103423978  # of a standard normal distribution truncated at two standard deviations
    scale = math.prod(shape[:-1]) ** -0.5 / deviation
    return random.array(random.truncated_normal(key, shape, dtype) * scale, dtype)


def small(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
    """Normal with a variance of 2 / (5 in) (Nguyen & Salazar 2019, "Transformers without tears", arXiv:1910.05895)."""
    return random.array(random.normal(key, shape, dtype) * (2 / (5 * math.prod(shape[:-1]))) ** 0.5, dtype)


def orthogonal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
    """Orthonormal rows or columns, whichever are fewer (Saxe et al. 2014, arXiv:1312.6120)."""
    return random.array(random.orthogonal(key, shape, dtype), dtype)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
    """Normal with a variance of 1 / H, where H is the last axis of `shape`: rows have a norm of about one."""
    return random.array(random.normal(key, shape, dtype) * shape[-1] ** -0.5, dtype)


def uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
    """Uniform within 1/sqrt(H), where H is the last axis of `shape`, as torch draws every weight and bias."""
    bound = shape[-1] ** -0.5
    return random.array(random.uniform(key, shape, dtype, -bound, bound), dtype)


def identity(key: PRNGKeyArray, shape: tuple[int, int], dtype: DType = jnp.float32) -> Array:
    """The identity: with `Elman(activation=jax.nn.relu)` the IRNN (Le et al. 2015, arXiv:1504.00941)."""
    del key
    return random.array(np.eye(shape[0], shape[1]), dtype)


def zero_weights(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
    """Weights of zero: before training, no unit depends on the others."""
    del key
    return random.zeros(shape, dtype)


def interval(least: float, most: float) -> Initialiser:
    """Weights uniform between `least` and `most`, for the diagonal of an R."""
    if not check.number("least", least) <= check.number("most", most):
        raise ValueError(f"least, most: expected least <= most, got {least} and {most}. Swap the two")
    return lambda key, shape, dtype: random.array(random.uniform(key, shape, dtype, least, most), dtype)


def zeros(key: PRNGKeyArray, gates: str, hidden_size: int, dtype: DType) -> Gates:
    """Biases of zero."""
    del key
    return random.zeros((len(gates), hidden_size), dtype)


def uniform_bias(key: PRNGKeyArray, gates: str, hidden_size: int, dtype: DType) -> Gates:
    """Biases uniform within 1/sqrt(H), as torch draws them."""
    return uniform(key, (len(gates), hidden_size), dtype)


def forget(value: float = 1.0) -> Initialiser:
    """Biases of zero, but `value` on the gate that keeps; it is part of the trained bias, not a hidden constant.

    Gers et al. 2000, "Learning to forget"; Jozefowicz et al. 2015.
    """
    value = check.number("value", value)

    def draw(key: PRNGKeyArray, gates: str, hidden_size: int, dtype) -> Gates:
        del key
        return _biases(gates, hidden_size, dtype, keep=value, write=0.0)

    return draw


def chrono(longest: int) -> Initialiser:
    """Biases for memories of up to `longest` steps: keep ~ log U(1, longest - 1), write = -keep.

    Tallec & Ollivier 2018, "Can recurrent neural networks warp time?", arXiv:1804.11188. For gated cells.
    """
    if longest <= 2:
        raise ValueError(
            f"longest: expected more than 2 steps, got {longest}. Pass the longest dependency of the data, in steps"
        )

    def draw(key: PRNGKeyArray, gates: str, hidden_size: int, dtype) -> Gates:
        memories = random.uniform(key, (hidden_size,), dtype, 1.0, longest - 1.0)
        keep = random.numpy_for(memories).log(memories)
        return _biases(gates, hidden_size, dtype, keep=keep, write=-keep)

    return draw


def power_law(heads: int = 1, depth: float = 0.0) -> Initialiser:
    """Biases of the sLSTM (Beck et al. 2024, arXiv:2405.04517, as in its program): zero, but those of the gate f.

    These fall from 5 to -7 over the units j = 0 .. D - 1 of each head, as 5 - 12 (j / (D - 1))^(0.3 + 1.3 depth).

    depth   where the layer is: 0 for the lowest block, 1 for the highest
    """
    check.sizes(heads=heads)
    if not 0 <= check.number("depth", depth) <= 1:
        raise ValueError(f"depth: expected 0 <= depth <= 1, got {depth}. Pass block / (blocks - 1)")

    def draw(key: PRNGKeyArray, gates: str, hidden_size: int, dtype) -> Gates:
        del key
        if hidden_size % heads:
            raise ValueError(
                f"heads: expected a divisor of hidden_size={hidden_size}, got {heads}. "
                "Pass the number of heads of the cell to power_law"
            )
        units = hidden_size // heads
        places = np.arange(units) / max(units - 1, 1)
        forget = np.tile(5 - 12 * places ** (0.3 + 1.3 * depth), heads)
        return _biases(gates, hidden_size, dtype, keep=forget, write=0.0)

    return draw


def time_constants(shortest: float = 1.0, longest: float = 1000.0) -> Initialiser:
    """Factors a = exp(-1 / tau) in (0, 1), with time constants tau log-uniform in [shortest, longest] steps.

    All factors are below one even if `dtype` rounds the longest to one: in bfloat16, tau is at most about 256 steps.
    """
    if not 0 < check.number("shortest", shortest) <= check.number("longest", longest) < np.inf:
        raise ValueError(
            f"shortest: expected 0 < shortest <= longest steps, got shortest={shortest!r} and longest={longest!r}. "
            "Pass the bounds of the memory of the units, in steps, such as 1 and 1000"
        )

    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype) -> Array:
        bounds = np.log(shortest), np.log(longest)
        log_tau = random.uniform(key, shape, dtype, *bounds)
        xp = random.numpy_for(log_tau)
        factors = xp.exp(-1 / xp.exp(log_tau))
        below_one = 1 - float(jnp.finfo(dtype).epsneg)
        return random.array(xp.minimum(factors, below_one), dtype)

    return draw


def hippo_normal(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [size / 2] and eigenvectors [size, size / 2] of HiPPO-N: of each pair, the one above the real axis.

    HiPPO-N is the normal part of HiPPO-LegS, whose state has the coefficients of the past in Legendre polynomials: -1/2
    on the diagonal, and the antisymmetric -+ sqrt(n + 1/2) sqrt(k + 1/2) beside it (Gu et al. 2022, arXiv:2206.11893).
    `size` is even.
    """
    root = np.sqrt(np.arange(size) + 0.5)
    products = np.outer(root, root)
    antisymmetric = np.triu(products, 1) - np.tril(products, -1)
    frequencies, vectors = np.linalg.eigh(-1j * antisymmetric)  # ascending, in pairs about zero
    above = slice(size // 2, None)
    return -0.5 + 1j * frequencies[above], vectors[:, above]


def _biases(gates: str, hidden_size: int, dtype: DType, *, keep, write) -> Gates:
    if "f" not in gates and "z" not in gates:
        write = -keep  # the only gate, i, keeps with 1 - i
    rows = {"f": keep, "z": keep, "i": write}
    xp, drawn = random.numpy_for(keep), carry_dtype(dtype)
    filled = [xp.broadcast_to(xp.asarray(rows.get(gate, 0.0), drawn), hidden_size) for gate in gates]
    return random.array(xp.stack(filled), dtype)


def input_weight(
    initialiser: Initialiser, key: PRNGKeyArray, inputs: int, gates: str, units: int, dtype: DType
) -> InputWeight:
    """W [I, GH], one draw for each gate."""
    check.dtype(dtype)
    return _per_gate(initialiser, key, (inputs, units), len(gates), dtype)


def recurrent_weight(
    initialiser: Initialiser, key: PRNGKeyArray, gates: str, units: int, heads: int, dtype: DType
) -> RecurrentWeight:
    """R [H, GH], or [N, D, GD] of several heads, one draw for each gate and head."""
    return block_weight(initialiser, key, units, gates, units, heads, dtype)


def block_weight(
    initialiser: Initialiser, key: PRNGKeyArray, inputs: int, gates: str, units: int, heads: int, dtype: DType
) -> RecurrentWeight:
    """A weight [I, GH], or [N, I / N, GD] of several heads, one draw for each gate and head."""
    block = (inputs // heads, units // heads)
    draw = lambda key: _per_gate(initialiser, key, block, len(gates), dtype)  # noqa: E731
    blocks = random.each(key, heads, draw)
    return random.array(blocks[0] if heads == 1 else blocks, dtype)


def diagonal_weight(initialiser: Initialiser, key: PRNGKeyArray, gates: str, units: int, dtype: DType) -> Bias:
    """The diagonals of all gates' R, [GH], drawn as [G, H]."""
    drawn = random.known(initialiser(key, (len(gates), units), carry_dtype(dtype)))
    return random.array(drawn.reshape(-1), dtype)


def bias(initialiser: Initialiser, key: PRNGKeyArray, gates: str, units: int, dtype: DType) -> Bias:
    """b [GH], drawn as [G, H]."""
    return random.array(random.known(initialiser(key, gates, units, dtype)).reshape(len(gates) * units), dtype)


def _per_gate(initialiser: Initialiser, key: PRNGKeyArray, shape: tuple[int, int], gates: int, dtype: DType) -> Array:
    """[in, gates * out]; drawn in float32 or wider, since matrix decompositions do not support narrower dtypes."""
    drawn, (inputs, units) = carry_dtype(dtype), shape
    blocks = random.each(key, gates, lambda key: initialiser(key, shape, drawn), axis=1)
    return random.array(blocks.reshape(inputs, gates * units), dtype)
