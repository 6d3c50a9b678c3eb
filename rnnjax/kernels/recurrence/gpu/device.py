"""The properties of a GPU that plans depend on."""

from typing import Any, NamedTuple

import jax

AMPERE, HOPPER = 80, 90  # the first whose matrix units take bfloat16, and the only one with `wgmma`


class Device(NamedTuple):
    """The properties of a device."""

    name: str
    capability: int  # compute capability times ten
    shared_memory: int  # bytes that a block may take
    multiprocessors: int

    @classmethod
    def current(cls) -> "Device":
        """The device lowered for: the abstract device of the mesh in use, else the first local one, else `LEAST`."""
        abstract = jax.sharding.get_abstract_mesh().abstract_device
        try:
            here = jax.local_devices(backend="cuda")
        except RuntimeError:
            here = []
        if abstract is not None:
            alike = [device for device in here if device.device_kind == abstract.device_kind]
            return cls.of(alike[0]) if alike else cls.named(abstract.device_kind)
        return cls.of(here[0]) if here else LEAST

    @classmethod
    def named(cls, kind: str) -> "Device":
        """The device by JAX's name of its kind, such as "NVIDIA A100-SXM4-80GB"."""
        words = kind.replace("-", " ").split()
        return next((known for known in KNOWN if set(known.name.split()) <= set(words)), LEAST)

    @classmethod
    def of(cls, device: Any) -> "Device":
        """A local device."""
        capability = round(10 * float(device.compute_capability))
        alike = next((known for known in KNOWN if known.capability == capability), LEAST)
        return alike._replace(name=device.device_kind, capability=capability, multiprocessors=device.core_count)


KNOWN = (
    Device("A100", 80, 166_912, 108),
    Device("GH200", 90, 232_448, 132),
    Device("H100 PCIe", 90, 232_448, 114),
    Device("H100", 90, 232_448, 132),
    Device("H800", 90, 232_448, 132),
    Device("H20", 90, 232_448, 78),
    Device("H200", 90, 232_448, 132),
    Device("B200", 100, 232_448, 148),
    Device("B300", 103, 232_448, 148),
)
LEAST = Device("any GPU from compute capability 8.0 on", AMPERE, 101_376, 64)
