"""One chunk of time of a matrix-state recurrence, as matrix products: the file to read first.

A step reads the state S_0 before the chunk, and the writes of all earlier steps of the chunk. q, k, v, r and e stand
for query, key, value, erase and erase_key. P[t, j] is the product of the decays between the steps j and t (see
`splitting`), and A_xy[t, j] = x_t' (P[t, j] * y_j) for j < t.

    (I + A_re) Z = R S_0 + A_rk V                         z_t = S_{t-1}' r_t, the values that step t erases
    Y   = Q S_0 + A_qk V - A_qe Z
    S_C = P S_0 + K' V - E' Z

In Q and R each row is multiplied by the decays of all earlier steps of the chunk, in K and E by those of all later
steps; P is the product of all. These queries read before the write of their step. One that reads after it is the query
times the decay of the step, which reads before it, plus a read of the step's own write.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from ...matrix_cell import Transition
from ..linear_scan.primitive import linear_scan
from .splitting import inverse, scores

State = Inexact[Array, "K V"]


class Resets(NamedTuple):
    """Where the state of a chunk is reset, and to what: None stands for zeros."""

    flags: Bool[Array, " C"]
    start: State | None


def run_chunk(
    state: State, steps: Transition, resets: Resets | None, *, reads_before: bool
) -> tuple[State, Inexact[Array, "C V"]]:
    """The state after the C steps of one head, and what they emit. C is a power of two."""
    decay, key, value, query, erase, erase_key = steps
    uncut = decay
    if resets is not None:
        decay = _where_not(resets.flags, decay)
        erase = None if erase is None else _where_not(resets.flags, erase)
        query = _where_not(resets.flags, query) if reads_before else query
    early = query if reads_before else query * decay
    readers = [early] if erase is None else [early, erase]
    writers = [key] if erase_key is None else [key, erase_key]
    found, decays = scores(jnp.stack(readers), jnp.stack(writers), decay)
    from_state = [(reader * decays.before) @ state for reader in readers]
    after = decays.total[:, None] * state
    if resets is not None and resets.start is not None:
        late = steps.query if reads_before else steps.query * uncut
        since = _since_reset(resets.flags, uncut)
        originals = [late] if steps.erase is None else [late, steps.erase]
        from_state = [one + (reader * since) @ resets.start for one, reader in zip(from_state, originals, strict=True)]
        after = after + (since[-1] * uncut[-1])[:, None] * resets.start
    if not reads_before:
        found = found.at[0].add(jnp.stack([jnp.diag((steps.query * writer).sum(1)) for writer in writers]))
    late_writers = [writer * decays.after for writer in writers]
    if erase is None:
        return after + late_writers[0].T @ value, from_state[0] + found[0, 0] @ value
    if erase_key is None:
        value = inverse(found[1, 0]) @ (value - from_state[1])
        return after + late_writers[0].T @ value, from_state[0] + found[0, 0] @ value
    erased = inverse(found[1, 1]) @ (from_state[1] + found[1, 0] @ value)
    ys = from_state[0] + found[0, 0] @ value - found[0, 1] @ erased
    return after + late_writers[0].T @ value - late_writers[1].T @ erased, ys


def _where_not(flags: Bool[Array, " C"], rows: Inexact[Array, "C K"]) -> Inexact[Array, "C K"]:
    return jnp.where(flags[:, None], jnp.zeros_like(rows), rows)


def _since_reset(flags: Bool[Array, " C"], decay: Inexact[Array, "C D"]) -> Inexact[Array, "C D"]:
    """The product of the decays from the last reset to before each step; zero before the first reset."""
    earlier = jnp.concatenate([jnp.zeros_like(decay[:1]), decay[:-1]])
    started = jnp.broadcast_to(flags[:, None], decay.shape).astype(decay.dtype)
    return linear_scan(_where_not(flags, earlier), started, jnp.zeros_like(decay[0]))
