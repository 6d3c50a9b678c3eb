"""Networks and weights of other libraries, into this one and back. None is imported before it is asked for."""

from .onnx.reader import Imported as Imported
from .onnx.reader import from_onnx as from_onnx
from .onnx.writer import to_onnx as to_onnx
