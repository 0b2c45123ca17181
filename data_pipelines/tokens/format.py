"""What a token dataset consists of, and everything that decides what its tokens mean.

    job.json                     first file: the spec a folder was begun with
    shards/tokens-00000000.arrow one Arrow IPC file per range of source samples
    tokens.arrow                 one row per shard (Arrow IPC file)
    tokens.json                  published last: a dataset without it is not finished
    job-0001.json ...            the same files of the first growth and later ones, see `grown_from`

A shard has one row per (sample, view), a sample's views one after the other, so a row's place says
which it is; names of samples are in the source's manifest. Its schema metadata holds, as JSON, the
spec, which samples it covers, its share of the latent statistics, the bad samples met, and a hash
over its contents, so that damage shows even before there is a manifest.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipelines.bad_samples import BadSample
from data_pipelines.documents import checked, parse_json
from data_pipelines.errors import DataError, UserError
from data_pipelines.tokens import schema
from data_pipelines.tokens.latents import DigitTable, LatentStatistics, LatentSums
from data_pipelines.tokens.packing import TokenPacker

FORMAT_NAME = "ifsq-tokens"
FORMAT_VERSION = 1
JOB_JSON = "job.json"
TOKENS_JSON = "tokens.json"
TOKENS_TABLE = "tokens.arrow"
SHARD_FOLDER = "shards/"
METADATA_KEY = b"ifsq_tokens"


def job_name(generation: int) -> str:
    """Path of the job of a dataset that has grown so often."""
    return f"job-{generation:04d}.json" if generation else JOB_JSON


def table_name(generation: int) -> str:
    """Path of the shard table of a dataset that has grown so often."""
    return f"tokens-{generation:04d}.arrow" if generation else TOKENS_TABLE


def shard_name(index: int) -> str:
    """Path of the shard of work item `index`; depends on nothing else."""
    return f"{SHARD_FOLDER}tokens-{index:08d}.arrow"


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class ExtraColumn:
    """A further array per row, such as teacher features: numpy `dtype` name and `shape`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class TokenSpec:
    """Everything that decides a row's bytes, apart from the source image itself."""

    tokenizer_fingerprint: str
    """sha256 over weights and configuration of the tokenizer."""
    quantizer: Mapping[str, Any]
    """Description of the quantizer, JSON-able."""
    codebook_sizes: tuple[int, ...]
    """Tokens of group g run from 0 to codebook_sizes[g] - 1; empty where latents are continuous."""
    grid: tuple[int, int]
    """Height and width in tokens; tokens are stored row by row."""
    digit_order: Literal["little", "big"]
    """Whether the first channel of a group is the least or most significant digit."""
    view: Mapping[str, Any]
    """The view spec, as `ViewSpec.to_dict`."""
    num_views: int
    view_seed: int
    """Decides random crops and flips, and what replaces a bad sample; views are of epoch 0."""
    source_digest: str
    """Digest of the image manifest; sample ids are those of that manifest."""
    num_samples: int
    samples_per_shard: int
    latent_channels: int
    """C of the latents [C, h, w] that a row's tokens or latent columns stand for."""
    batch_size: int
    """Images per encoder call. Part of the spec: convolutions round differently per batch size."""
    decoder: str
    """Backend that decoded the images, `ImageDecoder.name`."""
    numerics: str
    """Device kind and precision of the encoder, such as cpu/fp32 or cuda/bf16."""
    grown_from: tuple[tuple[int, str], ...] = ()
    """(num_samples, source_digest) of the earlier states of a source that has grown, oldest first.
    Each growth begins a new shard, so the shards before stay what they are."""
    extra_columns: Mapping[str, ExtraColumn] = field(default_factory=dict)
    digits: DigitTable | None = None
    """How tokens become latents; None where that takes the tokenizer (vq) or there are none."""
    teacher: Mapping[str, Any] | None = None
    """Which network made the teacher features, JSON-able; None without such columns."""
    latent_statistics: LatentStatistics | None = None
    """Known once all shards are there; not stored in shards and not part of the digest."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if min(self.num_samples, self.num_views, self.samples_per_shard, self.batch_size) < 1:
            raise UserError(
                f"num_samples={self.num_samples}, num_views={self.num_views}, samples_per_shard="
                f"{self.samples_per_shard}, batch_size={self.batch_size}: use 1 or more of each"
            )
        if any(size <= 0 for size in np.diff(self._ends, prepend=0)):
            raise UserError(
                f"a token dataset of {self._ends[-2]} samples cannot go on with {self.num_samples};"
                " only sources that have more than before can be added"
            )

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Number of samples after each growth, the present one last."""
        return np.array([*(count for count, _ in self.grown_from), self.num_samples], np.int64)

    @cached_property
    def _shard_firsts(self) -> NDArray[np.int64]:
        """First sample of every shard, int64 [num_shards]."""
        begins = [0, *self._ends[:-1].tolist()]
        ranges = zip(begins, self._ends.tolist(), strict=True)
        return np.concatenate([np.arange(a, b, self.samples_per_shard) for a, b in ranges])

    @property
    def has_tokens(self) -> bool:
        """Whether rows have tokens; without, they have latent columns."""
        return bool(self.codebook_sizes)

    @cached_property
    def packer(self) -> TokenPacker:
        """Of the tokens column; there must be one."""
        return TokenPacker(self.codebook_sizes, self.tokens_per_row)

    @property
    def tokens_per_row(self) -> int:
        """T, tokens per view and group."""
        return self.grid[0] * self.grid[1]

    @property
    def num_shards(self) -> int:
        return len(self._shard_firsts)

    @property
    def num_rows(self) -> int:
        """Rows a finished dataset has."""
        return self.num_samples * self.num_views

    def shard_range(self, index: int) -> tuple[int, int]:
        """First sample id of shard `index` and how many samples it covers."""
        assert 0 <= index < self.num_shards
        first = int(self._shard_firsts[index])
        end = self._ends[np.searchsorted(self._ends, first, side="right")]
        return first, min(self.samples_per_shard, int(end) - first)

    def locate(self, sample_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards of samples, int64 [B], and the samples' places in them, int64 [B]."""
        if not self.grown_from:
            shards, places = np.divmod(sample_ids, self.samples_per_shard)
            return shards, places
        shards = np.searchsorted(self._shard_firsts, sample_ids, side="right") - 1
        return shards, sample_ids - self._shard_firsts[shards]

    def before_growth(self) -> "TokenSpec":
        """The spec of the dataset before it last grew."""
        num_samples, digest = self.grown_from[-1]
        return replace(
            self,
            num_samples=num_samples,
            source_digest=digest,
            grown_from=self.grown_from[:-1],
            latent_statistics=None,
        )

    def of_shard(self, index: int) -> "TokenSpec":
        """The spec that shard `index` was made to: this one, or of before a growth."""
        first, spec = int(self._shard_firsts[index]), self
        while spec.grown_from and first < spec.grown_from[-1][0]:
            spec = spec.before_growth()
        return spec

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the spec without its latent statistics."""
        return hashlib.sha256(canonical_json(self._identity()).encode()).hexdigest()

    def differences(self, other: "TokenSpec") -> list[str]:
        """Fields in which the specs differ, as "name: own value, not other value"."""
        own, others = self._identity(), other._identity()
        return [
            f"{name}: {canonical_json(own[name])}, not {canonical_json(others[name])}"
            for name in own
            if canonical_json(own[name]) != canonical_json(others[name])
        ]

    def with_statistics(self, statistics: LatentStatistics | None) -> "TokenSpec":
        return replace(self, latent_statistics=statistics)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    def _identity(self) -> dict[str, Any]:
        values = self.to_dict()
        del values["latent_statistics"]
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "TokenSpec":
        """Read `to_dict` back from JSON.

        Raises:
            DataError: another format version, unknown or missing fields, values that are not
                allowed or contradict each other.
        """
        if not isinstance(values, Mapping):
            raise DataError(f"token spec is {type(values).__name__}; the file is damaged")
        if values.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"token format version {values.get('format_version')} found, this program reads "
                f"{FORMAT_VERSION}; use the version that wrote it or precompute again"
            )
        if wrong := schema.contradiction(checked(schema.SPEC, values, "token spec")):
            raise DataError(f"token spec: {wrong}; the file is damaged")
        extra = {
            name: ExtraColumn(column["dtype"], tuple(column["shape"]))
            for name, column in values.get("extra_columns", {}).items()
        }
        stored = values.get("latent_statistics")
        statistics = stored and LatentStatistics(
            tuple(stored["mean"]), tuple(stored["std"]), stored["count"]
        )
        height, width = values["grid"]
        return TokenSpec(
            **{
                **values,
                "codebook_sizes": tuple(values["codebook_sizes"]),
                "grid": (height, width),
                "extra_columns": extra,
                "grown_from": tuple((n, digest) for n, digest in values.get("grown_from", ())),
                "digits": DigitTable.from_dict(values["digits"]) if values.get("digits") else None,
                "latent_statistics": statistics or None,
            }
        )


@dataclass(frozen=True)
class ShardMetadata:
    """What a shard says about itself besides its rows; stored in its schema metadata."""

    spec: TokenSpec
    index: int
    latent_sums: LatentSums
    bad_samples: tuple[BadSample, ...]
    """Samples that could not be decoded and were replaced, sorted; of this or of other shards."""
    replaced: tuple[tuple[int, int], ...] = ()
    """(row, sample id whose pixels were encoded instead) for the views of those samples."""
    content_sha256: str = ""
    """Hash over rows and metadata values, whatever way Arrow laid them out."""

    def to_bytes(self) -> bytes:
        values = {
            "index": self.index,
            "latent_sums": asdict(self.latent_sums),
            "bad_samples": [asdict(bad) for bad in self.bad_samples],
            "replaced": self.replaced,
            "content_sha256": self.content_sha256,
            "spec": self.spec.with_statistics(None).to_dict(),
        }
        return canonical_json(values).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "ShardMetadata":
        """Raises DataError if it is not one."""
        values = checked(schema.METADATA, parse_json(data, "its metadata"), "its metadata")
        sums = values["latent_sums"]
        return ShardMetadata(
            TokenSpec.from_dict(values["spec"]),
            values["index"],
            LatentSums(sums["count"], tuple(sums["sums"]), tuple(sums["squares"])),
            tuple(BadSample(**bad) for bad in values["bad_samples"]),
            values["replaced"],
            values["content_sha256"],
        )
