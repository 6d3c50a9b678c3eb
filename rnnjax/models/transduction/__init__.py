"""Transduction: sequences to shorter sequences of labels, without an alignment between the two.

`CTC` labels every step by itself, and the transcript is what remains without repetitions and blanks; `Transducer` also
reads the labels so far, and streams. Class 0 is the blank of both; a transcript has labels from 1 to V - 1. Functions
take one sequence, which `jax.vmap` maps over a batch; losses take an `Utterances`.

    model = CTC(11, network, key=key)
    fitted = rnnjax.training.fit(model, ctc_loss, batches, optax.adam(1e-3), steps=1000, key=key)
    _, logits = fitted.model.logits(None, xs)
    ctc_greedy(logits), ctc_beam_search(logits, width=8)
"""

from .ctc import CTC as CTC
from .ctc import ctc_loss as ctc_loss
from .ctc_likelihood import ctc_log_likelihood as ctc_log_likelihood
from .ctc_search import ctc_beam_search as ctc_beam_search
from .ctc_search import ctc_greedy as ctc_greedy
from .joiner import Joiner as Joiner
from .labels import BLANK as BLANK
from .labels import Utterances as Utterances
from .transducer import Transducer as Transducer
from .transducer import TransducerState as TransducerState
from .transducer import transducer_loss as transducer_loss
from .transducer_beam import TransducerBeam as TransducerBeam
from .transducer_beam import transducer_beam_search as transducer_beam_search
from .transducer_greedy import transducer_greedy as transducer_greedy
from .transducer_likelihood import transducer_log_likelihood as transducer_log_likelihood
