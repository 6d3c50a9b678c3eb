"""The first and the last layer of a model of tokens: an embedding, and the logits of the vocabulary."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import AnyArray, DType, carry_dtype, leading, look_up
from ..checked import Checked
from .tokens import check_tokens


class Embedding(eqx.Module):
    """A vector for each token of a vocabulary: x_t = W[token_t].

    Tokens outside the vocabulary are an error: a ValueError if they are known, and under `jit` an error at run time.
    Programs of `jax.export` and of several devices cannot raise: there their vectors are NaN, so that `fit` over a mesh
    stops at a loss that is NaN. The error under `jit` is a call back to
    Python, and JAX's persistent cache takes no program with one: with the environment variable EQX_ON_ERROR=nan, which
    Equinox reads, it is NaN there as well, and the program is cached.
    """

    weight: Float[Array, "V E"]

    def __init__(self, vocabulary_size: int, size: int, *, key: PRNGKeyArray, dtype: DType = jnp.float32):
        """Draw W, normal with a variance of 1 / E. `vocabulary_size` and `size` are V and E."""
        check.sizes(vocabulary_size=vocabulary_size, size=size)
        check.dtype(dtype)
        self.weight = initialise.normal(key, (vocabulary_size, size), dtype)

    @property
    def vocabulary_size(self) -> int:
        """V, the number of tokens."""
        return self.weight.shape[0]

    def __call__(
        self, tokens: Checked[AnyArray], *, name: str = "tokens", valid: Bool[Array, " T"] | None = None
    ) -> Float[Array, "T E"]:
        """The vectors of the tokens [T] of one sequence; arguments as `check` takes them."""
        return self.rows(self.check(tokens, name=name, valid=valid))

    def check(
        self, tokens: Checked[AnyArray], *, name: str = "tokens", valid: Bool[Array, " T"] | None = None
    ) -> Int[Array, " T"]:
        """`tokens` [T]. Raises if a valid one is outside the vocabulary; ignored tokens may be anything, and become 0.

        name    what the tokens are, for the error message
        """
        return check_tokens(name, tokens, self.vocabulary_size, valid)

    def rows(self, tokens: Int[Array, "..."]) -> Float[Array, "... E"]:
        """The vectors of tokens that are known to be in the vocabulary."""
        return look_up(self.weight, tokens)


class OutputLayer(eqx.Module):
    """The logits of V tokens or classes: V y + b, in float32 or wider.

    If it is tied (Press & Wolf 2017, arXiv:1608.05859), it has no weight of its own, and gets the embedding's.
    """

    weight: Float[Array, "V O"] | None
    bias: Float[Array, " V"]

    def __init__(self, classes: int, size: int, *, key: PRNGKeyArray, dtype: DType = jnp.float32, tied: bool = False):
        """Draw V, normal with a variance of 1 / O; b is zero. `classes` and `size` are V and O."""
        check.sizes(classes=classes, size=size)
        self.weight = None if tied else initialise.normal(key, (classes, size), dtype)
        self.bias = random.zeros(classes, dtype)

    def __call__(self, ys: Float[Array, "... O"], tied: Float[Array, "V E"] | None = None) -> Float[Array, "... V"]:
        """The logits; `tied` is the weight to use if the layer has none."""
        weight = tied if self.weight is None else self.weight
        if weight is None:
            raise ValueError(
                "tied: expected the embedding's weight [V, E], since this layer has none, got None. "
                "Pass tied=embedding.weight"
            )
        logits = jnp.matmul(ys, weight.T, preferred_element_type=carry_dtype(ys.dtype))
        return logits + leading(self.bias.astype(logits.dtype), logits.ndim)
