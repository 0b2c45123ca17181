"""A small token dataset with known rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.format import ShardMetadata, TokenSpec, shard_name
from data_pipelines.tokens.latents import LatentSums
from data_pipelines.tokens.shard import decode_shard
from data_pipelines.tokens.writer import (
    TokenRows,
    TokenShardEntry,
    encode_shard,
    pin_job,
    publish_shard,
    publish_tokens,
)

SPEC = TokenSpec(
    tokenizer_fingerprint="f" * 64,
    quantizer={"kind": "fsq", "levels": [17, 17, 17, 17]},
    codebook_sizes=(17**4,),
    grid=(4, 4),
    digit_order="little",
    view={"kind": "center_flip", "image_size": 64},
    num_views=2,
    view_seed=0,
    source_digest="d" * 64,
    num_samples=10,
    samples_per_shard=4,
    latent_channels=4,
    batch_size=8,
    decoder="cpu",
    numerics="cpu/fp32",
)
SUMS = LatentSums(32, (1.0, 2.0, 3.0, 4.0), (4.0, 8.0, 9.0, 5.0))


def make_rows(spec: TokenSpec, index: int, seed: int = 0) -> TokenRows:
    """Random tokens for every view of the samples of a shard; label = sample id % 3."""
    first, count = spec.shard_range(index)
    ids = np.repeat(np.arange(first, first + count), spec.num_views)
    rng = np.random.default_rng([seed, index])
    shape = (len(ids), spec.tokens_per_row)
    columns = [rng.integers(0, size, shape) for size in spec.codebook_sizes]
    return TokenRows(
        sample_ids=ids,
        source_ids=ids.copy(),
        labels=(ids % 3).astype(np.int32),
        views=np.tile(np.arange(spec.num_views), count),
        windows=rng.integers(0, 2**16, (len(ids), 4)).astype(np.uint16),
        flips=np.tile(np.arange(spec.num_views) == 1, count),
        tokens=np.stack(columns, axis=-1),
        extra={
            name: rng.normal(size=(len(ids), *column.shape)).astype(column.dtype)
            for name, column in spec.extra_columns.items()
        },
    )


def make_shard(
    spec: TokenSpec, index: int, seed: int = 0, labels: Sequence[int] | None = None
) -> bytes:
    rows = make_rows(spec, index, seed)
    if labels is not None:
        rows = replace(rows, labels=np.array(labels, np.int32)[rows.sample_ids])
    return encode_shard(rows, ShardMetadata(spec, index, SUMS, ()))


def write_dataset(
    folder: Path, spec: TokenSpec = SPEC, labels: Sequence[int] | None = None
) -> Path:
    """`labels`: of each sample, instead of its number modulo 3."""
    storage = open_storage(folder)
    pin_job(storage, spec)
    entries = []
    for index in range(spec.num_shards):
        data = make_shard(spec, index, labels=labels)
        publish_shard(storage, index, data)
        entries.append(entry_of(spec, index, data))
    publish_tokens(storage, spec, entries, LatentSums.combine([SUMS] * spec.num_shards))
    return folder


def entry_of(spec: TokenSpec, index: int, data: bytes) -> TokenShardEntry:
    first, count = spec.shard_range(index)
    content = decode_shard(data, "shard").metadata.content_sha256
    sha256 = hashlib.sha256(data).hexdigest()
    rows = count * spec.num_views
    return TokenShardEntry(shard_name(index), first, count, rows, len(data), sha256, content)
