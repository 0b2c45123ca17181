"""Small datasets for the tests that damage them."""

import hashlib
from pathlib import Path

import numpy as np

from data_pipelines.manifest import (
    IndexRow,
    ShardEntry,
    content_digest,
    encode_index,
    publish_manifest,
)
from data_pipelines.storage.open import LocalStorage
from data_pipelines.tokens.format import ShardMetadata, TokenSpec, shard_name
from data_pipelines.tokens.latents import DigitTable, LatentSums
from data_pipelines.tokens.writer import (
    TokenRows,
    TokenShardEntry,
    encode_shard,
    pin_job,
    publish_tokens,
)

SPEC = TokenSpec(
    tokenizer_fingerprint="f" * 64,
    quantizer={"kind": "fsq", "levels": [5, 3]},
    codebook_sizes=(15,),
    grid=(2, 3),
    digit_order="little",
    view={"kind": "raw", "image_size": 8},
    num_views=2,
    view_seed=0,
    source_digest="d" * 64,
    num_samples=6,
    samples_per_shard=3,
    latent_channels=2,
    batch_size=4,
    decoder="cpu",
    numerics="cpu/fp32",
    digits=DigitTable((2,), (1, 5), ((-1.0, -0.5, 0.0, 0.5, 1.0), (-1.0, 0.0, 1.0))),
)


def write_tokens(folder: Path) -> Path:
    """Two token shards of known rows."""
    storage, entries, parts = LocalStorage(folder), [], []
    pin_job(storage, SPEC)
    rng = np.random.default_rng(0)
    for index in range(SPEC.num_shards):
        first, count = SPEC.shard_range(index)
        ids = np.repeat(np.arange(first, first + count), SPEC.num_views)
        tokens = rng.integers(0, 15, (len(ids), 6, 1))
        rows = TokenRows(
            ids, ids, (ids % 3).astype(np.int32), np.tile(np.arange(2), count),
            np.zeros((len(ids), 4), np.uint16), np.zeros(len(ids), np.bool_), tokens,
        )  # fmt: skip
        assert SPEC.digits is not None
        latents = SPEC.digits.latents(tokens.reshape(-1, 2, 3, 1)).astype(np.float64)
        flat = latents.reshape(len(ids), 2, -1)
        sums = LatentSums.of_rows(flat.sum(2), np.square(flat).sum(2), 6)
        data = encode_shard(rows, ShardMetadata(SPEC, index, sums, ()))
        storage.write(shard_name(index), data)
        entries.append(_entry(index, first, count, data))
        parts.append(sums)
    publish_tokens(storage, SPEC, entries, LatentSums.combine(parts))
    return folder


def _entry(index: int, first: int, count: int, data: bytes) -> TokenShardEntry:
    from data_pipelines.tokens.shard import decode_shard

    content = decode_shard(data, "shard").metadata.content_sha256
    sha256 = hashlib.sha256(data).hexdigest()
    return TokenShardEntry(
        shard_name(index), first, count, count * SPEC.num_views, len(data), sha256, content
    )


def write_images(folder: Path) -> Path:
    """The manifest and indices of two shards; the tars hold no images."""
    storage, shards = LocalStorage(folder), []
    for number in range(2):
        rows = [IndexRow(f"{number}/{i}", 512 * i, 10, i % 2, 20, 30, i, "jpeg") for i in range(3)]
        index, data = encode_index(rows, {"note": number}), b"%4096d" % number
        tar, name = f"shard-{number:06d}.tar", f"index/shard-{number:06d}.arrow"
        storage.write(tar, data)
        storage.write(name, index)
        sums = hashlib.sha256(data).hexdigest(), hashlib.sha256(index).hexdigest()
        shards.append(ShardEntry(tar, 3, len(data), sums[0], name, sums[1], content_digest(rows)))
    publish_manifest(storage, shards, classes=["cat", "dog"])
    return folder
