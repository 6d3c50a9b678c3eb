"""Estimators of the gradient: backward through time, and forward in time."""

from .backward import BPTT as BPTT
from .eprop import EProp as EProp
from .estimator import AbstractEstimator as AbstractEstimator
from .estimator import Estimate as Estimate
from .feedback import RandomFeedback as RandomFeedback
from .rtrl import RTRL as RTRL
from .snap1 import SnAp1 as SnAp1
from .truncated import TruncatedBPTT as TruncatedBPTT
from .uoro import UORO as UORO
