"""The released layout of extracted codes, in and out: one .npy of codes and one of the label per
image.

    CODES/0.npy ...    int64 [1, views, T], for factorized tokens [1, views, T, G]
    LABELS/0.npy ...   int64 [1]

The layout says nothing of the tokenizer, the views or the images, so whoever imports it has to.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.storage.open import open_storage
from data_pipelines.storage.outputs import Writer, claim
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

_BATCH = 1024


@dataclass(frozen=True)
class ReleasedCodes:
    """Folders in the released layout.

    Attributes:
        count: images; their files are numbered from 0.
        num_views: codes per image.
    """

    codes: Path
    labels: Path
    count: int
    num_views: int

    @staticmethod
    def open(
        codes: Path, labels: Path, codebook_sizes: tuple[int, ...], num_tokens: int
    ) -> "ReleasedCodes":
        """Look at the names of all files and at the first.

        Raises:
            UserError: files are missing, or the codes have another shape than the tokenizer's.
        """
        count = len(list(codes.glob("*.npy")))
        missing = [i for i in range(count) if not (codes / f"{i}.npy").is_file()]
        if not count or missing:
            raise UserError(
                f"{codes} has {count} .npy files, but not {missing[0] if missing else 0}.npy; files"
                " must be numbered from 0 without a gap"
            )
        if not (labels / f"{count - 1}.npy").is_file():
            raise UserError(f"{labels} has no {count - 1}.npy; give the labels of the same images")
        shape = _load_array(codes / "0.npy").shape
        groups = (len(codebook_sizes),) if len(codebook_sizes) > 1 else ()
        if len(shape) != 3 + len(groups) or shape[2:] != (num_tokens, *groups):
            raise UserError(
                f"{codes}/0.npy has shape {shape}, this tokenizer's codes have"
                f" (1, views, {', '.join(map(str, (num_tokens, *groups)))}); name the tokenizer"
                " they were made with"
            )
        return ReleasedCodes(codes, labels, count, int(shape[1]))

    def digest(self) -> str:
        """sha256 (hex) over all codes and labels; stands for the source they do not name."""
        digest = hashlib.sha256(f"released codes {self.count} {self.num_views}".encode())
        for i in range(self.count):
            codes, label = self.read(i)
            digest.update(codes.tobytes())
            digest.update(label.to_bytes(8, "little", signed=True))
        return digest.hexdigest()

    def read(self, index: int) -> tuple[NDArray[np.int64], int]:
        """Codes int64 [views, T] or [views, T, G], and the label."""
        path = self.codes / f"{index}.npy"
        codes = _load_array(path)[0].astype(np.int64)
        if codes.shape[0] != self.num_views:
            raise UserError(
                f"{path} has {codes.shape[0]} views, the first file has {self.num_views}; all must"
                " have the same"
            )
        return codes, int(_load_array(self.labels / f"{index}.npy").reshape(-1)[0])


def _load_array(path: Path) -> NDArray[np.integer]:
    """An .npy file of integers, nothing pickled; UserError where it is none."""
    try:
        found = np.load(path)
        if isinstance(found, np.ndarray) and found.size and found.dtype.kind in "iu":
            return found
        what = "no array of integers"
    except (ValueError, OSError, EOFError, MemoryError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise UserError(f"{path} is not a readable .npy file of integers ({what}); extract it again")


def import_released(released: ReleasedCodes, output: str | Path, like: TokenSpec) -> str:
    """Write a token dataset of released codes; run again to finish what was interrupted.

    Args:
        output: folder of the dataset.
        like: what the tokenizer makes; number of samples and views, and the source, are filled in.

    Returns:
        The dataset's digest.

    Raises:
        UserError: a file is missing or differs from the others, or the folder is another dataset.
    """
    spec = replace(
        like,
        num_samples=released.count,
        num_views=released.num_views,
        source_digest=released.digest(),
        decoder="imported",
        numerics="imported",
    )
    storage, entries, sums = open_storage(output), [], []
    pin_job(storage, spec)
    for index in range(spec.num_shards):
        data = _shard(released, spec, index)
        publish_shard(storage, index, data)
        metadata = decode_shard(data, shard_name(index)).metadata
        first, count = spec.shard_range(index)
        sha256 = hashlib.sha256(data).hexdigest()
        rows, content = count * spec.num_views, metadata.content_sha256
        name = shard_name(index)
        entries.append(TokenShardEntry(name, first, count, rows, len(data), sha256, content))
        sums.append(metadata.latent_sums)
    return publish_tokens(storage, spec, entries, LatentSums.combine(sums))


CODE_EXPORTER = Writer("ifsq data export-codes", ("[0-9]*.npy",))


def export_released(
    dataset: TokenDataset, codes: Path, labels: Path, *, overwrite: bool = False
) -> int:
    """Write a token dataset in the released layout; returns the number of images.

    Args:
        dataset: the tokens.
        codes: folder of the codes.
        labels: folder of the labels.
        overwrite: remove what was exported to the folders before.

    Raises:
        UserError: the dataset has no tokens, or a folder holds something else.
    """
    if not dataset.spec.has_tokens:
        raise UserError(f"{dataset.storage.url} has latents and no tokens to export")
    for folder in (codes, labels):
        job = {"tokens": dataset.digest}
        claim(open_storage(folder), CODE_EXPORTER, job, finished=True, overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
    views = np.arange(dataset.num_views)
    for ids in _batches(dataset.num_samples):
        every = np.repeat(ids, len(views)), np.tile(views, len(ids))
        batch = dataset.read(*every)
        tokens = batch.tokens.reshape(len(ids), 1, len(views), *batch.tokens.shape[1:])
        for at, number in enumerate(ids.tolist()):
            np.save(codes / f"{number}.npy", tokens[at])
            np.save(labels / f"{number}.npy", batch.labels[at * len(views), None])
    return dataset.num_samples


def _batches(count: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, count, _BATCH):
        yield np.arange(first, min(first + _BATCH, count), dtype=np.int64)


def _shard(released: ReleasedCodes, spec: TokenSpec, index: int) -> bytes:
    first, count = spec.shard_range(index)
    found = [released.read(i) for i in range(first, first + count)]
    tokens = np.concatenate([codes for codes, _ in found])
    rows, views = len(tokens), spec.num_views
    ids = np.repeat(np.arange(first, first + count, dtype=np.int64), views)
    data = TokenRows(
        sample_ids=ids,
        source_ids=ids,
        labels=np.repeat(np.array([label for _, label in found], np.int32), views),
        views=np.tile(np.arange(views, dtype=np.int64), count),
        windows=np.zeros((rows, 4), np.uint16),
        flips=np.zeros(rows, np.bool_),
        tokens=tokens,
    )
    return encode_shard(data, ShardMetadata(spec, index, _latent_sums(tokens, spec), ()))


def _latent_sums(tokens: NDArray[np.int64], spec: TokenSpec) -> LatentSums:
    if spec.digits is None:
        return LatentSums(0, (), ())
    grid = tokens.reshape(len(tokens), *spec.grid, -1)
    values = spec.digits.latents(grid).astype(np.float64)
    flat = values.reshape(len(tokens), spec.latent_channels, -1)
    return LatentSums.of_rows(flat.sum(axis=2), np.square(flat).sum(axis=2), spec.tokens_per_row)
