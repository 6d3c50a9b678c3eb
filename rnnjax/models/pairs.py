"""Batches of pairs, a source and a target, and the loss on them."""

from typing import NamedTuple

from jaxtyping import Array, Float, PRNGKeyArray

from ..arrays import AnyArray, PyTree
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..exporting import exportable
from .batches import batch_parts
from .seq2seq import Seq2Seq
from .targets import target_loss


@exportable
class Pairs(NamedTuple):
    """A padded batch of sources and targets; a target begins with its start token, and ends with its end token.

    Lengths count both of these. Padding never affects the loss.
    """

    source: AnyArray  # [B, S]
    source_length: AnyArray  # [B]
    target: AnyArray  # [B, T + 1]
    target_length: AnyArray  # [B]


def seq2seq_loss(
    model: Seq2Seq,
    carry: PyTree,
    batch: Checked[tuple[AnyArray, AnyArray, AnyArray, AnyArray]],
    key: PRNGKeyArray | None,
    *,
    teacher_forcing: Checked[float | Array] = 1.0,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], PyTree]:
    """Mean cross-entropy of the next token in nats, over all valid tokens of the batch, and `carry` as it was.

    A loss for `fit`. The input is a target without its last token, the labels are all but the first.

    batch             (source, source_length, target, target_length), or `Pairs`
    key               for dropout and for `teacher_forcing`, drawn for each sequence; None: nothing is random
    teacher_forcing   as in `Seq2Seq.logits`; for a schedule, wrap this loss in one that counts steps in its carry
    """
    source, source_length, target, target_length = batch_parts(
        batch,
        "Pairs(source, source_length, target, target_length)",
        source=2,
        source_length=1,
        target=2,
        target_length=1,
    )

    def logits(source: tuple[Array, Array], fed: Array, key: PRNGKeyArray | None) -> Array:
        tokens, length = source
        return model.logits(tokens, fed, length=length, teacher_forcing=teacher_forcing, engine=engine, key=key)[0]

    vocabulary_size = model.target_embedding.vocabulary_size
    return target_loss(logits, (source, source_length), target, target_length, vocabulary_size, key), carry
