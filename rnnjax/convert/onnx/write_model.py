"""Cells, networks and models as nodes of ONNX."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import check
from ...cell import AbstractCell
from ...models.classifier import Classifier
from ...models.language import LanguageModel
from ...models.tagger import Tagger
from ...named import Function
from ...network import AbstractNetwork, Layer
from ...networks.layer import output_type
from .context import Context, Names
from .write_function import write_affine, write_function
from .write_layer import write_layer
from .write_pooling import pooling_writer


class Model(NamedTuple):
    """A model to be written: the network that has a state, and a function that writes all of it as nodes."""

    network: Layer
    form: jax.ShapeDtypeStruct  # of the input of one step
    output: jax.ShapeDtypeStruct
    write: Callable[[Context, Names, str], tuple[Names, str]]
    is_whole: bool = False  # one output for each sequence, and no state to go on from


def model_of(network: Layer | Classifier | Tagger | LanguageModel) -> Model:
    """The model, once its inputs and outputs are seen to be vectors."""
    if isinstance(network, AbstractCell | AbstractNetwork):
        return _checked(Model(network, network.input_type(), output_type(network), partial(write_layer, network)))
    if type(network) is Classifier:
        return _classifier(network)
    if type(network) is Tagger:
        return _tagger(network)
    if type(network) is LanguageModel:
        return _language_model(network)
    raise TypeError(
        f"network: expected a cell, a network, a Classifier, a Tagger or a LanguageModel, got {network!r}. "
        "Pass the network of another model, such as captioner.network"
    )


def _classifier(model: Classifier) -> Model:
    pooling = model.pooling.function if isinstance(model.pooling, Function) else model.pooling
    inner, write_pooling = model_of(model.network), pooling_writer(pooling)
    one = jax.ShapeDtypeStruct((1, *inner.output.shape), inner.output.dtype)
    pooled = jax.eval_shape(lambda ys: model.pooling(ys, None), one)

    def write(context: Context, state: Names, xs: str) -> tuple[Names, str]:
        last, ys = inner.write(context, state, xs)
        return last, write_function(model.head, context, write_pooling(context, ys), pooled)

    return _checked(inner._replace(output=jax.eval_shape(model.head, pooled), write=write, is_whole=True))


def _tagger(model: Tagger) -> Model:
    inner = model_of(model.network)

    def write(context: Context, state: Names, xs: str) -> tuple[Names, str]:
        last, ys = inner.write(context, state, xs)
        return last, write_function(model.head, context, ys, inner.output)

    return _checked(inner._replace(output=jax.eval_shape(model.head, inner.output), write=write))


def _language_model(model: LanguageModel) -> Model:
    inner, tokens = model_of(model.network), jax.ShapeDtypeStruct((), jnp.int32)
    weight = model.embedding.weight if model.output.weight is None else model.output.weight

    def write(context: Context, state: Names, xs: str) -> tuple[Names, str]:
        embedded = write_function(model.embedding, context, xs, tokens)
        last, ys = inner.write(context, state, embedded)
        return last, write_affine(context, ys, np.asarray(weight), model.output.bias)

    return Model(inner.network, tokens, jax.ShapeDtypeStruct(weight.shape[:1], weight.dtype), write)


def _checked(model: Model) -> Model:
    for name, form, ranks in (("inputs", model.form, (0, 1)), ("outputs", model.output, (1,))):
        if not isinstance(form, jax.ShapeDtypeStruct) or len(form.shape) not in ranks:
            raise ValueError(
                f"network: expected {name} that are one vector at each step, got {check.show(form)}. "
                "Use layers of vectors, or export with jax.export"
            )
    return model
