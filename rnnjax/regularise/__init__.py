"""Regularisers, by what they change: steps of a layer, weights of a model, or the loss. Every draw has a key."""

from .penalties import activation_penalty as activation_penalty
from .penalties import l1_penalty as l1_penalty
from .penalties import l2_penalty as l2_penalty
from .penalties import temporal_activation_penalty as temporal_activation_penalty
from .steps.noisy_states import NoisyStates as NoisyStates
from .steps.recurrent_dropout import RecurrentDropout as RecurrentDropout
from .steps.variational_dropout import VariationalDropout as VariationalDropout
from .steps.zoneout import Zoneout as Zoneout
from .weights import add_noise as add_noise
from .weights import drop_embedding as drop_embedding
from .weights import drop_weights as drop_weights
