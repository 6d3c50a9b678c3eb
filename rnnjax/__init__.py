"""rnnjax: recurrent networks in JAX. Write a cell once, choose how it runs; same numbers, same gradients."""

from . import initialise as initialise
from .cell import AbstractCell as AbstractCell
from .cell import AbstractGatedCell as AbstractGatedCell
from .cell import AbstractLinearCell as AbstractLinearCell
from .cell import Hidden as Hidden
from .cells.elman import Elman as Elman
from .cells.elman import linear as linear
from .cells.gru import GRU as GRU
from .cells.lstm import LSTM as LSTM
from .cells.lstm import LSTMState as LSTMState
from .cells.lstm import Peepholes as Peepholes
from .cells.min_gru import MinGRU as MinGRU
from .cells.projected_lstm import ProjectedLSTM as ProjectedLSTM
from .cells.reset_before_gru import ResetBeforeGRU as ResetBeforeGRU
from .compose import Bidirectional as Bidirectional
from .compose import Connected as Connected
from .compose import Directions as Directions
from .compose import Reversed as Reversed
from .compose import Stack as Stack
from .compose import add as add
from .compose import average as average
from .compose import concatenate as concatenate
from .compose import multiply as multiply
from .compose import pair as pair
from .compose import residual as residual
from .compose import skip as skip
from .engine import AbstractEngine as AbstractEngine
from .engine import marked_step as marked_step
from .engines.associative import Associative as Associative
from .engines.auto import Auto as Auto
from .engines.auto import Selection as Selection
from .engines.checkpointed import Checkpointed as Checkpointed
from .engines.scan import Scan as Scan
from .engines.unrolled import Unrolled as Unrolled
from .kernel import AbstractKernel as AbstractKernel
from .kernel import Cotangents as Cotangents
from .marks import Marks as Marks
from .marks import StepMarks as StepMarks
from .network import AbstractNetwork as AbstractNetwork
from .network import Options as Options
from .unroll import unroll as unroll

__version__ = "0.1.0"
