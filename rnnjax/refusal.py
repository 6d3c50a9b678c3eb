"""A refusal: why an engine or a kernel cannot run a cell."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """The reason, in a sentence that names the cell and says what to use instead."""

    reason: str

    def __str__(self) -> str:
        return self.reason
