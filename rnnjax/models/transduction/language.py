"""A language model at a beam: the weighted score of each prefix as a text."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ... import check
from ...arrays import State, select
from ...checked import Checked
from ..search import Decoding, check_search, log_softmax
from .labels import BLANK, floored_log


class Text(NamedTuple):
    """The language model's state after a prefix, or a batch of these; scores are multiplied by its weight."""

    state: State
    score: Float[Array, "..."]
    after: Float[Array, "... V"]  # the scores of the next label, or of the end, which is token 0
    weight: Float[Array, "..."]

    @classmethod
    def begin(cls, decoding: Decoding, weight: Float[Array, ""]) -> "Text":
        """That of the empty prefix."""
        state = jax.tree.map(jnp.asarray, decoding.state)
        return _after(decoding, state, jnp.asarray(BLANK, int), jnp.zeros_like(weight), weight)

    def extended(self) -> Float[Array, "W V"]:
        """The scores of the prefixes with each label appended."""
        return self.score[:, None] + self.after

    def ended(self) -> Float[Array, " W"]:
        """The scores of the prefixes as whole texts."""
        return self.score + self.after[:, BLANK]

    def said(self, decoding: Decoding, labels: Int[Array, " W"], extends: Bool[Array, " W"]) -> "Text":
        """Those of the prefixes with these labels appended, where they are extended."""

        def one(text: Text, label: Array) -> Text:
            return _after(decoding, text.state, label, text.score + text.after[label], text.weight)

        return select(extends, jax.vmap(one)(self, labels), self)


def check_language(
    language: Checked[Decoding | None], weight: Checked[float | Array | None], vocabulary_size: int
) -> tuple[Decoding, Float[Array, ""]]:
    """The language model and its weight; without one, a model that takes all texts for equal, of weight 0."""
    if (language is None) != (weight is None):
        raise ValueError(
            f"language, language_weight: expected both or neither, got {type(language).__name__} and {weight!r}. "
            "Pass language=model.decoding() and language_weight=0.5, or leave both out"
        )
    if language is None or weight is None:
        return Decoding(lambda state, _: (state, jnp.zeros(vocabulary_size), None), (), jnp.zeros(0)), jnp.zeros(())
    if not isinstance(language, Decoding):
        raise TypeError(f"language: expected a Decoding, got {type(language).__name__}. Pass model.decoding()")
    known, _ = check_search(language.step, language.state, BLANK, BLANK, 1)
    if known != vocabulary_size:
        raise ValueError(
            f"language: expected a model of {vocabulary_size} tokens, the labels and token 0, got one of {known}. "
            "Build it with the vocabulary of the logits"
        )
    if not isinstance(weight, Tracer):
        check.nonnegative("language_weight", weight, "a weight", "language model")
    return language, jnp.asarray(weight)


def _after(decoding: Decoding, state: State, token: Array, score: Array, weight: Array) -> Text:
    state, logits, _ = decoding.step(state, token)
    return Text(state, score, weight * floored_log(log_softmax(logits)).astype(weight.dtype), weight)
