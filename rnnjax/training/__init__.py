"""Training: `fit` runs any optimiser of optax; batches, checkpoints and metrics."""

from .accuracy import accuracy as accuracy
from .batches import Chunk as Chunk
from .batches import minibatches as minibatches
from .batches import streams as streams
from .buckets import Buckets as Buckets
from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import load as load
from .checkpoint import save as save
from .fit import Fitted as Fitted
from .fit import fit as fit
from .forecast_errors import coverage as coverage
from .forecast_errors import crps as crps
from .forecast_errors import mase as mase
from .forecast_errors import smape as smape
from .log import read_metrics as read_metrics
from .orbax import Orbax as Orbax
from .pad import pad as pad
