"""Networks of the literature: layers that use earlier inputs, and combinations of layers."""

from ..network import AbstractNetwork as AbstractNetwork
from ..network import Options as Options
from .bidirectional import Bidirectional as Bidirectional
from .bidirectional import Reversed as Reversed
from .bidirectional import SharedBidirectional as SharedBidirectional
from .cg_lru import CGLRU as CGLRU
from .connected import Connected as Connected
from .connected import residual as residual
from .connected import skip as skip
from .convolution import CausalConvolution as CausalConvolution
from .depthwise_convolution import DepthwiseConvolution as DepthwiseConvolution
from .gated_lru import RGLRUState as RGLRUState
from .layers import layers as layers
from .merge import Directions as Directions
from .merge import add as add
from .merge import average as average
from .merge import concatenate as concatenate
from .merge import multiply as multiply
from .merge import pair as pair
from .partial_resets import PartialResets as PartialResets
from .qrnn import QRNN as QRNN
from .qrnn import QRNNState as QRNNState
from .rg_lru import RGLRU as RGLRU
from .stack import Stack as Stack
from .time_distributed import TimeDistributed as TimeDistributed
from .window import Window as Window
