"""A source that grows: only what is new is encoded, and what was there stays as it is."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.index import index_tars
from data_pipelines.images.reader import ImageReader
from data_pipelines.manifest import ShardManifest
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.verify import verify_tokens
from ifsq_train.precompute.check import check_sample
from ifsq_train.precompute.job import run_precompute_local
from tests.support.precompute_parts import (
    NUM_IMAGES,
    configure,
    make_parts,
    published_bytes,
    write_tokenizer,
)

FIRST = 10
"""Images of the first two tars; shards have 4, so the third of them is not full."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_parts(tmp_path_factory.mktemp("growth"))


@pytest.fixture
def parts(packed: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A source of two tars, to which `grow` adds."""
    source = tmp_path / "source"
    source.mkdir()
    parts = {**packed, "images": packed["source"], "source": str(source)}
    add_tar(parts, 0, 5)
    add_tar(parts, 5, FIRST)
    return parts


def add_tar(parts: dict[str, Any], first: int, last: int) -> None:
    reader = ImageReader(ShardManifest.open(parts["images"]))
    folder = Path(parts["source"])
    with tarfile.open(folder / f"{first:03}.tar", "w") as tar:
        for sample in reader.read(np.arange(first, last)):
            entry = tarfile.TarInfo(f"{sample.id:03}.jpg")
            entry.size = len(sample.data)
            tar.addfile(entry, io.BytesIO(bytes(sample.data)))
    # An index is made anew as a whole.
    (folder / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "index", ignore_errors=True)
    index_tars(folder, validate=False)


def run(parts: dict[str, Any], output: Path, **changes: Any) -> Any:
    fields = {name: value for name, value in parts.items() if name != "images"}
    return run_precompute_local(configure(fields, output, **changes), device="cpu")


def recipe(parts: dict[str, Any], output: Path) -> Any:
    return configure({n: v for n, v in parts.items() if n != "images"}, output)


def test_only_what_is_new_is_encoded(parts: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "tokens"
    assert run(parts, output).items_done == 3
    before = published_bytes(output)
    add_tar(parts, FIRST, 15)
    report = run(parts, output)
    assert (report.items_done, report.items_skipped, report.rows) == (2, 3, 30)
    add_tar(parts, 15, NUM_IMAGES)
    report = run(parts, output)
    assert (report.items_done, report.items_skipped, report.rows) == (2, 5, 2 * NUM_IMAGES)
    after = published_bytes(output)
    assert {name: after[name] for name in before if name != "tokens.json"} == {
        name: data for name, data in before.items() if name != "tokens.json"
    }
    assert verify_tokens(output).ok
    assert check_sample(recipe(parts, output), NUM_IMAGES, device="cpu").ok
    assert run(parts, output).items_done == 0


def test_grown_dataset_has_the_tokens_of_one_made_at_once(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    run(parts, tmp_path / "grown")
    add_tar(parts, FIRST, NUM_IMAGES)
    run(parts, tmp_path / "grown")
    run(parts, tmp_path / "once")
    grown, once = TokenDataset.open(tmp_path / "grown"), TokenDataset.open(tmp_path / "once")
    ids = np.random.default_rng(0).permutation(NUM_IMAGES)
    for views in (np.zeros_like(ids), np.ones_like(ids)):
        assert np.array_equal(grown.read(ids, views).tokens, once.read(ids, views).tokens)
    assert np.array_equal(grown.labels, once.labels)
    assert np.allclose(grown.latents(ids), once.latents(ids), atol=1e-6)
    assert grown.digest != once.digest


def test_growing_dataset_stays_readable_and_an_interrupted_growth_goes_on(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "tokens"
    run(parts, output)
    old = TokenDataset.open(output)
    shutil.copytree(output, tmp_path / "untouched")
    add_tar(parts, FIRST, NUM_IMAGES)
    run(parts, output)
    # As if it had been killed when one new shard and no manifest was there yet.
    (output / "tokens.json").write_bytes((tmp_path / "untouched" / "tokens.json").read_bytes())
    (output / "shards" / "tokens-00000004.arrow").unlink()
    between = TokenDataset.open(output)
    assert (between.digest, between.num_samples) == (old.digest, FIRST)
    assert verify_tokens(output).ok
    assert run(parts, output).items_done == 1
    assert TokenDataset.open(output).num_samples == NUM_IMAGES


def test_a_new_tokenizer_never_mixes_with_the_old(parts: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "tokens"
    run(parts, output)
    add_tar(parts, FIRST, NUM_IMAGES)
    before = published_bytes(output)
    write_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="tokenizer_fingerprint"):
        run(parts, output, tokenizer=str(tmp_path / "other"))
    assert published_bytes(output) == before


def test_another_source_is_no_growth(parts: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "tokens"
    run(parts, output)
    with pytest.raises(UserError, match=r"source_digest: .*num_samples: 10, not 21"):
        run(parts, output, source=parts["images"])


def test_a_source_that_grows_before_the_end_is_refused(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "tokens"
    run(parts, output)
    (output / "tokens.json").unlink()
    add_tar(parts, FIRST, NUM_IMAGES)
    with pytest.raises(DataError, match="unfinished and its source has grown meanwhile"):
        run(parts, output)
