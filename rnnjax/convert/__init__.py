"""To and from other libraries: torch, Keras, Flax, Haiku, Equinox, ONNX. Each is imported when it is needed.

`from_...` gives a cell or a network that `unroll` runs, with the numbers of the original; `to_...` goes back. Both
keep the dtype. What one side cannot represent is refused by an error that names it.
"""

from .equinox import from_equinox as from_equinox
from .equinox import to_equinox as to_equinox
from .haiku import from_haiku as from_haiku
from .haiku import to_haiku as to_haiku
from .keras_export import to_keras as to_keras
from .keras_import import from_keras as from_keras
from .linen import from_linen as from_linen
from .linen import to_linen as to_linen
from .nnx import from_nnx as from_nnx
from .nnx import to_nnx as to_nnx
from .onnx.reader import Imported as Imported
from .onnx.reader import from_onnx as from_onnx
from .onnx.writer import to_onnx as to_onnx
from .torch_export import to_torch as to_torch
from .torch_import import from_torch as from_torch
