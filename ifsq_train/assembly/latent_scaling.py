"""Mean and standard deviation of the latents a diffusion model is trained on."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from data_pipelines.documents import Count, Finite, Text, checked, read_json
from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.local import write_atomically
from data_pipelines.tokens.latents import LatentStatistics, LatentSums
from ifsq_train.assembly.generator_source import Source
from ifsq_train.config import LatentConfig, TrainConfig
from ifsq_train.data.base import TrainData
from ifsq_train.distributed.collectives import broadcast
from ifsq_train.distributed.context import RunContext

logger = logging.getLogger(__name__)

LATENTS_JSON = "latents.json"
"""In the run folder: mean and standard deviation measured on images when the run began."""


class _Measured(TypedDict):
    """The shape of latents.json."""

    tokenizer_fingerprint: Text
    mean: list[Finite]
    std: list[Finite]
    count: Count


_MEASURED: TypeAdapter[_Measured] = TypeAdapter(_Measured)


def latent_scaling(
    config: TrainConfig,
    settings: LatentConfig,
    data: TrainData,
    source: Source,
    context: RunContext,
) -> LatentStatistics:
    """Mean and standard deviation the flow's latents are scaled with, per channel.

    In this order: what the recipe says, what the token dataset says, what was measured when this
    run began, a measurement. The multiplier is part of the standard deviation.

    Raises:
        UserError: another number of channels than the latents have.
    """
    if settings.mean is not None and settings.std is not None:
        if len(settings.mean) != source.spec.latent_channels:
            raise UserError(
                f"task.latents.mean and std have {len(settings.mean)} numbers, the latents have"
                f" {source.spec.latent_channels} channels; give one per channel"
            )
        statistics = LatentStatistics(settings.mean, settings.std, 0)
    elif data.facts.tokens is not None and data.facts.tokens.latent_statistics is not None:
        statistics = data.facts.tokens.latent_statistics
    else:
        path = Path(config.output).absolute() / LATENTS_JSON
        statistics = _shared_measurement(path, settings.measure_images, data, source, context)
    std = tuple(value / settings.multiplier for value in statistics.std)
    return LatentStatistics(statistics.mean, std, statistics.count)


def _shared_measurement(
    path: Path, wanted: int, data: TrainData, source: Source, context: RunContext
) -> LatentStatistics:
    """Rank 0 reads or measures, the others get the same numbers."""
    channels = source.spec.latent_channels
    numbers = torch.zeros(2 * channels + 1, dtype=torch.float64)
    if context.rank == 0:
        found = _read(path, source)
        if found is None:
            found = _measure(wanted, data, source, context)
            _write(path, source, found)
        numbers = torch.tensor([*found.mean, *found.std, found.count], dtype=torch.float64)
    values = broadcast(numbers).tolist()
    return LatentStatistics(
        tuple(values[:channels]), tuple(values[channels : 2 * channels]), int(values[-1])
    )


def _read(path: Path, source: Source) -> LatentStatistics | None:
    """What this run measured when it began, with the same tokenizer."""
    if not path.is_file():
        return None
    stored = checked(_MEASURED, read_json(path), str(path))
    channels = source.spec.latent_channels
    if not len(stored["mean"]) == len(stored["std"]) == channels or min(stored["std"]) <= 0:
        raise DataError(
            f"{path} does not hold a mean and a positive standard deviation for {channels}"
            " channels; restore it, or remove it and begin the run in a new folder"
        )
    if stored["tokenizer_fingerprint"] != source.spec.tokenizer_fingerprint:
        return None
    return LatentStatistics(tuple(stored["mean"]), tuple(stored["std"]), int(stored["count"]))


def _measure(wanted: int, data: TrainData, source: Source, context: RunContext) -> LatentStatistics:
    assert source.encoder is not None
    source.encoder.network.to(context.device)
    sums: list[LatentSums] = []
    share = max(1, data.plan.global_batch_size // 16)
    for step in range(-(-wanted // data.plan.global_batch_size)):
        batch = data.load(step, 0, 1)
        for images in batch.inputs.split(share):
            latents = source.encoder(images.to(context.device)).latents.double()
            sums.append(
                LatentSums(
                    latents[:, 0].numel(),
                    tuple(latents.sum((0, 2, 3)).tolist()),
                    tuple(latents.square().sum((0, 2, 3)).tolist()),
                )
            )
    statistics = LatentSums.combine(sums)
    assert statistics is not None
    std = [f"{value:.4f}" for value in statistics.std]
    logger.info("latents measured on %d images: std %s", wanted, std)
    return statistics


def _write(path: Path, source: Source, statistics: LatentStatistics) -> None:
    found = {
        "tokenizer_fingerprint": source.spec.tokenizer_fingerprint,
        "mean": list(statistics.mean),
        "std": list(statistics.std),
        "count": statistics.count,
    }
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
