"""A dataset of images to a dataset of tokens, exactly once.

The work is cut into items: fixed ranges of source sample ids. What an item becomes is a pure
function of the source's bytes, the tokenizer and the view, so any process may make it, at any
time, and twice does no harm: a shard is created under its final name only if it is not there yet.
The manifest is written last, after every shard was read back. So whatever is killed whenever, a
further run ends with the same bytes as one that was never disturbed.

`run_precompute_local` does it in this process; `launchers.ray_precompute` on many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.images.budget import BadSample, ErrorBudget
from data_pipelines.images.decode import open_decoder
from data_pipelines.images.source import BatchRequest, ImageBatch, ImageSource
from data_pipelines.manifest import ShardManifest
from data_pipelines.storage import Storage, open_storage
from data_pipelines.tokens.format import LatentSums, ShardMetadata, TokenSpec
from data_pipelines.tokens.writer import TokenRows, encode_shard, publish_shard
from data_pipelines.views import view_geometry
from ifsq_train.config import PrecomputeConfig
from ifsq_train.precompute_run import (
    ItemResult,
    OnItem,
    PrecomputeReport,
    PrecomputeRun,
    WorkItem,
    published_report,
)
from ifsq_train.token_encoder import TokenEncoder, open_encoder

_EPOCH = 0


def run_precompute_local(
    config: PrecomputeConfig,
    on_item: OnItem | None = None,
    *,
    device: str | None = None,
) -> PrecomputeReport:
    """Do the whole job in this process, or what is left of it.

    Args:
        on_item: called after every item.
        device: "cpu" or "cuda"; None takes the GPU where there is one.

    Raises:
        UserError: something in the recipe or its data, or the output folder holds another job.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = ItemEncoder(config, device)
    try:
        storage = open_storage(config.output)
        report = published_report(storage, encoder.spec, config.decoder)
        if report is not None:
            return report
        run = PrecomputeRun(storage, encoder.spec, config.max_bad_samples, on_item)
        for items in run.rounds():
            for item in items:
                run.done(encoder.make(item, storage))
        return run.finish()
    finally:
        encoder.close()


def with_absolute_paths(config: PrecomputeConfig) -> PrecomputeConfig:
    """The same job for processes that run in another folder."""
    named = {name: getattr(config, name) for name in ("source", "tokenizer", "output")}
    return config.model_copy(
        update={
            name: value if "://" in value else str(Path(value).expanduser().absolute())
            for name, value in named.items()
        }
    )


def preflight(config: PrecomputeConfig) -> TokenSpec:
    """Find the user's mistakes before a cluster is asked for anything.

    Returns:
        The job, with the recipe's word for the decoder and as if on a CPU.

    Raises:
        UserError: missing dataset or tokenizer, or parts that do not fit together.
    """
    encoder = open_encoder(config.tokenizer, "cpu", config.batch_size)
    manifest = ShardManifest.open(config.source)
    return describe_job(config, manifest, encoder, config.decoder, encoder.numerics)


def describe_job(
    config: PrecomputeConfig,
    manifest: ShardManifest,
    encoder: TokenEncoder,
    decoder: str,
    numerics: str,
) -> TokenSpec:
    """Everything that decides the bytes of a job's shards.

    Raises:
        UserError: the view does not fit the tokenizer.
    """
    return TokenSpec(
        tokenizer_fingerprint=encoder.fingerprint,
        quantizer=encoder.quantizer,
        codebook_sizes=encoder.codebook_sizes,
        grid=encoder.grid_of(config.view.image_size),
        digit_order=encoder.digit_order,
        view=config.view.to_dict(),
        num_views=config.view.num_views,
        view_seed=config.view_seed,
        source_digest=manifest.digest,
        num_samples=manifest.num_samples,
        samples_per_shard=config.samples_per_shard,
        batch_size=config.batch_size,
        decoder=decoder,
        numerics=numerics,
    )


class ItemEncoder:
    """Source and tokenizer of a job, opened once; makes items one after the other.

    Attributes:
        spec: what the items are made to, as of this machine.
    """

    def __init__(
        self, config: PrecomputeConfig, device: str = "cpu", decode_threads: int | None = None
    ) -> None:
        """Open everything.

        Raises:
            UserError: missing dataset or tokenizer, or parts that do not fit together.
        """
        manifest = ShardManifest.open(config.source)
        self._encoder = open_encoder(config.tokenizer, device, config.batch_size)
        decoder = open_decoder(config.decoder, config.view.image_size, device, decode_threads)
        self._source = ImageSource(
            manifest,
            config.view,
            decoder,
            ErrorBudget(config.max_bad_samples),
            seed=config.view_seed,
            verify=True,
        )
        self.spec = describe_job(
            config, manifest, self._encoder, decoder.name, self._encoder.numerics
        )

    def make(self, item: WorkItem, storage: Storage) -> ItemResult:
        """Encode and publish an item.

        Raises:
            DataError: see `encode` and `publish_shard`.
        """
        encoded = self.encode(item)
        publish_shard(storage, item.index, encoded.data)
        return ItemResult(item, item.num_samples * self.spec.num_views, encoded.bad_samples)

    def encode(self, item: WorkItem) -> EncodedItem:
        """The item's shard file; a function of job and item alone.

        Batches never reach over the item's ends, and bad samples are counted per item.

        Raises:
            DataError: unreadable source, or more bad samples in this item than allowed.
        """
        spec, size = self.spec, self.spec.batch_size
        self._source.budget = ErrorBudget(self._source.budget.max_bad_samples)
        first, count = item.first_sample, item.num_samples
        ids = np.repeat(np.arange(first, first + count, dtype=np.int64), spec.num_views)
        views = np.tile(np.arange(spec.num_views, dtype=np.int64), count)
        requests = [
            BatchRequest(ids[at : at + size], _EPOCH, views[at : at + size])
            for at in range(0, len(ids), size)
        ]
        rows = _ItemRows(spec, self._source)
        with self._source.prefetch(requests) as batches:
            for batch in batches:
                rows.add(batch, *self._encoder.encode(batch.images))
        bad = tuple(sorted(map(_portable, self._source.budget.bad_samples), key=_bad_order))
        metadata = ShardMetadata(spec, item.index, rows.latent_sums, bad)
        return EncodedItem(encode_shard(rows.collected(), metadata), bad)

    def close(self) -> None:
        """Stop the decoder."""
        self._source.close()


@dataclass(frozen=True)
class EncodedItem:
    """A shard file, and the samples that had to be replaced in it."""

    data: bytes
    bad_samples: tuple[BadSample, ...]


class _ItemRows:
    """Rows and latent sums of an item, batch by batch."""

    def __init__(self, spec: TokenSpec, source: ImageSource) -> None:
        self._spec, self._source = spec, source
        self._parts: list[TokenRows] = []
        self.latent_sums = LatentSums(0, (), ())

    def add(
        self, batch: ImageBatch, indices: NDArray[np.int64], latents: NDArray[np.float32]
    ) -> None:
        used = batch.sample_ids.copy()
        for replacement in batch.replacements:
            used[replacement.position] = replacement.used_id
        heights, widths = _image_sizes(self._source.manifest, used)
        geometry = view_geometry(
            self._source.spec,
            seed=self._source.seed,
            epoch=_EPOCH,
            sample_ids=used,
            views=batch.views,
            heights=heights,
            widths=widths,
        )
        tokens = indices.reshape(len(indices), self._spec.tokens_per_row, -1)
        self._parts.append(
            TokenRows(
                batch.sample_ids, used, batch.keys, batch.labels.cpu().numpy().astype(np.int32),
                batch.views.astype(np.int16), geometry.boxes.astype(np.float32), geometry.flips,
                tokens,
            )
        )  # fmt: skip
        self._add_latents(latents)

    def _add_latents(self, latents: NDArray[np.float32]) -> None:
        """numpy on one thread adds in an order that depends on the shape alone."""
        values = latents.astype(np.float64)
        sums = values.sum(axis=(0, 2, 3))
        squares = np.square(values).sum(axis=(0, 2, 3))
        so_far = self.latent_sums
        if so_far.count:
            sums, squares = np.array(so_far.sums) + sums, np.array(so_far.squares) + squares
        count = so_far.count + values.shape[0] * values.shape[2] * values.shape[3]
        self.latent_sums = LatentSums(count, tuple(sums.tolist()), tuple(squares.tolist()))

    def collected(self) -> TokenRows:
        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(part, name) for part in self._parts])

        return TokenRows(
            joined("sample_ids"), joined("source_ids"),
            [key for part in self._parts for key in part.keys], joined("labels"),
            joined("views"), joined("boxes"), joined("flips"), joined("tokens"),
        )  # fmt: skip


def _image_sizes(
    manifest: ShardManifest, ids: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    shards, rows = manifest.locate(ids)
    heights, widths = np.empty(len(ids), np.int32), np.empty(len(ids), np.int32)
    for shard in np.unique(shards).tolist():
        at = shards == shard
        heights[at] = manifest.rows(shard).height[rows[at]]
        widths[at] = manifest.rows(shard).width[rows[at]]
    return heights, widths


def _portable(bad: BadSample) -> BadSample:
    """Without memory addresses, which some libraries put into their messages."""
    return replace(bad, reason=re.sub(r"0x[0-9a-fA-F]+", "0x", bad.reason))


def _bad_order(bad: BadSample) -> tuple[str, str]:
    return bad.shard, bad.key
