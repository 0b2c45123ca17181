"""Training data of a recipe: an order and a way to load any worker's share of any batch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data_pipelines.errors import UserError
from data_pipelines.images.budget import ErrorBudget
from data_pipelines.images.decode import DecoderKind, open_decoder
from data_pipelines.images.source import ImageSource, MixedSource, PixelBatch
from data_pipelines.manifest import ShardManifest
from data_pipelines.mix import MixMember, MixPlan
from data_pipelines.plan import DataPlan, SamplePlan, rank_slots
from data_pipelines.tokens.features import FEATURES, decode_features
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.tokens.reader import TokenDataset, choose_views
from data_pipelines.views import ViewSpec
from ifsq_train.config import DataConfig, ImageDataConfig, TaskConfig, TokenDataConfig
from ifsq_train.tasks.base import Batch


@dataclass(frozen=True)
class DataFacts:
    """What the networks trained on a dataset must know of it.

    Attributes:
        image_size: side of the views in pixels.
        tokens: the spec of a token dataset; None for images.
    """

    image_size: int
    tokens: TokenSpec | None = None


@dataclass(frozen=True)
class Extras:
    """What batches of a token dataset have besides tokens and labels.

    Attributes:
        features: the stored teacher features.
        pixels: the images of the same views.
        latents: stored latents, where the dataset has them, take the place of tokens.
    """

    features: bool = False
    pixels: bool = False
    latents: bool = False


class TrainData(Protocol):
    """What the loop needs from a dataset."""

    @property
    def plan(self) -> DataPlan:
        """The order of the samples."""
        ...

    @property
    def facts(self) -> DataFacts:
        """What networks must know of it."""
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

    @property
    def facts(self) -> DataFacts:
        """See TrainData.facts."""
        return DataFacts(self.source.spec.image_size)

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """See TrainData.load."""
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
    """Precomputed tokens; one of the stored views per sample and epoch.

    Attributes:
        pixels: gives the pixels of the same views, for a teacher.
        features: read the stored teacher features along.
        latents: the batch's inputs are the stored latents, unscaled, not tokens.
    """

    plan: SamplePlan
    dataset: TokenDataset
    seed: int
    pixels: ImageSource | None = None
    features: bool = False
    latents: bool = False

    @property
    def facts(self) -> DataFacts:
        """See TrainData.facts."""
        return DataFacts(int(self.dataset.spec.view["image_size"]), self.dataset.spec)

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """See TrainData.load."""
        ids = self.plan.rank_ids(step, rank, world_size)
        dataset, epoch = self.dataset, self.plan.epoch(step)
        views = choose_views(self.seed, epoch, ids, dataset.num_views)
        columns = dataset.feature_columns if self.features else ()
        stored = dataset.latent_columns if self.latents else ()
        batch = dataset.read(ids, views, (*columns, *stored))
        features = torch.from_numpy(decode_features(batch.extra)) if self.features else None
        inputs = batch.tokens
        if self.latents:
            noise = dataset.posterior_noise(self.seed, epoch, ids)
            inputs = dataset.latents_of(batch, noise, normalized=False)
        # Precompute takes all its views in epoch 0, so their pixels are asked for there too.
        images = self.pixels.batch(ids, 0, views).images if self.pixels else None
        return Batch(
            torch.as_tensor(inputs),
            torch.as_tensor(batch.labels, dtype=torch.int64),
            positions(self.plan, rank, world_size),
            features=features,
            images=images,
        )

    def describe(self) -> dict[str, Any]:
        """See TrainData.describe."""
        spec = self.dataset.spec
        return {
            "kind": "tokens",
            "num_samples": self.plan.num_samples,
            "digest": self.dataset.digest,
            "tokenizer_fingerprint": spec.tokenizer_fingerprint,
            "codebook_sizes": list(spec.codebook_sizes),
            "grid": list(spec.grid),
        }


def open_train_data(
    config: DataConfig,
    *,
    seed: int,
    run_folder: Path,
    rank: int,
    device: torch.device,
    extras: Extras = Extras(),
) -> TrainData:
    """Open what a recipe names.

    Args:
        config: the data part of a recipe.
        seed: the run's.
        run_folder: where bad samples are recorded.
        rank: this worker's.
        device: where images are decoded to.
        extras: what batches of a token dataset shall have besides tokens and labels.

    Raises:
        UserError: missing or damaged dataset, tokens of another tokenizer, too few samples, or a
            column the dataset has not.
    """
    if isinstance(config, TokenDataConfig):
        return _open_tokens(config, seed, extras, device)
    assert isinstance(config, ImageDataConfig)
    budget = image_budget(config, run_folder, rank)
    return open_images(config, seed=seed, budget=budget, device=device)


def image_budget(config: ImageDataConfig, run_folder: Path, rank: int) -> ErrorBudget:
    """How many bad images a rank puts up with; they are named in a file of its own."""
    return ErrorBudget(config.max_bad_samples, run_folder / f"quarantine-rank{rank:05d}.jsonl")


def extras_for(task: TaskConfig) -> Extras:
    """What a task reads besides tokens and labels."""
    if task.kind == "tokenizer":
        return Extras()
    latents = task.kind == "diffusion"
    if task.repa is None:
        return Extras(latents=latents)
    stored = task.repa.teacher is None
    return Extras(features=stored, pixels=not stored, latents=latents)


def _open_tokens(
    config: TokenDataConfig, seed: int, extras: Extras, device: torch.device
) -> TokenTrainData:
    from ifsq_train.artifacts import tokenizer_fingerprint

    expected = tokenizer_fingerprint(config.tokenizer) if config.tokenizer else None
    dataset = TokenDataset.open(config.url, expected_fingerprint=expected)
    if extras.features and FEATURES not in dataset.spec.extra_columns:
        raise UserError(
            f"{config.url} stores no {FEATURES}, which the task reads; precompute"
            " with a teacher, or name task.repa.teacher"
        )
    plan = SamplePlan(
        dataset.digest,
        dataset.shard_sizes,
        config.global_batch_size,
        seed,
        shuffle_window=config.shuffle_window,
    )
    pixels = _open_pixels(config, dataset, device) if extras.pixels else None
    latents = extras.latents and bool(dataset.latent_columns)
    return TokenTrainData(plan, dataset, seed, pixels, extras.features, latents)


def _open_pixels(
    config: TokenDataConfig, dataset: TokenDataset, device: torch.device
) -> ImageSource:
    """The images a token dataset was made of, in the views it was made of."""
    assert config.images is not None
    spec = dataset.spec
    source = open_image_source(
        config.images,
        ViewSpec.from_dict(spec.view),
        decoder="auto",
        seed=spec.view_seed,
        device=device,
        max_bad_samples=int(dataset.facts["num_bad_samples"]),
    )
    if source.manifest.digest != spec.source_digest:
        raise UserError(
            f"data.images: {config.images} has digest {source.manifest.digest[:12]}, the tokens of"
            f" {config.url} were made of {spec.source_digest[:12]}; name that dataset"
        )
    return source


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
