"""The public Python API; everything else may change between releases.

    from ifsq_train import Tokenizer, Generator, load_dataset, evaluate

docs/api.md shows how it is used. What goes wrong because of what was asked for is a `UserError`,
whose text says what was found and what to do.
"""

from data_pipelines.errors import UserError
from ifsq_train.api.datasets import PlannedDataset, load_dataset
from ifsq_train.api.generator import Generator, GeneratorSamples
from ifsq_train.api.measure import evaluate
from ifsq_train.api.tokenizer import Tokenizer

__all__ = [
    "Generator",
    "GeneratorSamples",
    "PlannedDataset",
    "Tokenizer",
    "UserError",
    "evaluate",
    "load_dataset",
]
