"""Export by `jax.export`: which tuples its files can name, and whether a program is being lowered for such a file."""

from typing import TypeVar

import jax
from jax.interpreters import mlir

NamedTupleType = TypeVar("NamedTupleType", bound=type)


def exportable(kind: NamedTupleType) -> NamedTupleType:
    """Let exported functions take and return tuples of this class, under the name `rnnjax.NAME`.

    A decorator. A file that was exported earlier holds the name: it stays as it is when the class moves.
    """
    return jax.export.register_namedtuple_serialization(kind, serialized_name=f"rnnjax.{kind.__name__}")


def is_for_export(context: mlir.LoweringRuleContext) -> bool:
    """Whether a lowering rule, of this context, runs for `jax.export`.

    Such a program outlives its process, so it can hold neither calls back to Python nor, unless the user answers for
    them, custom calls. A trace does not know what it will be lowered for; the rule of a primitive does.
    """
    return context.module_context.lowering_parameters.for_export
