"""What a generator is trained on: a token dataset, or images and a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipelines.tokens.format import TokenSpec
from data_pipelines.tokens.latents import LATENT_MEAN
from ifsq_train.artifacts.token_meaning import (
    quantizer_of,
    spec_of_images,
    spec_of_tokens,
    token_grid,
)
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config import GeneratorTaskConfig, TokenDataConfig, TrainConfig
from ifsq_train.data.base import DataFacts
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.models.quantizers.base import Quantizer
from ifsq_train.tasks.frozen import ImageEncoder


@dataclass(frozen=True)
class Source:
    """What a generator's data is made of.

    Attributes:
        spec: of its tokens and latents.
        encoder: where images are encoded on the fly.
        quantizer: where latents are made of tokens.
    """

    spec: GeneratorSpec
    encoder: ImageEncoder | None = None
    quantizer: Quantizer | None = None


def open_source(config: TrainConfig, task: GeneratorTaskConfig, facts: DataFacts) -> Source:
    """The tokenizer or the quantizer behind a generator's data.

    Raises:
        UserError: no such tokenizer, or not the one the tokens come from.
    """
    if facts.tokens is not None:
        assert isinstance(config.data, TokenDataConfig)
        return _token_source(task, facts.tokens, config.data.tokenizer)
    assert task.tokenizer is not None
    trained = load_tokenizer(task.tokenizer)
    network = trained.network
    grid = token_grid(facts.size, network.downsample_ratio, "data.view.image_size")
    encoder = ImageEncoder(network, task.tokenizer_precision)
    return Source(spec_of_images(trained, grid), encoder=encoder)


def _token_source(
    task: GeneratorTaskConfig, tokens: TokenSpec, data_tokenizer: str | None
) -> Source:
    spec = spec_of_tokens(tokens)
    if task.speaks == "tokens" or LATENT_MEAN in tokens.extra_columns:
        return Source(spec)
    return Source(spec, quantizer=quantizer_of(tokens, task.tokenizer or data_tokenizer))
