"""What stages cost, from arithmetic on their recipes alone."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from data_pipelines.errors import UserError
from ifsq_train.artifacts.networks import build_quantizer
from ifsq_train.config import (
    GeneratorTaskConfig,
    PrecomputeConfig,
    QuantizerConfig,
    TokenizerTaskConfig,
    TrainConfig,
)
from ifsq_train.config.study import STAGE_PREFIX
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.models.quantizers import Quantizer
from ifsq_train.planning.estimate import Estimate, estimate
from ifsq_train.study.stage import Stage, references, replaced

_QUANTIZERS: dict[str, Quantizer] = {}
_ESTIMATES: dict[tuple[str, GeneratorSpec | None, int], Estimate] = {}


def stage_estimate(recipe: TrainConfig, tokens: GeneratorSpec | None, workers: int = 1) -> Estimate:
    """FLOPs and bytes of a training; counted once for all that differ in seed and inputs only."""
    values = recipe.model_dump(mode="json", exclude={"seed", "name", "output"})
    plain = replaced(values, dict.fromkeys((ref for _, ref in references(values)), "stage"))
    key = (json.dumps(plain, sort_keys=True), tokens, workers)
    if key not in _ESTIMATES:
        _ESTIMATES[key] = estimate(recipe, workers=workers, peak_flops=None, spec=tokens)
    return _ESTIMATES[key]


def flops_per_step(recipe: TrainConfig, tokens: GeneratorSpec | None) -> float:
    """Forward and backward, of the global batch."""
    return stage_estimate(recipe, tokens).flops_per_step


def token_facts(recipe: TrainConfig, stages: Mapping[str, Stage]) -> GeneratorSpec | None:
    """Grid and codebooks a generator of the study sees; None for a tokenizer.

    Raises:
        UserError: its tokens or its tokenizer are no stage of the study.
    """
    if not isinstance(recipe.task, GeneratorTaskConfig):
        return None
    if recipe.data.kind == "tokens":
        tokens = _stage(recipe.data.url, stages)
        assert isinstance(tokens, PrecomputeConfig)
        place, size = tokens.tokenizer, tokens.view.size
    else:
        place, size = recipe.task.tokenizer or "", recipe.data.view.size
    tokenizer = _stage(place, stages)
    assert isinstance(tokenizer, TrainConfig)
    assert isinstance(tokenizer.task, TokenizerTaskConfig)
    model = tokenizer.task.model
    height, width = (side // model.downsample_ratio for side in size)
    quantizer = _quantizer(model.quantizer)
    return GeneratorSpec((height, width), tuple(quantizer.codebook_sizes), quantizer.num_channels)


def _quantizer(config: QuantizerConfig) -> Quantizer:
    """For what it says of its tokens; built once for each configuration."""
    key = config.model_dump_json()
    if key not in _QUANTIZERS:
        with torch.random.fork_rng(devices=[]):
            _QUANTIZERS[key] = build_quantizer(config)
    return _QUANTIZERS[key]


def _stage(place: str, stages: Mapping[str, Stage]) -> object:
    digest = place.removeprefix(STAGE_PREFIX).partition("@")[0]
    if not place.startswith(STAGE_PREFIX) or digest not in stages:
        raise UserError(
            f"'{place}' is no stage of the study, so its tokens are not known before it runs;"
            " make them with a stage of kind precompute"
        )
    return stages[digest].recipe


def tokenizer_facts(digests: Mapping[str, str], stages: Mapping[str, Stage]) -> dict[str, float]:
    """Compression and bits per channel of a variant's tokenizer, as the paper counts them.

    An image's 24 bits per pixel over the latent's bits, which the quantizer counts itself
    (`Quantizer.latent_bits`): K per channel for 2**K + 1 levels, the logarithm of a learned
    codebook's size, 16 per channel where nothing is quantized.
    """
    for digest in digests.values():
        recipe = stages[digest].recipe
        if isinstance(recipe, TrainConfig) and isinstance(recipe.task, TokenizerTaskConfig):
            quantizer = _quantizer(recipe.task.model.quantizer)
            bits, channels = quantizer.latent_bits, float(quantizer.num_channels)
            return {
                "compression": 24.0 * recipe.task.model.downsample_ratio**2 / bits,
                "bits_per_channel": bits / channels,
                "channels": channels,
            }
    return {}
