"""rnnjax: recurrent networks in JAX. Write a cell once, choose how it runs; same numbers, same gradients."""

from types import ModuleType

from . import cells as cells
from . import convert as convert
from . import diagnose as diagnose
from . import engines as engines
from . import gradients as gradients
from . import initialise as initialise
from . import kernels as kernels
from . import models as models
from . import networks as networks
from . import regularise as regularise
from . import training as training
from . import trees as trees
from .cell import AbstractCell as AbstractCell
from .cell import AbstractDiagonalCell as AbstractDiagonalCell
from .cell import AbstractLinearCell as AbstractLinearCell
from .cell import Hidden as Hidden
from .cells.conv_gru import ConvGRU as ConvGRU
from .cells.conv_lstm import ConvLSTM as ConvLSTM
from .cells.diagonal_gru import DiagonalGRU as DiagonalGRU
from .cells.diagonal_lstm import DiagonalLSTM as DiagonalLSTM
from .cells.elman import Elman as Elman
from .cells.gru import GRU as GRU
from .cells.ind_rnn import IndRNN as IndRNN
from .cells.lem import LEM as LEM
from .cells.linear_recurrence import LinearRecurrence as LinearRecurrence
from .cells.linear_rnn import LinearRNN as LinearRNN
from .cells.lru import LRU as LRU
from .cells.lstm import LSTM as LSTM
from .cells.matrix_recurrence import MatrixRecurrence as MatrixRecurrence
from .cells.min_gru import MinGRU as MinGRU
from .cells.min_lstm import MinLSTM as MinLSTM
from .cells.projected_lstm import ProjectedLSTM as ProjectedLSTM
from .cells.reset_before_gru import ResetBeforeGRU as ResetBeforeGRU
from .cells.s5 import S5 as S5
from .cells.sru import SRU as SRU
from .engine import AbstractEngine as AbstractEngine
from .engines.associative import Associative as Associative
from .engines.auto import Auto as Auto
from .engines.checkpointed import Checkpointed as Checkpointed
from .engines.chunked.chunked import Chunked as Chunked
from .engines.fused import Fused as Fused
from .engines.newton.newton import Newton as Newton
from .engines.scan import Scan as Scan
from .engines.sharded import Sharded as Sharded
from .engines.unrolled import Unrolled as Unrolled
from .explain import explain as explain
from .gated_cell import AbstractGatedCell as AbstractGatedCell
from .kernels.native.library import absence
from .network import AbstractNetwork as AbstractNetwork
from .networks.bidirectional import Bidirectional as Bidirectional
from .networks.bidirectional import Reversed as Reversed
from .networks.connected import residual as residual
from .networks.connected import skip as skip
from .networks.qrnn import QRNN as QRNN
from .networks.rg_lru import RGLRU as RGLRU
from .networks.stack import Stack as Stack
from .networks.time_distributed import TimeDistributed as TimeDistributed
from .prepare import prepare as prepare
from .training.checkpoint import load as load
from .training.checkpoint import save as save
from .unroll import unroll as unroll

NAMESPACES = (
    *(cells, convert, diagnose, engines, gradients, initialise, kernels, models, networks, regularise, training),
    trees,
)

absence()  # a program that another process has compiled finds the CPU kernel from the import on

__version__ = "0.1.0"


def __dir__() -> list[str]:
    """The public names: of the modules, those that are namespaces."""
    hidden = ("ModuleType", "NAMESPACES", "absence")
    return [
        name
        for name, value in globals().items()
        if name not in hidden and (not isinstance(value, ModuleType) or value in NAMESPACES)
    ]
