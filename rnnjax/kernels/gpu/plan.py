"""Which tier of the GPU kernel runs a cell on a device, by its sizes alone."""

from functools import partial
from typing import NamedTuple

import jax

from ...kernel import Pointwise, Weights
from .place import Tile

NARROWEST = 16  # the smallest side of a product in matrix units
MOST_WARPS = 16  # of a block: with more, each thread would have too few registers
ELEMENTS = 4  # of each array that a thread holds
OLDEST = 80  # the compute capability, times ten, of the first devices whose matrix units take bfloat16


class Device(NamedTuple):
    """What a plan asks of a device."""

    name: str
    capability: int  # compute capability times ten
    shared_memory: int  # bytes that a block may take
    multiprocessors: int

    @classmethod
    def current(cls) -> "Device":
        """The one lowered for: the abstract device of the mesh in use, else the first that is here, else the least."""
        abstract = jax.sharding.get_abstract_mesh().abstract_device
        if abstract is not None:
            return next((device for device in KNOWN if device.name in abstract.device_kind), LEAST)
        try:
            device = jax.local_devices(backend="cuda")[0]
        except RuntimeError:
            return LEAST
        capability = round(10 * float(device.compute_capability))
        alike = next((known for known in KNOWN if known.capability == capability), LEAST)
        return alike._replace(name=device.device_kind, capability=capability, multiprocessors=device.core_count)


KNOWN = (
    Device("A100", 80, 166_912, 108),
    Device("GH200", 90, 232_448, 132),
    Device("H100", 90, 232_448, 132),
    Device("H200", 90, 232_448, 132),
    Device("B200", 100, 232_448, 148),
    Device("B300", 103, 232_448, 148),
)
LEAST = Device("any GPU from compute capability 8.0 on", OLDEST, 101_376, 64)


class Plan(NamedTuple):
    """Tier 1: one block of threads for each head and tile of sequences, R of the head in its shared memory."""

    device: Device
    units: int  # of a head, rounded up to a power of two
    resident: int  # bytes of R

    def tile(self, heads: int, sequences: int) -> Tile:
        """Few sequences in a tile, so that many blocks share the work; more where there are more blocks than room."""
        rows = NARROWEST
        while (
            rows < sequences
            and heads * -(-sequences // rows) > self.device.multiprocessors
            and 2 * rows * self.units <= MOST_WARPS * 32 * ELEMENTS
            and _needed(self.resident, 2 * rows, self.units) <= self.device.shared_memory
        ):
            rows *= 2
        return Tile(rows, self.units)

    def __str__(self) -> str:
        needed, room = _needed(self.resident, NARROWEST, self.units) >> 10, self.device.shared_memory >> 10
        return (
            f"one block of threads for each head and {NARROWEST} sequences or more, "
            f"R of the head in {needed} of {room} KiB of shared memory on {self.device.name}"
        )


def plan(pointwise: Pointwise, weights: Weights, device: Device) -> Plan | str:
    """The plan for such a cell, or the reason why there is none."""
    if device.capability < OLDEST:
        return f"The GPU kernel needs compute capability 8.0, and {device.name} has {device.capability / 10}."
    resident = partial(_resident, pointwise.gates, weights.R.dtype.itemsize)
    units = _power_of_two(weights.R.shape[2])
    if _needed(resident(units), NARROWEST, units) <= device.shared_memory:
        return Plan(device, units, resident(units))
    while _needed(resident(units), NARROWEST, units) > device.shared_memory:
        units //= 2
    return (
        f"The GPU kernel keeps R of a head in the shared memory of a block: on {device.name}, at most {units} units a "
        f"head of this cell, and not {weights.R.shape[2]}."
    )


def warps(tile: Tile) -> int:
    """How many warps of threads work on a tile."""
    return min(MOST_WARPS, max(4, tile.rows * tile.units // (32 * ELEMENTS)))


def _resident(gates: int, itemsize: int, units: int) -> int:
    return gates * itemsize * units**2


def _needed(resident: int, rows: int, units: int) -> int:
    """Bytes of shared memory: R, and what arrays go through between layouts."""
    return resident + 2 * 4 * rows * units + 1024


def _power_of_two(size: int) -> int:
    return max(NARROWEST, 1 << (size - 1).bit_length())
