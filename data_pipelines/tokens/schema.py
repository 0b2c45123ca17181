"""The declared shapes of the JSON of token datasets: job.json, tokens.json, a shard's metadata."""

import math
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, Strict, TypeAdapter
from typing_extensions import TypedDict

from data_pipelines.documents import EXACT, Count, Finite, Name, Sha256, Text, Whole

MAX_SHARDS = 1 << 24
"""Shards of one dataset; more than a folder can sensibly hold, few enough for one table."""

Positive = Annotated[int, Strict(), Field(ge=1, lt=1 << 48)]
Side = Annotated[int, Strict(), Field(ge=1, le=1 << 14)]
Few = Annotated[int, Strict(), Field(ge=0, le=1 << 16)]
CodebookSize = Annotated[int, Strict(), Field(ge=1, le=1 << 63)]
Json = dict[Annotated[str, Strict()], Any]


class ExtraColumnShape(TypedDict):
    __pydantic_config__ = EXACT  # pyright: ignore
    dtype: Literal[
        "float16", "float32", "float64", "int8", "int16", "int32", "int64",
        "uint8", "uint16", "uint32", "uint64", "bool",
    ]  # fmt: skip
    shape: Annotated[tuple[Positive, ...], Field(max_length=8)]


class DigitsShape(TypedDict):
    __pydantic_config__ = EXACT  # pyright: ignore
    groups: tuple[Few, ...]
    place_values: tuple[Positive, ...]
    values: tuple[Annotated[tuple[Finite, ...], Field(min_length=1)], ...]


class StatisticsShape(TypedDict):
    __pydantic_config__ = EXACT  # pyright: ignore
    mean: tuple[Finite, ...]
    std: tuple[Annotated[Finite, Field(ge=0)], ...]
    count: Count


class SpecShape(TypedDict):
    """`TokenSpec.to_dict`."""

    __pydantic_config__ = EXACT  # pyright: ignore
    tokenizer_fingerprint: Text
    quantizer: Json
    codebook_sizes: Annotated[tuple[CodebookSize, ...], Field(max_length=1 << 10)]
    grid: tuple[Side, Side]
    digit_order: Literal["little", "big"]
    view: Json
    num_views: Annotated[int, Strict(), Field(ge=1, le=1 << 20)]
    view_seed: Whole
    source_digest: Text
    num_samples: Positive
    samples_per_shard: Positive
    latent_channels: Few
    batch_size: Positive
    decoder: Text
    numerics: Text
    grown_from: NotRequired[tuple[tuple[Positive, Text], ...]]
    extra_columns: NotRequired[dict[Text, ExtraColumnShape]]
    digits: NotRequired[DigitsShape | None]
    teacher: NotRequired[Json | None]
    latent_statistics: NotRequired[StatisticsShape | None]
    format_version: Literal[1]


class SumsShape(TypedDict):
    __pydantic_config__ = EXACT  # pyright: ignore
    count: Count
    sums: tuple[Finite, ...]
    squares: tuple[Annotated[Finite, Field(ge=0)], ...]


class BadSampleShape(TypedDict):
    __pydantic_config__ = EXACT  # pyright: ignore
    shard: Text
    key: Text
    sample_id: Whole
    reason: Text


class MetadataShape(TypedDict):
    """What a shard's schema metadata holds."""

    __pydantic_config__ = EXACT  # pyright: ignore
    index: Count
    latent_sums: SumsShape
    bad_samples: tuple[BadSampleShape, ...]
    replaced: tuple[tuple[Count, Count], ...]
    content_sha256: Sha256
    spec: Json


class JobShape(TypedDict):
    """job.json."""

    __pydantic_config__ = EXACT  # pyright: ignore
    format: Literal["ifsq-tokens-job"]
    version: Literal[1]
    spec: Json


class TokensShape(TypedDict):
    """tokens.json; `sha256` is over the canonical JSON of everything else."""

    __pydantic_config__ = EXACT  # pyright: ignore
    format: Literal["ifsq-tokens"]
    version: Literal[1]
    digest: Sha256
    num_samples: Count
    num_rows: Count
    expected_rows: Count
    num_shards: Annotated[int, Strict(), Field(ge=0, le=MAX_SHARDS)]
    num_bytes: Count
    num_bad_samples: Count
    table_sha256: Sha256
    spec: Json
    tokenizer_weights: NotRequired[Literal["averaged", "live"]]
    sha256: NotRequired[Sha256]


class FormatShape(TypedDict):
    """What every version has; looked at first, so that another version is called that."""

    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore
    format: Name
    version: Whole


SPEC: TypeAdapter[SpecShape] = TypeAdapter(SpecShape)
METADATA: TypeAdapter[MetadataShape] = TypeAdapter(MetadataShape)
JOB: TypeAdapter[JobShape] = TypeAdapter(JobShape)
TOKENS: TypeAdapter[TokensShape] = TypeAdapter(TokensShape)
FORMAT: TypeAdapter[FormatShape] = TypeAdapter(FormatShape)


def contradiction(values: SpecShape) -> str | None:
    """What two fields of a spec say against each other; None where nothing does."""
    added = zip(
        [count for count, _ in values.get("grown_from", ())] + [values["num_samples"]],
        [0] + [count for count, _ in values.get("grown_from", ())],
        strict=True,
    )
    per_shard = values["samples_per_shard"]
    if sum(max(0, -(-(end - first) // per_shard)) for end, first in added) > MAX_SHARDS:
        return f"samples_per_shard: {per_shard} makes more than {MAX_SHARDS} shards"
    for name, column in values.get("extra_columns", {}).items():
        if math.prod(column["shape"]) > 1 << 28:
            return f"extra_columns.{name}: {math.prod(column['shape'])} values per row"
    channels = values["latent_channels"]
    statistics = values.get("latent_statistics")
    if statistics and not len(statistics["mean"]) == len(statistics["std"]) == channels:
        return f"latent_statistics: not of {channels} channels"
    digits = values.get("digits")
    return digits and _digits_contradiction(digits, values["codebook_sizes"], channels)


def _digits_contradiction(
    digits: DigitsShape, codebook_sizes: tuple[int, ...], channels: int
) -> str | None:
    groups, places, levels = digits["groups"], digits["place_values"], digits["values"]
    if not sum(groups) == len(places) == len(levels) == channels:
        return f"digits: not of {channels} channels"
    if len(groups) != len(codebook_sizes):
        return f"digits: {len(groups)} groups, codebook_sizes has {len(codebook_sizes)}"
    first = 0
    for group, size in zip(groups, codebook_sizes, strict=True):
        counts = [len(values) for values in levels[first : first + group]]
        if math.prod(counts) != size:
            return f"digits: levels {counts} are not those of a codebook of {size}"
        expected = sorted(_places(counts)), sorted(_places(counts[::-1]))
        if sorted(places[first : first + group]) not in expected:
            return f"digits: place values {list(places[first : first + group])} do not fit"
        first += group
    return None


def _places(counts: list[int]) -> list[int]:
    """What each digit counts for, least significant first."""
    return [math.prod(counts[:place]) for place in range(len(counts))]
