"""Shards: exact, deterministic, and honest about damage."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.bad_samples import BadSample
from data_pipelines.errors import DataError
from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.format import ExtraColumn, ShardMetadata, TokenSpec
from data_pipelines.tokens.latents import LatentSums
from data_pipelines.tokens.shard import decode_shard
from data_pipelines.tokens.writer import encode_shard, pin_job, publish_shard
from tests.support.known_tokens import SPEC, SUMS, make_rows, make_shard


def test_spec_survives_json():
    spec = replace(SPEC, extra_columns={"teacher": ExtraColumn("float16", (4, 8))})
    spec = spec.with_statistics(LatentSums.combine([SUMS]))
    assert TokenSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_statistics_do_not_change_the_digest():
    assert SPEC.with_statistics(LatentSums.combine([SUMS])).digest == SPEC.digest


def test_every_other_field_changes_the_digest():
    changed = replace(SPEC, numerics="cuda/bf16")
    assert changed.digest != SPEC.digest
    assert changed.differences(SPEC) == ['numerics: "cuda/bf16", not "cpu/fp32"']


def test_same_rows_give_the_same_bytes():
    assert make_shard(SPEC, 1) == make_shard(SPEC, 1)


def test_rows_come_back():
    rows = make_rows(SPEC, 2)
    rows.source_ids[1] = 5  # the pixels of another sample
    shard = decode_shard(encode_shard(rows, ShardMetadata(SPEC, 2, SUMS, ())), "shard")
    assert np.array_equal(shard.source_ids, rows.source_ids)
    assert np.array_equal(shard.sample_ids, rows.sample_ids)
    assert np.array_equal(shard.views, rows.views)
    assert np.array_equal(shard.labels, rows.labels)
    assert np.array_equal(shard.flips, rows.flips)
    assert np.array_equal(shard.windows, rows.windows)
    assert np.array_equal(shard.tokens(), rows.tokens[:, :, 0])


def test_metadata_comes_back():
    bad = BadSample("shard-000000.tar", "class/00003", 3, "truncated")
    metadata = ShardMetadata(SPEC, 0, SUMS, (bad,))
    stored = decode_shard(encode_shard(make_rows(SPEC, 0), metadata), "shard").metadata
    assert replace(stored, content_sha256="") == metadata
    assert stored.replaced == ()


def test_several_groups_and_extra_columns_come_back():
    spec = replace(
        SPEC,
        codebook_sizes=(17**2, 2**30, 2),
        extra_columns={"teacher": ExtraColumn("float16", (4, 8))},
    )
    rows = make_rows(spec, 0)
    shard = decode_shard(encode_shard(rows, ShardMetadata(spec, 0, SUMS, ())), "shard")
    assert np.array_equal(shard.tokens(), rows.tokens)
    assert np.array_equal(shard.extra("teacher"), rows.extra["teacher"])


def test_a_row_of_256_tokens_takes_at_most_560_bytes():
    """544 of them are tokens of 17 bits."""
    spec = replace(SPEC, grid=(16, 16), num_samples=1000, samples_per_shard=1000)
    size = len(encode_shard(make_rows(spec, 0), ShardMetadata(spec, 0, SUMS, ())))
    assert size / 2000 <= 560


def test_rows_in_another_order_are_refused():
    rows = make_rows(SPEC, 0)
    turned = replace(rows, views=rows.views[::-1].copy())
    with pytest.raises(DataError, match="not views 0 to 1 of samples 0 to 3"):
        encode_shard(turned, ShardMetadata(SPEC, 0, SUMS, ()))


def test_extra_column_of_another_type_is_refused():
    spec = replace(SPEC, extra_columns={"teacher": ExtraColumn("float16", (8,))})
    rows = replace(make_rows(spec, 0), extra={"teacher": np.zeros((8, 8), np.float32)})
    with pytest.raises(DataError, match="float32"):
        encode_shard(rows, ShardMetadata(spec, 0, SUMS, ()))


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_cut_shard_does_not_open(cut: int):
    with pytest.raises(DataError, match="not a readable token shard"):
        decode_shard(make_shard(SPEC, 0)[:cut], "shard")


def test_a_changed_token_is_noticed():
    data = bytearray(make_shard(SPEC, 0))
    packed = decode_shard(bytes(data), "shard").packed
    at = bytes(data).index(packed[3].tobytes())
    data[at] ^= 1
    assert decode_shard(bytes(data), "shard").damage() is not None


def test_an_intact_shard_has_no_damage():
    assert decode_shard(make_shard(SPEC, 0), "shard").damage() is None


def test_publishing_twice_is_harmless(tmp_path: Path):
    storage = open_storage(tmp_path)
    assert publish_shard(storage, 0, make_shard(SPEC, 0))
    assert not publish_shard(storage, 0, make_shard(SPEC, 0))


def test_publishing_other_bytes_is_refused(tmp_path: Path):
    storage = open_storage(tmp_path)
    publish_shard(storage, 0, make_shard(SPEC, 0))
    with pytest.raises(DataError, match="exists with other bytes"):
        publish_shard(storage, 0, make_shard(SPEC, 0, seed=1))
    assert storage.read("shards/tokens-00000000.arrow") == make_shard(SPEC, 0)


def test_a_folder_keeps_its_spec(tmp_path: Path):
    storage = open_storage(tmp_path)
    pin_job(storage, SPEC)
    pin_job(storage, SPEC)
    other = replace(SPEC, tokenizer_fingerprint="e" * 64)
    with pytest.raises(DataError, match=f"{'f' * 64}.*not.*{'e' * 64}"):
        pin_job(storage, other)


def test_latent_statistics_of_parts_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(2.0, 3.0, (3, 1000))
    parts = [
        LatentSums(len(part[0]), tuple(part.sum(1)), tuple((part**2).sum(1)))
        for part in np.split(values, [100, 400], axis=1)
    ]
    statistics = LatentSums.combine(parts)
    assert statistics is not None
    assert statistics.count == 1000
    np.testing.assert_allclose(statistics.mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, values.std(1), rtol=1e-12)


def test_normalized_latents_come_back():
    statistics = LatentSums.combine([SUMS])
    assert statistics is not None
    latents = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(statistics.denormalize(statistics.normalize(latents)), latents)


def test_a_row_made_of_a_sample_that_is_not_there_is_damage():
    rows = make_rows(SPEC, 0)
    rows.source_ids[1] = SPEC.num_samples
    data = encode_shard(rows, ShardMetadata(SPEC, 0, SUMS, ()))
    with pytest.raises(DataError, match="row 1 of 8 is of sample 10 of 10"):
        decode_shard(data, "shard")
