"""Token shards beside one .npy per image: bytes, writing, reading in order and at random.

    python -m tests.benchmarks.tokens.token_format

Images of 256 tokens of 17^4 codes. The .npy layout is the released one: a file of codes, int64
[1, views, 256], and a file of the label per image. Files are in the page cache when they are read.
Writing is compared three times: as each layout does it (shards are on the disk when their writer
returns and every shard is hashed and opened again; .npy files are left to the page cache), with
every file of both on the disk, and with neither. Medians of the rounds, tokens per second of wall
time on one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.format import ShardMetadata, TokenSpec, shard_name
from data_pipelines.tokens.latents import LatentSums
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.shard import decode_shard
from data_pipelines.tokens.writer import (
    TokenRows,
    TokenShardEntry,
    encode_shard,
    pin_job,
    publish_shard,
    publish_tokens,
)

TOKENS, CODES, BATCH = 256, 17**4, 256


def main() -> None:
    options = parse()
    folder = Path(tempfile.mkdtemp(prefix="format-"))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (options.images, TOKENS))
    times: dict[str, list[float]] = {}

    for number in range(options.rounds):
        run_round(folder, number, codes, options.npy_images, times)
    report(folder / "shards0", folder / "npy0", options, times)
    shutil.rmtree(folder)


def run_round(
    folder: Path, number: int, codes: np.ndarray, few: int, times: dict[str, list[float]]
) -> None:
    """Everything once, on fresh files."""

    def measure(name: str, images: int, run: Callable[[], None]) -> None:
        began = time.perf_counter()
        run()
        times.setdefault(name, []).append(images * TOKENS / (time.perf_counter() - began))

    shards, files = folder / f"shards{number}", folder / f"npy{number}"
    rng = np.random.default_rng(number)
    measure("write shards", len(codes), lambda: write_shards(shards, codes))
    measure("write npy", few, lambda: write_npy(files, codes[:few]))
    synced = codes[: few // 16]
    measure("synced npy", len(synced), lambda: write_npy(folder / f"synced{number}", synced, True))
    with mock.patch("os.fsync"):
        measure("unsynced shards", len(codes), lambda: write_shards(folder / f"un{number}", codes))
    dataset = TokenDataset.open(shards)
    ordered, shuffled = np.arange(len(codes)), rng.permutation(len(codes))
    read_shards(dataset, ordered)
    measure("sequential shards", len(codes), lambda: read_shards(dataset, ordered))
    measure("sequential npy", few, lambda: read_npy(files, np.arange(few)))
    measure("random shards", len(codes), lambda: read_shards(dataset, shuffled))
    measure("random npy", few, lambda: read_npy(files, rng.permutation(few)))


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--images", type=int, default=65_536)
    options.add_argument("--npy-images", type=int, default=8192)
    options.add_argument("--rounds", type=int, default=5)
    return options.parse_args()


def report(
    shards: Path, files: Path, options: argparse.Namespace, times: dict[str, list[float]]
) -> None:
    size = sum(p.stat().st_size for p in shards.rglob("*") if p.is_file()) / options.images
    plain = sum(p.stat().st_size for p in files.rglob("*.npy")) / options.npy_images
    blocks = sum(p.stat().st_blocks * 512 for p in files.rglob("*.npy")) / options.npy_images
    print(f"bytes per image: shards {size:.1f} (everything), npy {plain:.0f}, on disk {blocks:.0f}")
    pairs = {
        "write, as each does": ("write shards", "write npy"),
        "write, all on disk": ("write shards", "synced npy"),
        "write, page cache": ("unsynced shards", "write npy"),
        "sequential": ("sequential shards", "sequential npy"),
        "random": ("random shards", "random npy"),
    }
    for what, names in pairs.items():
        ours, theirs = (statistics.median(times[name]) for name in names)
        rates = f"shards {ours / 1e6:.1f}, npy {theirs / 1e6:.2f} Mtokens/s"
        print(f"{what}: {rates}, {ours / theirs:.0f} x")


def write_shards(folder: Path, codes: np.ndarray, per_shard: int = 8192) -> None:
    spec = TokenSpec(
        tokenizer_fingerprint="0" * 64,
        quantizer={"kind": "fsq", "levels": [17] * 4},
        codebook_sizes=(CODES,),
        grid=(16, 16),
        digit_order="little",
        view={"kind": "adm_center", "image_size": 256},
        num_views=1,
        view_seed=0,
        source_digest="0" * 64,
        num_samples=len(codes),
        samples_per_shard=per_shard,
        latent_channels=4,
        batch_size=32,
        decoder="cpu",
        numerics="cpu/fp32",
    )
    storage, entries = open_storage(folder), []
    pin_job(storage, spec)
    for index in range(spec.num_shards):
        first, count = spec.shard_range(index)
        ids = np.arange(first, first + count)
        rows = TokenRows(
            ids, ids, (ids % 1000).astype(np.int32), np.zeros(count, np.int64),
            np.zeros((count, 4), np.uint16), np.zeros(count, np.bool_),
            codes[first : first + count],
        )  # fmt: skip
        data = encode_shard(rows, ShardMetadata(spec, index, LatentSums(0, (), ()), ()))
        publish_shard(storage, index, data)
        content = decode_shard(data, "shard").metadata.content_sha256
        sha256 = hashlib.sha256(data).hexdigest()
        entry = TokenShardEntry(shard_name(index), first, count, count, len(data), sha256, content)
        entries.append(entry)
    publish_tokens(storage, spec, entries, None)


def write_npy(folder: Path, codes: np.ndarray, sync: bool = False) -> None:
    for name in ("codes", "labels"):
        (folder / name).mkdir(parents=True)
    for i, row in enumerate(codes):
        for name, value in (("codes", row[None, None]), ("labels", np.array([i % 1000]))):
            with (folder / name / f"{i}.npy").open("wb") as file:
                np.save(file, value)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())


def read_shards(dataset: TokenDataset, ids: np.ndarray) -> None:
    for first in range(0, len(ids), BATCH):
        batch = dataset.read(ids[first : first + BATCH])
        assert batch.tokens.shape[1] == TOKENS


def read_npy(folder: Path, ids: np.ndarray) -> None:
    for first in range(0, len(ids), BATCH):
        part = ids[first : first + BATCH].tolist()
        tokens = np.stack([np.load(folder / "codes" / f"{i}.npy")[0, 0] for i in part])
        labels = np.concatenate([np.load(folder / "labels" / f"{i}.npy") for i in part])
        assert tokens.shape == (len(labels), TOKENS)


if __name__ == "__main__":
    main()
