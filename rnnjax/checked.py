"""The annotation of an argument that the function checks itself, so that the caller gets the function's own message."""

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    Checked: TypeAlias = Annotated[T, "checked by the function"]
else:

    class Checked:
        """`Checked[X]` is X for type checkers and readers, and `Any` at run time.

        A run-time checker of annotations would raise first, with a message that does not say what to do.
        """

        def __class_getitem__(cls, expected: object) -> Any:
            return Any
