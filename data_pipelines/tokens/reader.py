"""Token datasets by sample id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipelines.errors import DataError, UserError
from data_pipelines.hashing import hash_u64
from data_pipelines.lru import Lru
from data_pipelines.storage.open import Storage, open_storage
from data_pipelines.tokens.features import FEATURE_SCALES, FEATURES
from data_pipelines.tokens.format import TOKENS_JSON, TokenSpec
from data_pipelines.tokens.latents import LATENT_LOGVAR, LATENT_MEAN
from data_pipelines.tokens.local_copy import default_cache_folder, local_copy
from data_pipelines.tokens.open_shard import OpenShard, open_shard
from data_pipelines.tokens.shard import TokenShard
from data_pipelines.tokens.table import check_statistics, read_table
from data_pipelines.tokens.tokens_json import read_tokens_json
from data_pipelines.tokens.writer import TokenRows, TokenShardEntry

MAX_OPEN_SHARDS = 256
_DOMAIN_POSTERIOR = 32


@dataclass(frozen=True)
class TokenBatch:
    """B rows, in the order they were asked for.

    tokens: int64 [B, T] for one group, else [B, T, G]; row by row over the grid. G is 0 where the
        dataset has latents only.
    labels: int64 [B], -1 where there is none.
    sample_ids: int64 [B].
    extra: the extra columns asked for, [B, ...] each.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class TokenDataset:
    """An opened token dataset. O(shards) in memory, shards memory-mapped on demand. Thread-safe.

    Shards in object storage are copied once into a cache folder of this machine, which all
    processes share, and mapped from there.
    """

    def __init__(
        self,
        storage: Storage,
        facts: Mapping[str, Any],
        table: pa.Table,
        cache_folder: Path | None = None,
    ) -> None:
        self.storage = storage
        self.facts = facts
        self.digest: str = facts["digest"]
        self.spec = TokenSpec.from_dict(facts["spec"])
        self.num_samples: int = facts["num_samples"]
        self.num_rows: int = facts["num_rows"]
        self.num_views = self.spec.num_views
        self.shard_sizes: NDArray[np.int64] = table.column("num_samples").to_numpy()
        """Samples (not rows) per shard, for SamplePlan."""
        self._table = table
        self._cache_folder = cache_folder
        self._open: Lru[int, OpenShard] = Lru(MAX_OPEN_SHARDS)

    @classmethod
    def open(
        cls,
        url: str | Path | Storage,
        expected_fingerprint: str | None = None,
        cache_folder: Path | None = None,
        *,
        add_up: bool = True,
    ) -> "TokenDataset":
        """Read the manifest at `url`.

        Args:
            expected_fingerprint: of the tokenizer these tokens are to be used with.
            cache_folder: where shards of object storage are copied to; None takes one in the
                machine's temporary folder, named after the dataset.
            add_up: where tokens.json has no checksum, add the latent statistics up again.

        Raises:
            UserError: the tokens were made by another tokenizer.
            DataError: there is no finished dataset, or it is damaged or of another format.
        """
        storage = open_storage(url) if isinstance(url, str | Path) else url
        facts = read_tokens_json(storage)
        try:
            spec = TokenSpec.from_dict(facts["spec"])
        except UserError as error:
            raise DataError(f"{storage.url}/{TOKENS_JSON}: {error}") from None
        table = read_table(storage, facts, spec)
        dataset = cls(storage, facts, table, cache_folder)
        if add_up and "sha256" not in facts and spec.latent_statistics is not None:
            check_statistics(storage, spec, table)
        fingerprint = dataset.spec.tokenizer_fingerprint
        if expected_fingerprint is not None and fingerprint != expected_fingerprint:
            raise UserError(
                f"{storage.url} holds tokens of tokenizer {fingerprint[:12]}, but tokenizer "
                f"{expected_fingerprint[:12]} is to be used with them; precompute again with that "
                "tokenizer or name the one they were made with"
            )
        return dataset

    def __reduce__(self) -> tuple[Any, ...]:
        return (TokenDataset.open, (self.storage.url, None, self._cache_folder))

    def __repr__(self) -> str:
        return f"TokenDataset({self.storage.url}, {self.num_rows} rows, {self.digest[:12]})"

    @property
    def num_shards(self) -> int:
        return self._table.num_rows

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Label of every sample, int64 [num_samples], -1 where there is none; opens all shards."""
        shards = (self.shard(i).labels[:: self.num_views] for i in range(self.num_shards))
        return np.concatenate([labels.astype(np.int64) for labels in shards])

    def summary(self) -> dict[str, Any]:
        """What a user wants to know of the dataset, in words and numbers."""
        spec = self.spec
        return {
            "kind": "tokens",
            "url": self.storage.url,
            "digest": self.digest,
            "samples": self.num_samples,
            "views per sample": self.num_views,
            "rows": self.num_rows,
            "shards": self.num_shards,
            "bytes": self.facts["num_bytes"],
            "bad samples": self.facts["num_bad_samples"],
            "grid": f"{spec.grid[0]} x {spec.grid[1]}",
            "codebook sizes": list(spec.codebook_sizes),
            "bits per token": list(spec.packer.bits) if spec.has_tokens else [],
            "extra columns": {
                name: f"{column.dtype} {list(column.shape)}"
                for name, column in spec.extra_columns.items()
            },
            "tokenizer": spec.tokenizer_fingerprint,
            "quantizer": dict(spec.quantizer),
            "view": dict(spec.view),
            "decoder": spec.decoder,
            "numerics": spec.numerics,
            "teacher": dict(spec.teacher) if spec.teacher else None,
            "source": spec.source_digest,
            "latent mean": list(spec.latent_statistics.mean) if spec.latent_statistics else None,
            "latent std": list(spec.latent_statistics.std) if spec.latent_statistics else None,
        }

    def read(
        self,
        sample_ids: NDArray[np.int64],
        views: NDArray[np.integer] | None = None,
        columns: Sequence[str] = (),
    ) -> TokenBatch:
        """Rows of the given samples.

        Args:
            sample_ids: int64 [B] in [0, num_samples), any order, repeats allowed.
            views: int [B] in [0, num_views); None means view 0.
            columns: names of extra columns to read along.

        Raises:
            DataError: an id or view outside the dataset, a missing or damaged shard.
        """
        ids = np.asarray(sample_ids, dtype=np.int64)
        chosen = np.zeros_like(ids) if views is None else np.asarray(views, dtype=np.int64)
        _check_bounds(ids, self.num_samples, "sample ids", self.storage.url)
        _check_bounds(chosen, self.num_views, "views", self.storage.url)
        shards, offsets = self.spec.locate(ids)
        rows = offsets * self.num_views + chosen
        width = self.spec.packer.row_bytes if self.spec.has_tokens else 0
        packed = np.empty((len(ids), width), dtype=np.uint8)
        labels = np.empty(len(ids), dtype=np.int64)
        extra = self._empty_extra(columns, len(ids))
        for number in np.unique(shards).tolist():
            shard, at = self.shard(number), np.flatnonzero(shards == number)
            packed[at] = shard.packed[rows[at]]
            labels[at] = shard.labels[rows[at]]
            for name, values in extra.items():
                values[at] = shard.extra(name)[rows[at]]
        tokens = (
            self.spec.packer.unpack(packed)
            if self.spec.has_tokens
            else np.empty((len(ids), self.spec.tokens_per_row, 0), np.int64)
        )
        return TokenBatch(tokens, labels, ids, extra)

    def latents(
        self,
        sample_ids: NDArray[np.int64],
        views: NDArray[np.integer] | None = None,
        *,
        noise: NDArray[np.float32] | None = None,
        normalized: bool = True,
    ) -> NDArray[np.float32]:
        """Latents of the given samples, float32 [B, C, h, w].

        What the tokens stand for, or the stored latents where there are such columns.

        Args:
            sample_ids, views: as for `read`.
            noise: standard normal [B, C, h, w]; where rows have a posterior (vae), a sample of it
                is made with this. None gives the mean; without a posterior it changes nothing.
            normalized: to mean 0 and standard deviation 1 per channel over the dataset
                (`LatentStatistics.denormalize` is the way back).

        Raises:
            DataError: as for `read`, or the rows hold no latents.
        """
        return self.latents_of(self.read(sample_ids, views, self.latent_columns), noise, normalized)

    @cached_property
    def latent_columns(self) -> tuple[str, ...]:
        """The extra columns that `latents_of` needs."""
        stored = (LATENT_MEAN, LATENT_LOGVAR)
        return tuple(name for name in stored if name in self.spec.extra_columns)

    def posterior_noise(
        self, seed: int, epoch: int, sample_ids: NDArray[np.int64]
    ) -> NDArray[np.float32] | None:
        """Noise for `latents`, float32 [B, C, h, w]; None where rows have no posterior.

        A function of (seed, epoch, sample id), so the same for every rank and after a resume.
        """
        if LATENT_LOGVAR not in self.spec.extra_columns:
            return None
        keys = hash_u64(seed, _DOMAIN_POSTERIOR, epoch, np.asarray(sample_ids, dtype=np.int64))
        shape = (self.spec.latent_channels, *self.spec.grid)
        rows = [
            np.random.Generator(np.random.Philox(key=int(key))).standard_normal(shape, np.float32)
            for key in keys
        ]
        return np.stack(rows) if rows else np.empty((0, *shape), np.float32)

    @cached_property
    def feature_columns(self) -> tuple[str, ...]:
        """The extra columns that `decode_features` turns into teacher features; none if not stored.

        With them, `decode_features(dataset.read(ids, views, dataset.feature_columns).extra)` is
        float32 [B, T, D], patch t of the view beside its token t.
        """
        stored = (FEATURES, FEATURE_SCALES)
        return tuple(name for name in stored if name in self.spec.extra_columns)

    def latents_of(
        self, batch: TokenBatch, noise: NDArray[np.float32] | None = None, normalized: bool = True
    ) -> NDArray[np.float32]:
        """`latents` of a batch that was read with `latent_columns`."""
        if LATENT_MEAN in batch.extra:
            latents = batch.extra[LATENT_MEAN].astype(np.float32)
        elif self.spec.digits is not None:
            tokens = batch.tokens.reshape(len(batch.tokens), *self.spec.grid, -1)
            latents = self.spec.digits.latents(tokens)
        else:
            raise DataError(
                f"{self.storage.url} has tokens of kind {self.spec.quantizer.get('kind')!r} and no "
                "latents; precompute with latents=fp16 or fp32"
            )
        if noise is not None and LATENT_LOGVAR in batch.extra:
            latents += np.exp(0.5 * batch.extra[LATENT_LOGVAR].astype(np.float32)) * noise
        if not normalized:
            return latents
        assert self.spec.latent_statistics is not None
        return self.spec.latent_statistics.normalized(latents)

    def rows_of(self, sample_id: int) -> TokenRows:
        """Everything stored of a sample, all its views; tokens int64 [num_views, T, G]."""
        ids = np.array([sample_id])
        _check_bounds(ids, self.num_samples, "sample ids", self.storage.url)
        number, offset = (int(values[0]) for values in self.spec.locate(ids))
        shard = self.shard(number)
        at = slice(offset * self.num_views, (offset + 1) * self.num_views)
        tokens = np.empty((self.num_views, self.spec.tokens_per_row, 0), np.int64)
        if self.spec.has_tokens:
            packed = np.ascontiguousarray(shard.packed[at])
            groups = len(self.spec.codebook_sizes)
            tokens = self.spec.packer.unpack(packed).reshape(*tokens.shape[:2], groups)
        return TokenRows(
            shard.sample_ids[at], shard.source_ids[at], shard.labels[at],
            shard.views[at], shard.windows[at], shard.flips[at], tokens,
            {name: shard.extra(name)[at] for name in self.spec.extra_columns},
        )  # fmt: skip

    def shard(self, number: int) -> TokenShard:
        """An opened shard.

        Its bytes are hashed when it is first opened, and its values compared with the spec.

        Raises:
            DataError: it is missing, not the one recorded, or was cut since it was opened.
        """
        opened = self._open.get(number, lambda: self._open_shard(number))
        opened.file.check()
        return opened.shard

    def entry(self, number: int) -> TokenShardEntry:
        return TokenShardEntry(**self._table.slice(number, 1).to_pylist()[0])

    def _empty_extra(self, columns: Sequence[str], rows: int) -> dict[str, NDArray[Any]]:
        known = self.spec.extra_columns
        if unknown := [name for name in columns if name not in known]:
            raise DataError(
                f"{self.storage.url} has no column {', '.join(unknown)}, it has: "
                f"{', '.join(known) or 'none'}; precompute with it"
            )
        return {name: np.empty((rows, *known[name].shape), known[name].dtype) for name in columns}

    def _open_shard(self, number: int) -> OpenShard:
        entry = self.entry(number)
        path = self.storage.local_path(entry.name) or local_copy(
            self.storage, entry, self._cache_folder or default_cache_folder(self.digest)
        )
        return open_shard(path, entry, self.spec.of_shard(number), number)


def _check_bounds(values: NDArray[np.int64], limit: int, what: str, url: str) -> None:
    if len(values) and not (values.min() >= 0 and values.max() < limit):
        raise DataError(
            f"{what} from {values.min()} to {values.max()} were asked of {url}, which has 0 to "
            f"{limit - 1}; use the plan made for this dataset"
        )
