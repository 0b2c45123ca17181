"""Training data of a recipe: an order and a way to load any worker's share of any batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data_pipelines.images.budget import ErrorBudget
from data_pipelines.images.decode import DecoderKind, open_decoder
from data_pipelines.images.source import ImageSource
from data_pipelines.manifest import ShardManifest
from data_pipelines.plan import SamplePlan
from data_pipelines.tokens.reader import TokenDataset, choose_views
from data_pipelines.views import ViewSpec
from ifsq_train.config import DataConfig, ImageDataConfig, TokenDataConfig
from ifsq_train.tasks.base import Batch


class TrainData(Protocol):
    """What the loop needs from a dataset."""

    plan: SamplePlan

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


def positions(plan: SamplePlan, rank: int, world_size: int) -> np.ndarray:
    """int64 [B], places of a rank's share in the global batch."""
    first, last = (r * plan.global_batch_size // world_size for r in (rank, rank + 1))
    return np.arange(first, last, dtype=np.int64)


@dataclass
class ImageTrainData:
    """Decoded images in the view of the sample's epoch."""

    plan: SamplePlan
    source: ImageSource
    num_views: int
    seed: int
    codebook_sizes: None = None
    grid: None = None

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """See TrainData.load."""
        ids = self.plan.rank_ids(step, rank, world_size)
        epoch = self.plan.epoch(step)
        views = choose_views(self.seed, epoch, ids, self.num_views)
        images = self.source.batch(ids, epoch, views)
        return Batch(images.images, images.labels, positions(self.plan, rank, world_size))

    def describe(self) -> dict[str, Any]:
        """See TrainData.describe."""
        return {
            "kind": "images",
            "num_samples": self.plan.num_samples,
            "digest": self.source.manifest.digest,
            "decoder": self.source.decoder.name,
        }


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
    return _open_images(config, seed, run_folder / f"quarantine-rank{rank:05d}.jsonl", device)


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


def _open_images(
    config: ImageDataConfig, seed: int, quarantine: Path, device: torch.device
) -> ImageTrainData:
    source = open_image_source(
        config.url,
        config.view,
        decoder=config.decoder,
        seed=seed,
        device=device,
        threads=config.decode_threads,
        max_bad_samples=config.max_bad_samples,
        quarantine_path=quarantine,
    )
    manifest = source.manifest
    plan = SamplePlan(
        manifest.digest,
        manifest.shard_sizes,
        config.global_batch_size,
        seed,
        shuffle_window=config.shuffle_window,
    )
    return ImageTrainData(plan, source, config.view.num_views, seed)


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
