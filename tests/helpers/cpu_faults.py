"""Calls of the CPU library that break its private protocol, each with one fault, and what must be said of it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from cpu_calls import B, Call, F, G, H, K, S, T, call_of, linear_scan_call, switch, zeros
from jax import ShapeDtypeStruct

from rnnjax.kernels.recurrence.pointwise.operations import MEANINGS

IN_ORDER = "in order"


@lru_cache
def program(entry: str) -> tuple[tuple[str, ...], Callable[[int], Any]]:
    """The names of all calls of an entry point here, and one compiled program that makes the one of a number."""
    calls = _of_linear_scan() if entry == "linear_scan" else _of_half(entry)
    return tuple(calls), switch(list(calls.values()))


def call(entry: str, name: str) -> np.ndarray:
    """Make the call of that name, with its error."""
    names, made = program(entry)
    return np.asarray(jax.block_until_ready(made(names.index(name))))


def names(entry: str, kind: str) -> list[str]:
    """The names of all calls of one kind of fault, which they begin with."""
    found = [name for name in program(entry)[0] if name.startswith(f"{kind} ")]
    assert found, (entry, kind)
    return found


def _of_half(half: str) -> dict[str, Call]:
    call = call_of(half)
    corrupt = {f"corrupt {name}": change(call) for name, (change, _) in CORRUPT.items()}
    dtypes = {f"dtype {dtype}": _of_dtype(call, dtype) for dtype in NO_CODE}
    others = _misfits(call) | _missing(call) | {"state without fields": _without_fields(call, half)}
    return {IN_ORDER: call} | corrupt | dtypes | others


def _of_linear_scan() -> dict[str, Call]:
    call = linear_scan_call()
    return {IN_ORDER: call} | {name: change(call) for name, (change, _) in LINEAR_SCAN.items()}


# Programs that the kernel must not run


def fixed(call: Call) -> int:
    """How many registers a program may only read: its inputs and constants."""
    pre_activations = len(call.attributes["pre_activations"]) // 3
    fields = 2 * F if call.target == "rnnjax_backward" else F
    return pre_activations + fields + K + len(call.attributes["constants"])


def edited(name: str, place: int, number: Callable[[Call], int] | int) -> Callable[[Call], Call]:
    """A call with one number of an attribute replaced."""

    def edit(call: Call) -> Call:
        array = call.attributes[name].copy()
        array[place] = number(call) if callable(number) else number
        return call._replace(attributes=call.attributes | {name: array})

    return edit


def changed(name: str, change: Callable[[Any, Call], Any]) -> Callable[[Call], Call]:
    """A call with an attribute replaced."""
    return lambda call: call._replace(attributes=call.attributes | {name: change(call.attributes[name], call)})


def registers(number: Callable[[Call], int]) -> Callable[[Call], Call]:
    return changed("registers", lambda _, call: np.int32(number(call)))


def resized(**shapes: tuple[int, ...]) -> Callable[[Call], Call]:
    """A call with arguments of other shapes."""
    return lambda call: call._replace(arguments=call.arguments | zeros(**shapes))


def all_registers(call: Call) -> int:
    return int(call.attributes["registers"])


CORRUPT = {
    "part_of_an_instruction": (changed("instructions", lambda code, _: code[:-1]), "a part of an instruction"),
    "operation_unknown": (edited("instructions", 0, len(MEANINGS)), "an unknown operation"),
    "operation_negative": (edited("instructions", 0, -1), "an unknown operation"),
    "destination_beyond": (edited("instructions", 1, all_registers), "writes where it must not"),
    "destination_negative": (edited("instructions", 1, -1), "writes where it must not"),
    "destination_an_input": (edited("instructions", 1, 0), "writes where it must not"),
    "destination_the_last_fixed": (edited("instructions", 1, lambda call: fixed(call) - 1), "writes where it must not"),
    "last_destination_beyond": (edited("instructions", -4, all_registers), "writes where it must not"),
    "operand_beyond": (edited("instructions", 2, all_registers), "reads where it must not"),
    "unused_operand_beyond": (edited("instructions", -1, all_registers), "reads where it must not"),
    "operand_negative": (edited("instructions", 3, -1), "reads where it must not"),
    "output_beyond": (edited("outputs", 0, all_registers), "returns what it does not have"),
    "output_negative": (edited("outputs", -1, -1), "returns what it does not have"),
    "output_missing": (changed("outputs", lambda outputs, _: outputs[:-1]), "too few or too many outputs"),
    "output_too_many": (changed("outputs", lambda outputs, _: np.append(outputs, outputs[:1])), "too few or too many"),
    "registers_too_many": (registers(lambda _: 513), "too many registers"),
    "registers_negative": (registers(lambda _: -1), "registers"),
    "registers_fewer_than_fixed": (registers(lambda call: fixed(call) - 1), "fewer registers than inputs"),
    "constants_too_many": (changed("constants", lambda *_: np.zeros(513)), "fewer registers than inputs"),
    "pre_activation_of_no_gate": (edited("pre_activations", 0, G), "the number of no gate"),
    "pre_activation_negative": (edited("pre_activations", 0, -1), "the number of no gate"),
    "gate_filled_twice": (edited("pre_activations", 0, 1), "a gate does not get each product once"),
    "gate_without_a_product": (edited("pre_activations", 1, 0), "a gate does not get each product once"),
    "part_of_a_pre_activation": (
        changed("pre_activations", lambda pre_activations, _: pre_activations[:-1]),
        "a part of a pre-activation",
    ),
    "pre_activations_missing": (changed("pre_activations", lambda pre_activations, _: pre_activations[:0]), "rnnjax: "),
    "pre_activations_too_many": (
        changed("pre_activations", lambda pre_activations, _: np.resize(pre_activations, 3 * 65)),
        "too many pre-activations",
    ),
    "fields_too_many": (
        resized(state=(S, B, 17, H), initial=(1, 17, H)),
        "too many pre-activations, fields",
    ),
    "unit_parameters_too_many": (
        resized(unit_parameters=(1, 65, H)),
        "too many pre-activations, fields",
    ),
}


# Buffers that do not fit


def longer(array: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct((*array.shape[:-1], array.shape[-1] + 1), array.dtype)


def deeper(array: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct((1, *array.shape), array.dtype)


def of_other_groups(array: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct((S + 1, *array.shape[1:]), array.dtype)


def of_other_dtype(array: Any) -> ShapeDtypeStruct:
    other = {"float64": "float32", "int32": "int64", "bool": "uint8"}
    return ShapeDtypeStruct(array.shape, other[array.dtype.name])


CHANGES = {change.__name__: change for change in (longer, deeper, of_other_groups, of_other_dtype)}

# What is at fault where it is not the buffer itself: sizes and dtype are those of `xs`, ranks are compared first.
BLAMED = {
    ("longer", "xs"): "the shape or dtype of W",
    ("of_other_groups", "xs"): "the shape or dtype of state",
    ("of_other_dtype", "xs"): "the shape or dtype of state",
    **{("deeper", name): "other ranks" for name in ("xs", "state", "R", "unit_parameters")},
}
# Of prepared weights they are those of the state and of W.
BLAMED_PREPARED = BLAMED | {
    ("longer", "state"): "not of whole heads",
    ("of_other_dtype", "xs"): "the shape or dtype of xs",
    ("of_other_dtype", "state"): "expected states of float32 or float64, and weights of their dtype",
    ("of_other_dtype", "W"): "expected states of float32 or float64, and weights of their dtype",
}


def _misfits(call: Call) -> dict[str, Call]:
    """One buffer of another shape or dtype: `longer argument xs`, say, or `deeper result last`."""
    made = {}
    for kind, change in CHANGES.items():
        for name, array in call.arguments.items():
            like = change(array)
            arguments = call.arguments | {name: np.zeros(like.shape, like.dtype)}
            made[f"{kind} argument {name}"] = call._replace(arguments=arguments)
        for name, array in call.results.items():
            made[f"{kind} result {name}"] = call._replace(results=call.results | {name: change(array)})
    return made


NO_CODE = ("int32", "float16", "complex128")  # dtypes


def _of_dtype(call: Call, dtype: str) -> Call:
    return call._replace(arguments={name: array.astype(dtype) for name, array in call.arguments.items()})


def _missing(call: Call) -> dict[str, Call]:
    """The first few buffers alone, and one too many."""
    first = lambda buffers, count: dict(list(buffers.items())[:count])  # noqa: E731
    made = {
        f"arguments {count}": call._replace(arguments=first(call.arguments, count))
        for count in range(len(call.arguments))
    }
    made |= {
        f"results {count}": call._replace(results=first(call.results, count)) for count in range(1, len(call.results))
    }
    return made | {
        "extra argument": call._replace(arguments=call.arguments | zeros(extra=(1,))),
        "extra result": call._replace(results=call.results | {"extra": ShapeDtypeStruct((1,), np.float64)}),
    }


def _without_fields(call: Call, half: str) -> Call:
    call = resized(state=(S, B, 0, H), initial=(1, 0, H))(call)
    outputs = np.delete(call.attributes["outputs"], -K - 1 if half == "backward" else slice(0, F))
    none = {} if half == "prepared" else {"last": (S, B, 0, H)}  # a call that has no results is none
    none |= {"dlast": (S, B, 0, H), "dinitial": (S, 0, H), "dstate": (S, B, 0, H)}
    without = lambda arrays: {  # noqa: E731
        name: ShapeDtypeStruct(none.get(name, array.shape), array.dtype)
        for name, array in arrays.items()
        if name not in ("states", "dstates")
    }
    arguments = {name: np.zeros(array.shape, array.dtype) for name, array in without(call.arguments).items()}
    return Call(call.target, arguments, without(call.results), call.attributes | {"outputs": outputs})


LINEAR_SCAN = {
    "a_longer": (
        resized(a=(B, T + 1, H)),
        r"dtype of a does not fit the others: expected F64\[3,6,5\], got F64\[3,7,5\]",
    ),
    "a_of_other_rows": (resized(a=(B - 1, T, H)), r"dtype of a does not fit"),
    "a_flat": (resized(a=(T, H)), r"dtype of a does not fit"),
    "b_flat": (resized(b=(T, H)), r"expected b of rank 3, got F64\[6,5\]"),
    "b_wider": (resized(b=(B, T, H + 1)), r"dtype of a does not fit"),
    "initial_over_time": (resized(initial=(B, T, H)), r"dtype of initial does not fit"),
    "initial_missing": (lambda call: call._replace(arguments=zeros(a=(B, T, H), b=(B, T, H))), "arguments: expected 3"),
    "h_shorter": (
        lambda call: call._replace(results={"h": ShapeDtypeStruct((B, T - 1, H), np.float64)}),
        r"dtype of h does not fit",
    ),
    "h_of_other_dtype": (
        lambda call: call._replace(results={"h": ShapeDtypeStruct((B, T, H), np.float32)}),
        r"dtype of h does not fit the others: expected F64\[3,6,5\], got F32\[3,6,5\]",
    ),
    "integers": (
        lambda call: call._replace(arguments=call.arguments | {"b": np.zeros((B, T, H), np.int32)}),
        "expected float32, float64, complex64 or complex128",
    ),
    "no_direction": (
        lambda call: call._replace(attributes={"late": False, "max_instruction_set": np.int32(0)}),
        "attribute",
    ),
}
