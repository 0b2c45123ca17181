"""Bottlenecks of the tokenizer behind one interface: FSQ, iFSQ, VQ, LFQ and none (AE, VAE)."""

from ifsq_train.models.quantizers.base import Digits, Quantizer, QuantizerOutput
from ifsq_train.models.quantizers.continuous import Continuous
from ifsq_train.models.quantizers.fsq import FSQ
from ifsq_train.models.quantizers.lfq import LFQ
from ifsq_train.models.quantizers.vq import VQ, NormalizedVQ

__all__ = [
    "FSQ",
    "LFQ",
    "VQ",
    "Continuous",
    "Digits",
    "NormalizedVQ",
    "Quantizer",
    "QuantizerOutput",
]
