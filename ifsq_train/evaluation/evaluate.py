"""Measuring a tokenizer on held-out images, and samples against images or their statistics.

Under torchrun every rank measures a consecutive share and rank 0 writes the result; each image
counts once for any number of ranks. Only sums over images travel, and the class probabilities and
features that Inception Score, precision and recall need.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.errors import DataError, UserError
from ifsq_train.config import EvaluateConfig, to_dict
from ifsq_train.config.evaluate import NEEDS, Metric
from ifsq_train.config.paths import with_absolute_paths
from ifsq_train.distributed.context import InProcessContext, RunContext, TorchrunContext
from ifsq_train.evaluation.classifier_features import measure_samples_by
from ifsq_train.evaluation.codes import CodeUsage
from ifsq_train.evaluation.generation import FeatureMoments, frechet_distance
from ifsq_train.evaluation.image_counts import enough_images, warn_of_few
from ifsq_train.evaluation.image_sets import (
    HeldOutImages,
    StoredImages,
    read_npz_images,
)
from ifsq_train.evaluation.inception_statistics import (
    GaussianStatistics,
    InceptionStatistics,
    distance,
    inception_score,
    read_adm_statistics,
)
from ifsq_train.evaluation.kernel_distance import kernel_distance
from ifsq_train.evaluation.manifold import precision_recall
from ifsq_train.evaluation.provenance import (
    kind_of,
    networks_of,
    preprocessing_of,
    reference_of,
    subject_of,
)
from ifsq_train.evaluation.reconstruction import ReconstructionMeter, round_to_8_bit
from ifsq_train.evaluation.representation import PairedFeatures
from ifsq_train.evaluation.result import (
    EvaluationResult,
    claim_result,
)
from ifsq_train.evaluation.tools import SAMPLE_METRICS, Tools, existing_file
from ifsq_train.models.inception import FidInception
from ifsq_train.models.inference import channels_last
from ifsq_train.models.repa import DinoTeacher

_RECONSTRUCTION_METRICS: tuple[Metric, ...] = ("psnr", "ssim", "l1", "lpips", "code_use", "rfid")
# Names in the result that do not begin with the name of their metric.
_OTHER_NAMES: dict[str, Metric] = {
    "code_entropy_bits": "code_use",
    "perplexity": "code_use",
    "used_codes": "code_use",
    "codebook_size": "code_use",
    "digit_entropy_bits": "code_use",
    "dead_levels": "code_use",
    "digit_histograms": "code_use",
}

OnBatch = Callable[[int, int], None]
"""Called after every batch with (images done, images in all)."""


class Mergeable(Protocol):
    """Counts that another rank's can be added to."""

    def merge(self, other: Any) -> None: ...


Counts = TypeVar("Counts", bound=Mergeable)


def evaluate(
    config: EvaluateConfig,
    on_batch: OnBatch | None = None,
    context: RunContext | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure what a recipe names and write the result; returns it as a dictionary.

    Args:
        config: the recipe.
        on_batch: called after every batch.
        context: this worker's place; a process of its own if not given.
        overwrite: replace a result of other settings.

    Raises:
        UserError: missing tokenizer, weights, dataset or samples, parts that do not fit, or an
            output that is something else or a result of other settings.
    """
    claim_result(Path(config.output), settings_of(config), overwrite=overwrite)
    tools = Tools.open(config, context or _own_context())
    metrics: dict[str, Any] = {}
    if tools.tokenizer is not None and config.wants(*_RECONSTRUCTION_METRICS):
        metrics |= measure_reconstructions(tools, on_batch)
    if tools.teacher is not None:
        metrics |= measure_alignment(tools, tools.teacher)
    if tools.samples is not None and config.wants("frechet_distance", *SAMPLE_METRICS):
        metrics |= measure_samples(tools)
    if tools.judge is not None:
        metrics |= measure_samples_by(tools.judge, tools.images, tools.samples, tools.context)
    metrics = {name: value for name, value in metrics.items() if _is_wanted(config, name)}
    result = EvaluationResult(
        kind=kind_of(config),
        metrics=metrics,
        num_samples=(tools.images or tools.samples).num_samples,  # pyright: ignore
        reference=reference_of(config, tools),
        preprocessing=preprocessing_of(config, tools),
        subject=subject_of(config, tools),
        networks=networks_of(tools, metrics),
        recipe=settings_of(config),
    )
    if tools.context.rank == 0:
        result.write(Path(config.output))
    return result.to_dict()


def settings_of(config: EvaluateConfig) -> dict[str, Any]:
    """The recipe as its result records it: with absolute paths, without the output."""
    values = to_dict(with_absolute_paths(config))
    del values["output"]
    return values


def _own_context() -> RunContext:
    """This process alone, or its place under torchrun."""
    return TorchrunContext() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else InProcessContext()


def over_ranks(counts: Counts) -> Counts:
    """All ranks' counts, merged in the order of ranks (collective)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return counts
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, counts)
    for part in parts[1:]:
        parts[0].merge(part)
    return parts[0]


def measure_reconstructions(tools: Tools, on_batch: OnBatch | None = None) -> dict[str, Any]:
    """Reconstruction measures, token use for quantizers with tokens, rFID with Inception."""
    assert tools.tokenizer is not None
    assert tools.images is not None
    network, inception = tools.tokenizer.network, tools.inception
    quantizer = network.quantize
    levels = quantizer.level_counts
    usage = CodeUsage(levels, quantizer.codebook_sizes) if quantizer.codebook_sizes else None
    meter = ReconstructionMeter(tools.lpips)
    real, raw, rounded = tools.new_statistics(), InceptionStatistics(), InceptionStatistics()
    for images in tools.images.batches(tools.context):
        # Entered here and not around the loop: decoding threads write into normal tensors.
        with torch.inference_mode():
            seen = network.seen(channels_last(images))
            reconstructions, quantized = network(seen)
        refuse_broken(reconstructions, meter.num_images, f"the tokenizer {tools.config.tokenizer}")
        meter.add(seen, reconstructions)
        if usage is not None:
            indices = quantized.indices
            digits = None if levels is None else quantizer.indices_to_digits(indices)
            usage.update(digits, indices)
        if inception is not None:
            real.add(inception, seen)
            raw.add(inception, reconstructions.float())
            rounded.add(inception, round_to_8_bit(reconstructions) * 2.0 - 1.0)
        if on_batch is not None:
            on_batch(meter.num_images, tools.images.num_samples)
    metrics = over_ranks(meter).results()
    if usage is not None:
        metrics |= over_ranks(usage).result()
    if inception is not None:
        tools.real = over_ranks(real)
        pooled = tools.real_pooled = GaussianStatistics.of(tools.real.pooled)
        for name, part in (("rfid", raw), ("rfid_8bit", rounded)):
            metrics[name] = distance(pooled, GaussianStatistics.of(over_ranks(part).pooled))
    return metrics


def refuse_broken(values: Tensor, before: int, network: str) -> None:
    """Raise DataError where a network gave values [B, ...] that are not finite.

    Args:
        values: of a batch.
        before: images of this process that came earlier.
        network: what messages call it.
    """
    broken = (~values.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    if broken:
        raise DataError(
            f"{network} gives values that are not finite for {len(broken)} of {len(values)} images,"
            f" first image {before + broken[0]} of this process; its weights have diverged: take an"
            " earlier checkpoint"
        )


def _is_wanted(config: EvaluateConfig, name: str) -> bool:
    """Whether a number of the result belongs to a metric that is asked for; counts always do."""
    metric = _OTHER_NAMES.get(name, name)
    known: list[Metric] = [one for one in NEEDS if metric == one or metric.startswith(f"{one}_")]
    return not known or config.wants(*known)


@torch.no_grad()
def measure_alignment(tools: Tools, teacher: DinoTeacher) -> dict[str, Any]:
    """CKNNA of the tokenizer encoder's features with the teacher's, both averaged over positions.

    Raises:
        UserError: fewer images than the neighbours asked for need.
    """
    assert tools.tokenizer is not None
    assert tools.images is not None
    encoder, features = tools.tokenizer.network.encoder, PairedFeatures(tools.config.cknna_images)
    for images in tools.images.batches(tools.context):
        if features.num_images >= tools.config.cknna_images:
            break
        mine = encoder(channels_last(images)).float().flatten(2).mean(2)
        refuse_broken(mine, features.num_images, f"the tokenizer {tools.config.tokenizer}")
        features.add(mine, teacher(images).float().mean(1))
    features = over_ranks(features)
    try:
        value = features.cknna(tools.config.cknna_neighbors)
    except ValueError as error:
        raise UserError(f"cknna: {error}; give the evaluation more images") from error
    return {"cknna": value, "num_cknna_images": features.num_images}


def measure_samples(tools: Tools) -> dict[str, Any]:
    """Samples against data in the tokenizer encoder's features, and by Inception's measures."""
    assert tools.samples is not None
    metrics: dict[str, Any] = {"num_generated": tools.samples.num_samples}
    wanted = tools.config.wants("frechet_distance")
    if wanted and tools.tokenizer is not None and tools.images is not None:
        real, fake = (encoder_moments(tools, part) for part in (tools.images, tools.samples))
        if enough_images("frechet_distance", min(real.count, fake.count), real.dim):
            metrics["frechet_distance"] = frechet_distance(real, fake)
    if tools.inception is not None and tools.config.wants(*SAMPLE_METRICS):
        metrics |= measure_samples_by_inception(tools, tools.inception)
    return metrics


@torch.no_grad()
def encoder_moments(tools: Tools, images: HeldOutImages | StoredImages) -> FeatureMoments:
    """Moments of the tokenizer encoder's features, averaged over positions."""
    assert tools.tokenizer is not None
    encoder = tools.tokenizer.network.encoder
    moments = FeatureMoments(encoder.conv_out.out_channels)
    for batch in images.batches(tools.context):
        found = encoder(channels_last(batch)).float().flatten(2).mean(2)
        refuse_broken(found, moments.count, f"the tokenizer {tools.config.tokenizer}")
        moments.add(found)
    return over_ranks(moments)


def measure_samples_by_inception(tools: Tools, inception: FidInception) -> dict[str, Any]:
    """FID, sFID, Inception Score, precision and recall."""
    config, samples = tools.config, tools.samples
    assert samples is not None
    fake = inception_statistics(tools, inception, samples)
    real, rows = _real_statistics(tools, inception)
    warn_of_few(min(samples.num_samples, real["pooled"].count or samples.num_samples))
    metrics = {"fid": distance(real["pooled"], GaussianStatistics.of(fake.pooled))}
    if "spatial" in real:
        metrics["sfid"] = distance(real["spatial"], GaussianStatistics.of(fake.spatial))
    if len(fake.shares):
        metrics["inception_score"] = inception_score(fake.shares)
    if rows is not None:
        metrics["kid"] = kernel_distance(rows, fake.rows)
        both = precision_recall(rows, fake.rows, config.neighbors)
        metrics |= dict(zip(("precision", "recall"), both, strict=True))
    return metrics


def inception_statistics(
    tools: Tools, inception: FidInception, images: HeldOutImages | StoredImages
) -> InceptionStatistics:
    """Statistics over all ranks of a set of images."""
    found = tools.new_statistics()
    for batch in images.batches(tools.context):
        found.add(inception, batch)
    return over_ranks(found)


def _real_statistics(
    tools: Tools, inception: FidInception
) -> tuple[dict[str, GaussianStatistics], Tensor | None]:
    """Reference moments and, where images are at hand, features for precision and recall."""
    config = tools.config
    if config.reference is not None:
        images = read_npz_images(existing_file("reference", config.reference))
        rows = None
        if images is not None:
            first = StoredImages(images[: config.manifold_images], config.batch_size)
            rows = inception_statistics(tools, inception, first).rows
        return dict(read_adm_statistics(Path(config.reference))), rows
    assert tools.images is not None
    real = tools.real or inception_statistics(tools, inception, tools.images)
    return {
        "pooled": tools.real_pooled or GaussianStatistics.of(real.pooled),
        "spatial": GaussianStatistics.of(real.spatial),
    }, real.rows
