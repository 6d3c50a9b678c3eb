"""One-to-many: a caption of an image, token by token."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from ..arrays import AnyArray, PyTree, State
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..exporting import exportable
from ..named import as_module
from ..runtime_error import error_where
from .batches import batch_parts
from .bridge import check_bridge
from .language import LanguageModel
from .search import Decoding
from .targets import target_loss


class Captioner(eqx.Module):
    """The distribution of a caption's next token, of the image and the caption so far.

        s_0 = bridge(encoder(image))                        s_t, logits_t = language(s_{t-1}, token_t)

    encoder    makes the features of an image: layers of Equinox, any function, which is called with the image alone.
               An image is any tree of arrays, and so are its features; where they are at hand already,
               `eqx.nn.Identity()` is the encoder
    bridge     makes of the features the state that the language model starts from: a `Bridge`, or any function
    language   says the caption

    The parts as they are; nothing is drawn. Vinyals et al. 2015 (arXiv:1411.4555) show the features to the network as
    its first input; making its initial state of them is the *init-inject* of Tanti et al. 2018 (arXiv:1703.09137).

    The image is looked at once. Where every word should look at a place of its own (Xu et al. 2015, arXiv:1502.03044),
    `BahdanauDecoder` attends to any values [S, M], given as an `Encoded`, in a model of your own. One image is meant
    everywhere: `jax.vmap` makes a batch.
    """

    encoder: Callable[[Any], PyTree[Array]] = eqx.field(converter=as_module)
    bridge: Callable[[PyTree[Array]], State] = eqx.field(converter=as_module)
    language: LanguageModel

    def initial(self, image: Checked[PyTree[AnyArray]]) -> State:
        """The language model's state before the first token.

        Features that are not finite are a ValueError where they are known, and where they are traced an error when
        run, or NaN in a program of `jax.export`; what the bridge makes, if it is no state of the language model, is a
        ValueError.
        """
        state = self.bridge(_check_features(self.encoder(image)))
        check_bridge(state, jax.eval_shape(self.language.initial), "the language model")
        return state

    def logits(
        self,
        image: Checked[PyTree[AnyArray]],
        target: Checked[AnyArray],
        *,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "T V"]:
        """The logits of the token after each of `target`, in float32 or wider.

        target   [T], what the language model is fed, from the token that starts a caption on
        engine   how it runs along time
        key      for dropout in its network; None: nothing is dropped
        """
        tokens = self.language.embedding.check(target, name="target")
        return self.language.logits(self.initial(image), tokens, engine=engine, key=key)[1]

    def decoding(self, image: Checked[PyTree[AnyArray]]) -> Decoding:
        """The arguments of `greedy`, `sample_sequence` and `beam_search`, for `image`. Nothing is aligned."""
        return self.language.decoding(self.initial(image))


@exportable
class Captions(NamedTuple):
    """A batch of images, and their padded captions: each begins with its start token, and ends with its end token.

    Lengths count both of these. Padding never affects the loss. A caption of one token or none adds zero to it;
    its image is encoded all the same.
    """

    image: PyTree[AnyArray]  # [B, ...]
    target: AnyArray  # [B, T + 1]
    target_length: AnyArray  # [B]


def caption_loss(
    model: Captioner,
    carry: PyTree,
    batch: Checked[tuple[PyTree[AnyArray], AnyArray, AnyArray]],
    key: PRNGKeyArray | None,
    *,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], PyTree]:
    """Mean cross-entropy of the next token in nats, over all valid tokens of the batch, and `carry` as it was.

    A loss for `fit`. The input is a caption without its last token, the labels are all but the first.

    batch   (image, target, target_length), or `Captions`
    key     for dropout in the language model, drawn for each caption; None: nothing is dropped
    """
    image, target, target_length = batch_parts(
        batch, "Captions(image, target, target_length)", image=None, target=2, target_length=1
    )

    def logits(image: Any, fed: Array, key: PRNGKeyArray | None) -> Array:
        return model.logits(image, fed, engine=engine, key=key)

    return target_loss(logits, image, target, target_length, model.language.embedding.vocabulary_size, key), carry


def _check_features(features: PyTree[Array]) -> PyTree[Array]:
    message = (
        "image: expected features that are finite, got NaN or infinity. Check the image and the weights of the encoder"
    )
    leaves = [leaf for leaf in jax.tree.leaves(features) if eqx.is_inexact_array(leaf)]
    finite = jnp.asarray([jnp.isfinite(leaf).all() for leaf in leaves]).all()
    if isinstance(finite, Tracer):
        return error_where(features, ~finite, message)
    if not finite:
        raise ValueError(message)
    return features
