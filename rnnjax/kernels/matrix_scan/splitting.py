"""Products of decays between all pairs of steps, without a division and without a logarithm.

What step j < t wrote has decayed by P[t, j] = a_{t-1} ... a_{j+1} when step t begins. The factors are never divided out
of a cumulative product, which would overflow, and could not be zero. Time is split into four parts, of which each reads
from those before it: a product from the start of its part to t, times a product from j to there; and each part is split
again. So every factor is a plain product of decays, and most of the work is matrix products (the secondary chunks of
Yang et al. 2024, arXiv:2312.06635, made recursive, and with products in place of exponentials of sums).

Arrays that are summed have two axes, and users map over more: XLA 0.10.2 crashes on a CPU in a sum over an array of
seven axes or more (github.com/jax-ml/jax/issues/39257).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

PARTS = 4


class Decays(NamedTuple):
    """Products of the decays of blocks of steps."""

    before: Inexact[Array, "*blocks C D"]  # of the steps before t in the block
    after: Inexact[Array, "*blocks C D"]  # of the steps after t in the block
    total: Inexact[Array, "*blocks D"]


def scores(
    readers: Inexact[Array, "M C K"], writers: Inexact[Array, "W C K"], decay: Inexact[Array, "C D"]
) -> tuple[Inexact[Array, "M W C C"], Decays]:
    """What each reader at step t sees of each writer at step j < t, reader_t' (P[t, j] * writer_j); zero for j >= t.

    C is a power of two. Also the products of decays from the start of the block, and to its end.
    """
    if decay.shape[1] == 1:
        one = jnp.ones((1, 1, *decay.shape), decay.dtype)
        pairs, decays = _split(one, one, decay[None])
        found = jnp.einsum("mtk,wjk->mwtj", readers, writers) * pairs[:, :, 0]
    else:
        split, decays = _split(readers[:, None], writers[:, None], decay[None])
        found = split[:, :, 0]
    return found, Decays(*(each[0] for each in decays))


def _split(readers: Array, writers: Array, decay: Array) -> tuple[Inexact[Array, "M W n C C"], Decays]:
    """The same of n blocks [M, n, C, K], [W, n, C, K] and [n, C, D]."""
    n, C, _ = decay.shape
    if C == 1:
        one = jnp.ones_like(decay)
        none = jnp.zeros((len(readers), len(writers), n, 1, 1), jnp.result_type(readers, writers, decay))
        return none, Decays(one, one, decay[:, 0])
    parts = min(PARTS, C)
    cut = lambda array: array.reshape(*array.shape[:-3], n * parts, C // parts, array.shape[-1])  # noqa: E731
    readers, writers = cut(readers), cut(writers)
    inner, decays = _split(readers, writers, cut(decay))
    joined = _join(readers * decays.before[None], writers * decays.after[None], inner, decays.total, parts)
    return joined, _merge(decays, parts)


def _join(readers: Array, writers: Array, inner: Array, total: Array, parts: int) -> Array:
    """The scores of blocks from those of their parts, [M, W, n P, C/P, C/P] to [M, W, n, C, C]."""
    steps = inner.shape[-1]
    rows, earlier = [_pad(inner[:, :, 0::parts], 0, (parts - 1) * steps)], writers[:, 0::parts]
    for part in range(1, parts):
        across = _product(readers[:, part::parts], earlier)
        own = _pad(inner[:, :, part::parts], 0, (parts - 1 - part) * steps)
        rows.append(jnp.concatenate([across, own], -1))
        if part + 1 < parts:
            decayed = earlier * total[None, part::parts, None]
            earlier = jnp.concatenate([decayed, writers[:, part::parts]], 2)
    return jnp.concatenate(rows, -2)


def _product(readers: Inexact[Array, "M n S K"], writers: Inexact[Array, "W n J K"]) -> Inexact[Array, "M W n S J"]:
    """reader' writer of all pairs in each block."""
    (M, n, S, K), (W, _, J, _) = readers.shape, writers.shape
    if S > 1:
        return jnp.einsum("mntk,wnjk->mwntj", readers, writers)
    # XLA's products of single rows are slow: a sum over an array of two axes.
    left = jnp.broadcast_to(readers[:, None], (M, W, n, J, K)).reshape(-1, K)
    right = jnp.broadcast_to(writers[None], (M, W, n, J, K)).reshape(-1, K)
    return (left * right).sum(1).reshape(M, W, n, 1, J)


def _merge(decays: Decays, parts: int) -> Decays:
    """The products of blocks from those of their parts."""
    before, after, total = ([each[part::parts] for part in range(parts)] for each in decays)
    first, last = total[0], total[-1]
    befores, afters = [before[0]], [after[-1]]
    for part in range(1, parts):
        befores.append(before[part] * first[:, None])
        afters.insert(0, after[-1 - part] * last[:, None])
        first, last = first * total[part], last * total[-1 - part]
    return Decays(jnp.concatenate(befores, 1), jnp.concatenate(afters, 1), first)


def _pad(array: Array, before: int, after: int) -> Array:
    """`array` with columns of zeros."""
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(before, after)])


@jax.custom_jvp
def inverse(lower: Inexact[Array, "C C"]) -> Inexact[Array, "C C"]:
    """The inverse of I + L, where L is strictly lower triangular and C a power of two.

    Blocks are inverted and merged: the inverse of [[A, 0], [B, D]] is [[A', 0], [-D' B A', D']]. A Neumann series would
    be inexact where keys are alike, and a call of LAPACK inside of a loop can wait forever on a CPU.
    """
    return _inverse(lower[None])[0]


@inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverted = inverse(*primals)
    return inverted, -_multiply(_multiply(inverted, tangents[0]), inverted)


def _inverse(lower: Inexact[Array, "n C C"]) -> Inexact[Array, "n C C"]:
    n, C, _ = lower.shape
    if C <= PARTS:
        return _inverse_by_numbers(lower)
    parts = min(PARTS, C // PARTS)
    steps = C // parts
    blocks = lower.reshape(n, parts, steps, C)
    own = jnp.stack([blocks[:, part, :, part * steps : (part + 1) * steps] for part in range(parts)], 1)
    inverted = _inverse(own.reshape(n * parts, steps, steps))
    merged = inverted[0::parts]
    for part in range(1, parts):
        corner = inverted[part::parts]
        left = -_multiply(corner, _multiply(blocks[:, part, :, : part * steps], merged))
        merged = jnp.concatenate([_pad(merged, 0, steps), jnp.concatenate([left, corner], -1)], -2)
    return merged


def _inverse_by_numbers(lower: Inexact[Array, "n C C"]) -> Inexact[Array, "n C C"]:
    """The same by forward substitution, number by number: XLA's products of single rows are slow."""
    C = lower.shape[1]
    zero, one = jnp.zeros_like(lower[:, 0, 0]), 1 - lower[:, 0, 0]
    rows: list[list[Array]] = []
    for t in range(C):
        row = []
        for j in range(t):
            through = lower[:, t, j]
            for i in range(j + 1, t):
                through = through + lower[:, t, i] * rows[i][j]
            row.append(-through)
        rows.append([*row, one, *[zero] * (C - 1 - t)])
    return jnp.stack([jnp.stack(row, 1) for row in rows], 1)


def _multiply(one: Array, other: Array) -> Array:
    return jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)
