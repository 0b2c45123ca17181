"""Training data of a recipe: an order and a way to load any worker's share of any batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data_pipelines.images.budget import ErrorBudget
from data_pipelines.images.decode import DecoderKind, open_decoder
from data_pipelines.images.source import ImageSource, MixedSource, PixelBatch
from data_pipelines.manifest import ShardManifest
from data_pipelines.mix import MixMember, MixPlan
from data_pipelines.plan import DataPlan, SamplePlan, rank_slots
from data_pipelines.tokens.reader import TokenDataset, choose_views
from data_pipelines.views import ViewSpec
from ifsq_train.config import DataConfig, ImageDataConfig, TokenDataConfig
from ifsq_train.tasks.base import Batch


class TrainData(Protocol):
    """What the loop needs from a dataset."""

    @property
    def plan(self) -> DataPlan:
        """The order of the samples."""
        ...

    @property
    def codebook_sizes(self) -> tuple[int, ...] | None:
        """Tokens of each group run from 0 to its size minus one; None for images."""
        ...

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width of the token grid; None for images."""
        ...

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """The rank's share of global batch `step`, on the host; a pure function."""
        ...

    def describe(self) -> dict[str, Any]:
        """What was opened, for the run's record."""
        ...


def positions(plan: DataPlan, rank: int, world_size: int) -> np.ndarray:
    """int64 [B], places of a rank's share in the global batch."""
    return np.arange(*rank_slots(plan.global_batch_size, rank, world_size), dtype=np.int64)


@dataclass
class ImageTrainData:
    """Decoded images in the view of the sample's epoch."""

    plan: DataPlan
    source: ImageSource | MixedSource
    num_views: int
    seed: int
    codebook_sizes: None = None
    grid: None = None

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """See TrainData.load."""
        return self.to_batch(self.load_pixels(step, rank, world_size), rank, world_size)

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
        """See TrainData.describe."""
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


@dataclass
class TokenTrainData:
    """Precomputed tokens; one of the stored views per sample and epoch."""

    plan: SamplePlan
    dataset: TokenDataset
    seed: int

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """See TrainData.codebook_sizes."""
        return tuple(self.dataset.spec.codebook_sizes)

    @property
    def grid(self) -> tuple[int, int]:
        """See TrainData.grid."""
        height, width = self.dataset.spec.grid
        return height, width

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """See TrainData.load."""
        ids = self.plan.rank_ids(step, rank, world_size)
        views = choose_views(self.seed, self.plan.epoch(step), ids, self.dataset.num_views)
        batch = self.dataset.read(ids, views)
        return Batch(
            torch.as_tensor(batch.tokens),
            torch.as_tensor(batch.labels, dtype=torch.int64),
            positions(self.plan, rank, world_size),
        )

    def describe(self) -> dict[str, Any]:
        """See TrainData.describe."""
        return {
            "kind": "tokens",
            "num_samples": self.plan.num_samples,
            "digest": self.dataset.digest,
            "tokenizer_fingerprint": self.dataset.spec.tokenizer_fingerprint,
            "codebook_sizes": list(self.codebook_sizes),
            "grid": list(self.grid),
        }


def open_train_data(
    config: DataConfig, *, seed: int, run_folder: Path, rank: int, device: torch.device
) -> TrainData:
    """Open what a recipe names.

    Raises:
        UserError: missing or damaged dataset, tokens of another tokenizer, too few samples.
    """
    if isinstance(config, TokenDataConfig):
        return _open_tokens(config, seed)
    assert isinstance(config, ImageDataConfig)
    budget = image_budget(config, run_folder, rank)
    return open_images(config, seed=seed, budget=budget, device=device)


def image_budget(config: ImageDataConfig, run_folder: Path, rank: int) -> ErrorBudget:
    """How many bad images a rank puts up with; they are named in a file of its own."""
    return ErrorBudget(config.max_bad_samples, run_folder / f"quarantine-rank{rank:05d}.jsonl")


def _open_tokens(config: TokenDataConfig, seed: int) -> TokenTrainData:
    from ifsq_train.artifacts import tokenizer_fingerprint

    expected = tokenizer_fingerprint(config.tokenizer) if config.tokenizer else None
    dataset = TokenDataset.open(config.url, expected_fingerprint=expected)
    plan = SamplePlan(
        dataset.digest,
        dataset.shard_sizes,
        config.global_batch_size,
        seed,
        shuffle_window=config.shuffle_window,
    )
    return TokenTrainData(plan, dataset, seed)


def open_images(
    config: ImageDataConfig, *, seed: int, budget: ErrorBudget, device: torch.device
) -> ImageTrainData:
    """The images a recipe names, whoever asks for them.

    Raises:
        UserError: missing or damaged dataset, a decoder that is not installed, too few samples.
    """
    view = config.view
    decoder = open_decoder(config.decoder, view.image_size, device, config.decode_threads)
    manifests = [ShardManifest.open(url) for url in config.urls]
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
    url: str,
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
        ShardManifest.open(url),
        view,
        open_decoder(decoder, view.image_size, device, threads),
        ErrorBudget(max_bad_samples, quarantine_path),
        seed=seed,
    )
