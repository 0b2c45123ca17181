"""Measuring a tokenizer on held-out images, and samples against them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.images.source import ImageBatch
from data_pipelines.manifest import ShardManifest
from ifsq_train.artifacts import TrainedTokenizer, load_tokenizer
from ifsq_train.config import EvaluateConfig
from ifsq_train.context import default_device
from ifsq_train.data import open_image_source
from ifsq_train.evaluation.codes import CodeUsage
from ifsq_train.evaluation.generation import collect_moments, frechet_distance
from ifsq_train.evaluation.reconstruction import ReconstructionMeter
from ifsq_train.evaluation.result import EvaluationResult, FeatureNetwork, Reference
from ifsq_train.generate import read_samples
from ifsq_train.models.quantizers.base import Quantizer
from ifsq_train.models.quantizers.fsq import FSQ

_VIEW_SEED, _EPOCH = 0, 0
FEATURE_NETWORK = "tokenizer-encoder"

OnBatch = Callable[[int, int], None]
"""Called after every batch with (images done, images in all)."""


def evaluate(config: EvaluateConfig, on_batch: OnBatch | None = None) -> dict[str, Any]:
    """Measure what a recipe names and write the result; returns it as a dictionary.

    Raises:
        UserError: missing tokenizer, dataset or samples, or parts that do not fit together.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    tokenizer.network.to(default_device(0))
    images = HeldOutImages(config)
    metrics = measure_reconstructions(tokenizer, images, on_batch)
    networks: dict[str, FeatureNetwork] = {}
    if config.samples is not None:
        metrics |= measure_samples(tokenizer, images, config)
        networks["frechet_distance"] = FeatureNetwork(FEATURE_NETWORK, tokenizer.fingerprint)
    result = EvaluationResult(
        kind="reconstruction" if config.samples is None else "reconstruction+generation",
        metrics=metrics,
        num_samples=images.num_samples,
        reference=Reference(images.digest, images.num_samples),
        preprocessing={
            "view": config.view.to_dict(),
            "view_seed": _VIEW_SEED,
            "decoder": images.decoder,
            "range": "[-1, 1]",
        },
        subject={"tokenizer": tokenizer.fingerprint, "step": tokenizer.step},
        networks=networks,
    )
    result.write(Path(config.output))
    return result.to_dict()


@dataclass
class HeldOutImages:
    """A dataset in one view, in order of sample ids, read anew by every `batches()`."""

    config: EvaluateConfig

    def __post_init__(self) -> None:
        manifest = ShardManifest.open(self.config.data)
        self.num_samples, self.digest = manifest.num_samples, manifest.digest
        self.decoder = ""

    def batches(self) -> Iterator[ImageBatch]:
        """All images once.

        Raises:
            DataError: a damaged dataset, or an image that cannot be decoded.
        """
        source = open_image_source(
            self.config.data,
            self.config.view,
            decoder="auto",
            seed=_VIEW_SEED,
            device=default_device(0),
        )
        self.decoder = source.decoder.name
        try:
            for first in range(0, self.num_samples, self.config.batch_size):
                last = min(first + self.config.batch_size, self.num_samples)
                yield source.batch(np.arange(first, last, dtype=np.int64), _EPOCH)
        finally:
            source.close()


def measure_reconstructions(
    tokenizer: TrainedTokenizer, images: HeldOutImages, on_batch: OnBatch | None = None
) -> dict[str, Any]:
    """Reconstruction measures and, for quantizers with tokens, their use; see the meters."""
    network = tokenizer.network
    meter, usage = ReconstructionMeter(), None
    quantizer = network.quantize
    levels = quantizer.level_counts if isinstance(quantizer, FSQ) else None
    if quantizer.codebook_sizes:
        usage = CodeUsage(levels, quantizer.codebook_sizes)
    for batch in images.batches():
        # Entered here and not around the loop: decoding threads write into normal tensors.
        with torch.inference_mode():
            reconstruction, quantized = network(batch.images)
        meter.add(batch.images, reconstruction)
        if usage is not None:
            usage.update(_digits(quantizer, quantized.indices), quantized.indices)
        if on_batch is not None:
            on_batch(meter.num_images, images.num_samples)
    return meter.results() | (usage.result() if usage is not None else {})


def _digits(quantizer: Quantizer, indices: Tensor) -> Tensor | None:
    return quantizer.indices_to_digits(indices) if isinstance(quantizer, FSQ) else None


def measure_samples(
    tokenizer: TrainedTokenizer, images: HeldOutImages, config: EvaluateConfig
) -> dict[str, Any]:
    """Frechet distance of samples and images in the tokenizer encoder's mean features."""
    assert config.samples is not None
    samples = read_samples(config.samples).images
    device = default_device(0)

    def features(batch: Tensor) -> Tensor:
        return tokenizer.network.encoder(batch)

    def drawn() -> Iterator[Tensor]:
        for first in range(0, len(samples), config.batch_size):
            part = torch.from_numpy(samples[first : first + config.batch_size]).to(device)
            yield part.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)

    real = collect_moments(features, (batch.images for batch in images.batches()))
    fake = collect_moments(features, drawn())
    return {"frechet_distance": frechet_distance(real, fake), "num_generated": len(samples)}
