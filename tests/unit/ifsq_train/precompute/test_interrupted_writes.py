"""A precompute, new or growing, refused at any file: the old dataset, none, or the new."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import DataError
from data_pipelines.tokens.reader import TokenDataset
from ifsq_train.precompute.job import run_precompute_local
from tests.support.disk_record import refused_at_every_change
from tests.support.memory_bucket import memory_buckets
from tests.support.precompute_parts import NUM_IMAGES, configure, make_parts, published_bytes
from tests.unit.ifsq_train.precompute.test_precompute_growth import add_tar


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_parts(tmp_path_factory.mktemp("interrupted"))


def precompute(parts: dict[str, Any], output: Path | str, **changes: Any) -> None:
    """Two shards."""
    config = configure(parts, Path("unused"), samples_per_shard=11, **changes)
    config = config.model_copy(update={"output": str(output)})
    run_precompute_local(config, device="cpu")


def test_tokens_are_no_dataset_until_tokens_json_and_go_on(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    jobs = refused_at_every_change(
        lambda output: precompute(parts, output), tmp_path, kinds=("rename",)
    )
    order: list[str] = []
    for output, renamed in jobs:
        order = renamed
        with pytest.raises(DataError):
            TokenDataset.open(output)
        precompute(parts, output)
        assert published_bytes(output) == published_bytes(tmp_path / "whole")
    assert order == ["job.json", "tokens-00000000.arrow", "tokens-00000001.arrow", "tokens.arrow"]


def test_a_growing_dataset_is_the_old_one_until_tokens_json_changes(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    growing = {**parts, "images": parts["source"], "source": str(source)}
    fields = {name: value for name, value in growing.items() if name != "images"}
    add_tar(growing, 0, 11)
    precompute(fields, tmp_path / "old")
    old = TokenDataset.open(tmp_path / "old")
    add_tar(growing, 11, NUM_IMAGES)
    jobs = refused_at_every_change(
        lambda output: precompute(fields, output),
        tmp_path / "runs",
        start=lambda output: shutil.copytree(tmp_path / "old", output),
        kinds=("rename",),
    )
    order: list[str] = []
    for output, renamed in jobs:
        order = renamed
        found = TokenDataset.open(output)
        assert (found.digest, found.num_samples) == (old.digest, 11)
        precompute(fields, output)
        assert published_bytes(output) == published_bytes(tmp_path / "runs/whole")
    assert order == ["job-0001.json", "tokens-00000001.arrow", "tokens-0001.arrow"]


def test_tokens_in_a_bucket_are_those_of_a_folder_however_it_was_refused(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    precompute(parts, tmp_path / "folder")
    folder = published_bytes(tmp_path / "folder")
    with memory_buckets() as record:
        for _ in range(4):  # behind job.json, each shard and the table
            record.operations, record.fail_at = [], 1
            with pytest.raises(Exception, match="503 SlowDown"):
                precompute(parts, "s3://bucket/tokens")
            with pytest.raises(DataError):
                TokenDataset.open("s3://bucket/tokens", cache_folder=tmp_path / "cache")
            record.fail_at = None
        precompute(parts, "s3://bucket/tokens")
        assert published_bytes("s3://bucket/tokens") == folder  # type: ignore[arg-type]
