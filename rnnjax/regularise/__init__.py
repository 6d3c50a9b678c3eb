"""Regularisers: dropout in its recurrent forms, zoneout, noise, weight drop, penalties. Every draw has a key."""

from .noise import NoisyStates as NoisyStates
from .noise import add_noise as add_noise
from .penalties import activation_penalty as activation_penalty
from .penalties import l1_penalty as l1_penalty
from .penalties import l2_penalty as l2_penalty
from .penalties import temporal_activation_penalty as temporal_activation_penalty
from .recurrent_dropout import RecurrentDropout as RecurrentDropout
from .variational import VariationalDropout as VariationalDropout
from .weights import drop_embedding as drop_embedding
from .weights import drop_weights as drop_weights
from .zoneout import Zoneout as Zoneout
