"""Whole models, each a small pure module over `unroll`, with one contract.

Constructors   sizes first, then the layers from input to output; keys and options by name.
Arguments      a state first where a sequence may continue, then the input, then the target; `length`, `mask`, `resets`,
               `engine` and `key` by name, in this order. Losses are `loss(model, carry, batch, key)`.
Results        the state, the answer (logits, values), the alignments; a model without one of them omits it.
Decoding       `model.decoding(...)` gives `step(state, token) -> (state, logits, alignment)` and the first state, for
               `greedy`, `sample_sequence` and `beam_search`.
Tokens         outside the vocabulary are an error, under `jit` too: `Embedding`.
"""

from . import transduction as transduction
from .attention import AbstractScore as AbstractScore
from .attention import Additive as Additive
from .attention import Dot as Dot
from .attention import General as General
from .attention import Memory as Memory
from .attention import attend as attend
from .attention import remember as remember
from .attentive_decoder import BahdanauDecoder as BahdanauDecoder
from .attentive_decoder import LuongDecoder as LuongDecoder
from .awd import awd_loss as awd_loss
from .beam import beam_search as beam_search
from .bridge import Bridge as Bridge
from .captioner import Captioner as Captioner
from .captioner import Captions as Captions
from .captioner import caption_loss as caption_loss
from .classifier import Classifier as Classifier
from .classifier import Sequences as Sequences
from .classifier import classifier_loss as classifier_loss
from .decoder import AbstractDecoder as AbstractDecoder
from .decoder import ContextDecoder as ContextDecoder
from .decoder import Encoded as Encoded
from .embedding import Embedding as Embedding
from .embedding import OutputLayer as OutputLayer
from .forecaster.counts import NegativeBinomial as NegativeBinomial
from .forecaster.deepar import DeepAR as DeepAR
from .forecaster.deepar import deepar_loss as deepar_loss
from .forecaster.distribution import AbstractDistribution as AbstractDistribution
from .forecaster.distribution import Normal as Normal
from .forecaster.distribution import StudentT as StudentT
from .forecaster.es_rnn import ESRNN as ESRNN
from .forecaster.es_rnn_loss import es_rnn_loss as es_rnn_loss
from .forecaster.forecaster import Forecaster as Forecaster
from .forecaster.forecaster import forecaster_loss as forecaster_loss
from .forecaster.quantiles import Quantiles as Quantiles
from .forecaster.windows import Windows as Windows
from .forecaster.windows import windows as windows
from .language import LanguageModel as LanguageModel
from .language import batch_of_states as batch_of_states
from .language import language_loss as language_loss
from .objectives import binary_cross_entropy as binary_cross_entropy
from .objectives import check_labels as check_labels
from .objectives import cross_entropy as cross_entropy
from .objectives import squared_error as squared_error
from .pairs import Pairs as Pairs
from .pairs import seq2seq_loss as seq2seq_loss
from .pooling import AttentionPooling as AttentionPooling
from .pooling import ends as ends
from .pooling import flatten as flatten
from .pooling import last as last
from .pooling import maximum as maximum
from .pooling import mean as mean
from .sampling import sample as sample
from .search import Decoding as Decoding
from .search import Hypothesis as Hypothesis
from .search import greedy as greedy
from .search import sample_sequence as sample_sequence
from .seq2seq import Seq2Seq as Seq2Seq
from .tagger import Tagger as Tagger
from .tagger import average_steps as average_steps
from .tagger import forecast as forecast
from .tagger import tagger_loss as tagger_loss
from .tagger import total_steps as total_steps
from .trees import TreeClassifier as TreeClassifier
from .trees import count_right_roots as count_right_roots
from .trees import tree_loss as tree_loss
from .xlstm import xlstm_layers as xlstm_layers
