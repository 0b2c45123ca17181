"""Training data of a recipe: an order and a way to load any worker's share of any batch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.images.decoders.base import DecoderKind
from data_pipelines.images.decoders.open import open_decoder
from data_pipelines.images.source import ImageSource, MixedSource, PixelBatch
from data_pipelines.manifest import ShardManifest
from data_pipelines.order.mix import MixMember, MixPlan
from data_pipelines.order.plan import DataPlan, SamplePlan
from data_pipelines.views import ViewSpec, choose_views
from ifsq_train.config import ImageDataConfig
from ifsq_train.config.sources import ImagePlace
from ifsq_train.data.base import DataFacts, positions
from ifsq_train.data.batch import Batch
from ifsq_train.plugins.sources import open_images_of


@dataclass
class ImageTrainData:
    """Decoded images in the view of the sample's epoch."""

    plan: DataPlan
    source: ImageSource | MixedSource
    num_views: int
    seed: int

    @property
    def facts(self) -> DataFacts:
        """Image size, for building the task."""
        return DataFacts(self.source.spec.size)

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """The rank's share of a step, decoded: images, labels and positions."""
        device = self.source.decoder.device
        if device.type != "cuda":
            return self.to_batch(self.load_pixels(step, rank, world_size), rank, world_size)
        # A stream of its own: decoding and copying do not queue up behind the training step.
        with torch.cuda.stream(self._side_stream):
            batch = self.to_batch(self.load_pixels(step, rank, world_size), rank, world_size)
        self._side_stream.synchronize()
        for tensor in (batch.inputs, batch.labels):
            tensor.record_stream(torch.cuda.default_stream(device))
        return batch

    @functools.cached_property
    def _side_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.source.decoder.device)

    def load_pixels(self, step: int, rank: int, world_size: int) -> PixelBatch:
        """The rank's share as the decoder makes it; any process can make it for any rank."""
        ids = self.plan.rank_ids(step, rank, world_size)
        return self.show(ids, self.plan.rank_epochs(step, rank, world_size))

    def show(self, ids: np.ndarray, epochs: np.ndarray) -> PixelBatch:
        """Samples as they are seen in their epochs; both int64 [B]."""
        views = choose_views(self.seed, epochs, ids, self.num_views)
        return self.source.pixels(ids, epochs, views)

    def to_batch(self, pixels: PixelBatch, rank: int, world_size: int) -> Batch:
        """Decoded pixels as the loop wants them."""
        images = pixels.to_images()
        return Batch(images.images, images.labels, positions(self.plan, rank, world_size))

    def describe(self) -> dict[str, Any]:
        """Identity of the dataset, stored in checkpoints."""
        facts = {
            "kind": "images",
            "num_samples": self.plan.num_samples,
            "decoder": self.source.decoder.name,
        }
        if isinstance(self.source, ImageSource):
            return facts | {"digest": self.source.manifest.digest}
        assert isinstance(self.plan, MixPlan)
        members = zip(self.source.sources, self.plan.weights, strict=True)
        mix = [{"digest": s.manifest.digest, "weight": weight} for s, weight in members]
        return facts | {"mix": mix}


def image_budget(config: ImageDataConfig, run_folder: Path, rank: int) -> ErrorBudget:
    """Limit on a rank's unreadable images, which are listed in a file of the rank's own."""
    return ErrorBudget(config.max_bad_samples, run_folder / f"quarantine-rank{rank:05d}.jsonl")


def open_images(
    config: ImageDataConfig,
    *,
    seed: int,
    budget: ErrorBudget,
    device: torch.device,
    threads: int = 1,
) -> ImageTrainData:
    """The images a recipe names, whoever asks for them.

    Raises:
        UserError: missing or damaged dataset, a decoder that is not installed, too few samples.
    """
    view = config.view
    decoder = open_decoder(config.decoder, view.size, device, threads)
    manifests = [open_images_of(url) for url in config.urls]
    sources = [ImageSource(m, view, decoder, budget, seed=seed) for m in manifests]
    source = MixedSource(sources) if config.mix else sources[0]
    return ImageTrainData(_image_plan(config, manifests, seed), source, view.num_views, seed)


def _image_plan(
    config: ImageDataConfig, manifests: list[ShardManifest], seed: int
) -> SamplePlan | MixPlan:
    if config.mix:
        members = [
            MixMember(manifest.digest, manifest.shard_sizes, part.weight)
            for manifest, part in zip(manifests, config.mix, strict=True)
        ]
        return MixPlan(members, config.global_batch_size, seed, config.shuffle_window)
    (manifest,) = manifests
    return SamplePlan(
        manifest.digest,
        manifest.shard_sizes,
        config.global_batch_size,
        seed,
        shuffle_window=config.shuffle_window,
    )


def open_image_source(
    url: ImagePlace,
    view: ViewSpec,
    *,
    decoder: DecoderKind,
    seed: int,
    device: torch.device,
    threads: int = 1,
    max_bad_samples: int = 0,
    quarantine_path: Path | None = None,
) -> ImageSource:
    """A dataset with the decoder of this machine and its error budget.

    Raises:
        UserError: missing or damaged dataset, or a decoder that is not installed.
    """
    return ImageSource(
        open_images_of(url),
        view,
        open_decoder(decoder, view.size, device, threads),
        ErrorBudget(max_bad_samples, quarantine_path),
        seed=seed,
    )
