"""What a generator is trained on: a token dataset, or images and a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.tokens.latents import LATENT_MEAN
from ifsq_train.artifacts.token_meaning import quantizer_of
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    TrainConfig,
)
from ifsq_train.data.base import DataFacts
from ifsq_train.models.quantizers.base import Quantizer
from ifsq_train.tasks.frozen import ImageEncoder


@dataclass(frozen=True)
class Source:
    """What a generator's data is made of.

    Attributes:
        codebook_sizes: of the token groups; empty for continuous latents.
        grid: height and width in tokens.
        latent_channels: C.
        fingerprint: of the tokenizer.
        encoder: where images are encoded on the fly.
        quantizer: where latents are made of tokens.
    """

    codebook_sizes: tuple[int, ...]
    grid: tuple[int, int]
    latent_channels: int
    fingerprint: str
    encoder: ImageEncoder | None = None
    quantizer: Quantizer | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """For the checkpoint's header."""
        return {"tokenizer_fingerprint": self.fingerprint}


def open_source(config: TrainConfig, facts: DataFacts) -> Source:
    """The tokenizer or the quantizer behind a generator's data.

    Raises:
        UserError: no such tokenizer, or not the one the tokens come from.
    """
    task = config.task
    assert isinstance(task, AutoregressiveTaskConfig | DiffusionTaskConfig)
    if facts.tokens is not None:
        return _token_source(task, facts.tokens, getattr(config.data, "tokenizer", None))
    assert task.tokenizer is not None
    trained = load_tokenizer(task.tokenizer)
    network = trained.network
    cells, rest = divmod(facts.image_size, network.downsample_ratio)
    if rest or not cells:
        raise UserError(
            f"data.view.image_size={facts.image_size} is not a multiple of the tokenizer's"
            f" {network.downsample_ratio} pixels per token; use"
            f" {max(cells, 1) * network.downsample_ratio}"
        )
    return Source(
        tuple(network.quantize.codebook_sizes),
        (cells, cells),
        network.quantize.num_channels,
        trained.fingerprint,
        encoder=ImageEncoder(network, task.tokenizer_precision),
    )


def _token_source(
    task: AutoregressiveTaskConfig | DiffusionTaskConfig,
    spec: TokenSpec,
    data_tokenizer: str | None,
) -> Source:
    sizes, grid = tuple(spec.codebook_sizes), (spec.grid[0], spec.grid[1])
    if isinstance(task, AutoregressiveTaskConfig):
        return Source(sizes, grid, 0, spec.tokenizer_fingerprint)
    if LATENT_MEAN in spec.extra_columns:
        return Source(sizes, grid, spec.latent_channels, spec.tokenizer_fingerprint)
    quantizer = quantizer_of(spec, task.tokenizer or data_tokenizer)
    return Source(
        sizes, grid, spec.latent_channels, spec.tokenizer_fingerprint, quantizer=quantizer
    )
