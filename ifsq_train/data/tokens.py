"""Training data from token shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from data_pipelines.errors import UserError
from data_pipelines.images.source import ImageSource
from data_pipelines.order.plan import SamplePlan
from data_pipelines.tokens.features import FEATURES, decode_features
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.views import ViewSpec, choose_views, sides
from ifsq_train.config import TokenDataConfig
from ifsq_train.data.base import DataFacts, Extras, positions
from ifsq_train.data.batch import Batch
from ifsq_train.data.images import open_image_source


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
        """Image size and token spec, for building the task."""
        return DataFacts(sides(self.dataset.spec.view["image_size"]), self.dataset.spec)

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """The rank's share of a step: tokens or latents, labels and positions."""
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
        """Identity of the dataset, stored in checkpoints."""
        spec = self.dataset.spec
        return {
            "kind": "tokens",
            "num_samples": self.plan.num_samples,
            "digest": self.dataset.digest,
            "tokenizer_fingerprint": spec.tokenizer_fingerprint,
            "codebook_sizes": list(spec.codebook_sizes),
            "grid": list(spec.grid),
        }


def open_tokens(
    config: TokenDataConfig, seed: int, extras: Extras, device: torch.device
) -> TokenTrainData:
    from ifsq_train.artifacts.trained import load_tokenizer_of

    expected = None
    if config.tokenizer:
        found = TokenDataset.open(config.url).spec.tokenizer_fingerprint
        expected = load_tokenizer_of(config.tokenizer, found).fingerprint
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
