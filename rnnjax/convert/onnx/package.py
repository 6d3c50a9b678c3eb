"""The package `onnx`, imported when a file is read or written, and not before."""

from importlib import import_module
from typing import Any


def onnx_package() -> Any:
    """The module `onnx`. Raises an ImportError that says what to install."""
    try:
        return import_module("onnx")
    except ImportError as error:
        raise ImportError(
            f"onnx: expected the package that reads and writes ONNX files, got {error}. Install it: pip install onnx"
        ) from error
