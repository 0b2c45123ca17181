"""Identities change with every single thing that they stand for, and with nothing else."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from data_pipelines.images.packing.tar_index import IndexOptions
from data_pipelines.manifest import ShardEntry, manifest_digest
from data_pipelines.order.plan import SamplePlan
from data_pipelines.tokens.format import SHARD_FOLDER, ExtraColumn, TokenSpec
from data_pipelines.tokens.latents import DigitTable, LatentStatistics
from data_pipelines.tokens.writer import TokenShardEntry, tokens_digest
from tests.support.known_tokens import SPEC

PLAN: dict[str, Any] = {
    "manifest_digest": "d",
    "shard_sizes": [100, 50],
    "global_batch_size": 10,
    "seed": 0,
    "shuffle_window": 8,
    "num_lanes": 5,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("manifest_digest", "e"),
        ("shard_sizes", [50, 100]),
        ("global_batch_size", 15),
        ("seed", 1),
        ("shuffle_window", 9),
        ("num_lanes", 2),
    ],
)
def test_plan(field: str, value: object) -> None:
    """9 for 8 leaves the lanes as they are: only the window itself tells."""
    assert SamplePlan(**PLAN).digest != SamplePlan(**{**PLAN, field: value}).digest
    assert SamplePlan(**PLAN).digest == SamplePlan(**PLAN).digest


def test_every_field_of_a_plan_has_a_case() -> None:
    given = {field.name for field in fields(SamplePlan) if field.init}
    assert given == set(PLAN)


def test_an_index_is_another_with_every_option() -> None:
    options = IndexOptions()
    changes: dict[str, Any] = {
        "validate": False,
        "max_pixels": options.max_pixels + 1,
        "image_key": "jpg",
        "label_key": "cls",
    }
    for name, value in changes.items():
        assert replace(options, **{name: value}).identity() != options.identity(), name
    # How many threads made it decides no byte.
    assert replace(options, threads=7).identity() == options.identity()
    assert {field.name for field in fields(IndexOptions)} == {*changes, "threads"}


def changed(value: Any) -> Any:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value, 1)
        case dict():
            return {**value, "more": 1}
        case None:
            return "x"
    raise AssertionError(type(value))


_VALUES: dict[str, Any] = {
    field.name: ("a" if field.type in ("str", str) else 3) for field in fields(ShardEntry)
}
ENTRY = ShardEntry(**_VALUES)
OF_CONTENTS = {"num_samples", "sha256", "content_sha256"}


@pytest.mark.parametrize("name", [field.name for field in fields(ShardEntry)])
def test_manifest(name: str) -> None:
    """Contents decide it; where a shard lies and what it is called do not."""
    other = replace(ENTRY, **{name: changed(getattr(ENTRY, name))})
    same = manifest_digest([other], ["c"]) == manifest_digest([ENTRY], ["c"])
    assert same == (name not in OF_CONTENTS)


def test_manifest_of_other_classes_or_another_order() -> None:
    other = replace(ENTRY, sha256="b")
    digests = [
        manifest_digest(*case)
        for case in [
            ([ENTRY, other], ["c", "d"]),
            ([other, ENTRY], ["c", "d"]),
            ([ENTRY, other], ["d", "c"]),
            ([ENTRY], ["c", "d"]),
        ]
    ]
    assert len(set(digests)) == 4


OF_TOKEN_CONTENTS = {"num_rows", "content_sha256"}
"""The contents' hash covers which samples they are."""
TOKEN_ENTRY = TokenShardEntry(f"{SHARD_FOLDER}a", 0, 4, 8, 100, "s", "c")
OF_THE_ROWS = {"latent_statistics"}
"""Follow from rows that the shards' own hashes cover."""


@pytest.mark.parametrize("name", [field.name for field in fields(TokenSpec)])
def test_token_spec(name: str) -> None:
    special: dict[str, Any] = {
        "extra_columns": {"features": ExtraColumn("float16", (4,))},
        "grown_from": ((4, "e"),),
        "digits": DigitTable((4,), (1, 17, 289, 4913), ((0.0,) * 17,) * 4),
        "teacher": {"kind": "dinov2"},
        "latent_statistics": LatentStatistics((0.0,) * 4, (1.0,) * 4, 32),
    }
    other = replace(SPEC, **{name: special.get(name, changed(getattr(SPEC, name)))})
    same = tokens_digest(other, [TOKEN_ENTRY]) == tokens_digest(SPEC, [TOKEN_ENTRY])
    assert same == (name in OF_THE_ROWS)


@pytest.mark.parametrize("name", list(asdict(TOKEN_ENTRY)))
def test_token_shards(name: str) -> None:
    other = replace(TOKEN_ENTRY, **{name: changed(getattr(TOKEN_ENTRY, name))})
    same = tokens_digest(SPEC, [other]) == tokens_digest(SPEC, [TOKEN_ENTRY])
    assert same == (name not in OF_TOKEN_CONTENTS)
