"""Layers around a matrix state: linear attention, gated linear recurrences and delta rules."""

from .decays import FixedDecay as FixedDecay
from .decays import StepSizeDecay as StepSizeDecay
from .decays import WriteDecay as WriteDecay
from .decays import rest_of_key as rest_of_key
from .delta_net import DeltaNet as DeltaNet
from .delta_product import DeltaProduct as DeltaProduct
from .gated_delta_net import GatedDeltaNet as GatedDeltaNet
from .gla import GLA as GLA
from .hgrn2 import HGRN2 as HGRN2
from .kda import KDA as KDA
from .linear_attention import LinearAttention as LinearAttention
from .mamba2 import Mamba2 as Mamba2
from .matrix_mixer import MatrixMixer as MatrixMixer
from .matrix_mixer import MixerState as MixerState
from .norms import GroupedNorm as GroupedNorm
from .norms import HeadNorm as HeadNorm
from .projected import Gate as Gate
from .projected import Linear as Linear
from .projected import LowRank as LowRank
from .projected import Projected as Projected
from .projected import written as written
from .ret_net import RetNet as RetNet
