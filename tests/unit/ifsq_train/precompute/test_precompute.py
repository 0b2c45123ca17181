"""Precompute: every view once, the same bytes however it was interrupted, nobody else's folder."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import DataError, UserError
from data_pipelines.images.decoders.cpu import CpuDecoder
from data_pipelines.images.packing.index import index_tars
from data_pipelines.images.reader import ImageReader
from data_pipelines.images.source import ImageSource
from data_pipelines.manifest import ShardManifest
from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.verify import verify_tokens
from data_pipelines.work_items import WorkItem
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config import PrecomputeConfig
from ifsq_train.config.paths import with_absolute_paths
from ifsq_train.precompute.check import check_sample
from ifsq_train.precompute.encoder import EncodedViews, TokenEncoder
from ifsq_train.precompute.job import ItemEncoder, run_precompute_local
from ifsq_train.precompute.progress import PrecomputeRun, pending_items, plan_items
from ifsq_train.precompute.stream import ListedItems, publishing
from tests.support.precompute_parts import (
    NUM_IMAGES,
    NUM_VIEWS,
    SHARDS,
    configure,
    make_parts,
    published_bytes,
    write_tokenizer,
)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_parts(tmp_path_factory.mktemp("precompute"))


@pytest.fixture(scope="session")
def undisturbed(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing happened to; not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "tokens"
    run_precompute_local(configure(parts, folder), device="cpu")
    return folder


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(undisturbed, tmp_path / "tokens")
    return tmp_path / "tokens"


def shard(folder: Path, index: int) -> Path:
    return folder / f"shards/tokens-{index:08}.arrow"


def run(config: PrecomputeConfig) -> Any:
    return run_precompute_local(config, device="cpu")


def test_items_cover_all_samples_once(undisturbed: Path) -> None:
    """Also of a source that had 10 samples once and then 15."""
    spec = replace(TokenDataset.open(undisturbed).spec, num_samples=10)
    assert plan_items(spec) == [WorkItem(0, 0, 4), WorkItem(1, 4, 4), WorkItem(2, 8, 2)]
    grown = replace(spec, num_samples=15, grown_from=((10, "d"),))
    assert plan_items(grown) == [*plan_items(spec), WorkItem(3, 10, 4), WorkItem(4, 14, 1)]


def test_report_and_callback_count_every_row(parts: dict[str, Any], tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    config = configure(parts, tmp_path / "tokens")
    report = run_precompute_local(config, lambda *call: calls.append(call), device="cpu")
    rows = NUM_IMAGES * NUM_VIEWS
    assert (report.rows, report.expected_rows) == (rows, rows)
    assert (report.missing_rows, report.duplicate_rows, report.num_bad_samples) == (0, 0, 0)
    assert (report.items_done, report.items_skipped) == (SHARDS, 0)
    assert calls == [(i + 1, SHARDS, min(8 * (i + 1), rows)) for i in range(SHARDS)]


def test_tokens_are_those_of_the_tokenizer(parts: dict[str, Any], undisturbed: Path) -> None:
    trained = load_tokenizer(parts["tokenizer"])
    config = configure(parts, undisturbed)
    source = ImageSource(
        ShardManifest.open(str(config.source)),
        config.view,
        CpuDecoder((16, 16)),
        ErrorBudget(0),
        seed=0,
    )
    ids, views = np.array([20, 3, 3]), np.array([1, 0, 1])
    images = source.batch(ids, views=views)
    with torch.no_grad():
        indices = trained.network.encode(images.images).indices
    dataset = TokenDataset.open(undisturbed, expected_fingerprint=trained.fingerprint)
    stored = dataset.read(ids, views)
    assert np.array_equal(stored.tokens, indices.flatten(1).numpy())
    assert np.array_equal(stored.labels, images.labels.numpy())


def test_latent_statistics_are_those_of_the_stored_tokens(
    parts: dict[str, Any], undisturbed: Path
) -> None:
    dataset = TokenDataset.open(undisturbed)
    ids = np.repeat(np.arange(NUM_IMAGES), NUM_VIEWS)
    tokens = dataset.read(ids, np.tile(np.arange(NUM_VIEWS), NUM_IMAGES)).tokens
    quantizer = load_tokenizer(parts["tokenizer"]).network.quantize
    latents = quantizer.indices_to_latents(torch.from_numpy(tokens).view(-1, 8, 8, 1)).numpy()
    statistics = dataset.spec.latent_statistics
    assert statistics is not None
    np.testing.assert_allclose(statistics.mean, latents.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(statistics.std, latents.std((0, 2, 3)), rtol=1e-5)


def test_the_same_job_gives_the_same_bytes(
    parts: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    run(configure(parts, tmp_path / "again"))
    assert published_bytes(tmp_path / "again") == published_bytes(undisturbed)


def test_number_of_threads_changes_no_byte(
    parts: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads % 2 + 1)
    try:
        run(configure(parts, tmp_path / "again"))
    finally:
        torch.set_num_threads(threads)
    assert published_bytes(tmp_path / "again") == published_bytes(undisturbed)


def test_shard_size_changes_no_token(
    parts: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    run(configure(parts, tmp_path / "other", samples_per_shard=5))
    ids = np.arange(NUM_IMAGES)
    one, other = TokenDataset.open(undisturbed), TokenDataset.open(tmp_path / "other")
    assert np.array_equal(one.read(ids).tokens, other.read(ids).tokens)


def test_resuming_makes_the_missing_shards_only(
    parts: dict[str, Any], undisturbed: Path, finished: Path
) -> None:
    for path in (shard(finished, 1), shard(finished, 5), finished / "tokens.json"):
        path.unlink()
    report = run(configure(parts, finished))
    assert (report.items_done, report.items_skipped) == (2, SHARDS - 2)
    assert published_bytes(finished) == published_bytes(undisturbed)


def test_shard_lost_after_publication_is_made_again(
    parts: dict[str, Any], undisturbed: Path, finished: Path
) -> None:
    shard(finished, 2).unlink()
    assert run(configure(parts, finished)).items_done == 1
    assert published_bytes(finished) == published_bytes(undisturbed)


def test_damaged_shard_of_an_unfinished_job_is_made_again(
    parts: dict[str, Any], undisturbed: Path, finished: Path
) -> None:
    (finished / "tokens.json").unlink()
    data = bytearray(shard(finished, 3).read_bytes())
    data[len(data) // 2] ^= 1
    shard(finished, 3).write_bytes(data)
    assert run(configure(parts, finished)).items_done == 1
    assert published_bytes(finished) == published_bytes(undisturbed)


def test_finished_job_is_left_alone(parts: dict[str, Any], finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    report = run(configure(parts, finished))
    assert (report.items_done, report.items_skipped) == (0, SHARDS)
    assert report.rows == report.expected_rows
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize("publish", [True, False])
@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("view_seed", 1, "view_seed: 0, not 1"),
        ("batch_size", 4, "batch_size: 3, not 4"),
        ("samples_per_shard", 8, "samples_per_shard: 4, not 8"),
        ("view", {"kind": "adm_center", "image_size": 16}, "view: "),
    ],
)
def test_folder_of_another_job_is_refused(
    parts: dict[str, Any], finished: Path, publish: bool, field: str, value: Any, named: str
) -> None:
    if not publish:
        (finished / "tokens.json").unlink()
    before = published_bytes(finished)
    with pytest.raises(UserError, match="was begun with other settings") as error:
        run(configure(parts, finished, **{field: value}))
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert published_bytes(finished) == before


def test_folder_of_another_tokenizer_is_refused(
    parts: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path / "other", seed=1)
    other = load_tokenizer(tmp_path / "other").fingerprint
    with pytest.raises(UserError, match=f"tokenizer_fingerprint: .*, not .{other}"):
        run(configure(parts, finished, tokenizer=str(tmp_path / "other")))


def test_shards_of_another_job_are_not_deleted(parts: dict[str, Any], finished: Path) -> None:
    for name in ("job.json", "tokens.json"):
        (finished / name).unlink()
    before = shard(finished, 0).read_bytes()
    with pytest.raises(UserError, match="of another job"):
        run(configure(parts, finished, view_seed=1))
    assert shard(finished, 0).read_bytes() == before


def test_item_does_not_depend_on_what_shared_its_batches(
    parts: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    config = configure(parts, undisturbed)
    encoder = ItemEncoder(config)
    items = plan_items(encoder.spec)
    for order in ([5, 0, 2], [2]):
        output = open_storage(tmp_path / f"{len(order)}")
        feed = ListedItems([items[index] for index in order])
        assert {result.item.index for result in encoder.make(feed, publishing(output))} == set(
            order
        )
        for index in order:
            made = output.read(f"shards/tokens-{index:08}.arrow")
            assert made == shard(undisturbed, index).read_bytes()
    encoder.close()


def test_large_images_are_encoded_a_few_at_a_time_and_alike(tmp_path: Path) -> None:
    """At 256 px a CPU takes two at once: five images, one alone, and a place in the middle."""
    write_tokenizer(tmp_path / "tokenizer", base_channels=32, channel_multipliers=[1, 1])
    encoder = TokenEncoder(load_tokenizer(str(tmp_path / "tokenizer")).network, "cpu", 5)
    images = torch.rand(5, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = encoder.encode(images)
    assert together.tokens.shape[:1] == together.latents.shape[:1] == (5,)
    for place in (0, 3, 4):
        alone = encoder.encode(images[place : place + 1])
        assert torch.equal(alone.tokens[0], together.tokens[place])
        assert torch.equal(alone.latents[0], together.latents[place])


def test_half_there_folder_is_no_dataset(parts: dict[str, Any], tmp_path: Path) -> None:
    config, storage = configure(parts, tmp_path), open_storage(tmp_path)
    encoder = ItemEncoder(config)
    job = PrecomputeRun(storage, encoder.spec, 0)
    items = next(job.rounds())
    list(encoder.make(ListedItems(items[:1]), publishing(storage)))
    assert [item.index for item in pending_items(storage, items)] == [1, 2, 3, 4, 5]
    with pytest.raises(DataError, match=r"1 of 6 shards.*run ifsq precompute again"):
        TokenDataset.open(tmp_path)


def cut_images(parts: dict[str, Any], folder: Path, count: int) -> dict[str, Any]:
    """The parts with a dataset of the same images, the first of which are cut in half."""
    manifest = ShardManifest.open(parts["source"])
    folder.mkdir()
    with tarfile.open(folder / "images.tar", "w") as tar:
        for sample in ImageReader(manifest).read(np.arange(NUM_IMAGES)):
            size = len(sample.data) // (2 if sample.id < count else 1)
            entry = tarfile.TarInfo(f"{sample.id:03}.jpg")
            entry.size = size
            tar.addfile(entry, io.BytesIO(bytes(sample.data[:size])))
    index_tars(folder, validate=False)
    return {**parts, "source": str(folder)}


def test_bad_image_is_replaced_named_and_counted(parts: dict[str, Any], tmp_path: Path) -> None:
    broken = cut_images(parts, tmp_path / "dataset", 1)
    report = run(configure(broken, tmp_path / "tokens"))
    assert report.rows == report.expected_rows
    assert report.num_bad_samples == 1
    (line,) = (tmp_path / "tokens/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["sample_id"] == 0
    assert verify_tokens(tmp_path / "tokens").ok


def test_too_many_bad_images_end_the_run(parts: dict[str, Any], tmp_path: Path) -> None:
    broken = cut_images(parts, tmp_path / "dataset", 9)
    with pytest.raises(DataError, match="more than max_bad_samples=4"):
        run(configure(broken, tmp_path / "tokens", max_bad_samples=4))


def test_image_size_that_is_no_whole_number_of_tokens_is_refused(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    view = {"kind": "adm_center", "image_size": 17}
    with pytest.raises(UserError, match=r"image_size=17 .* 2 pixels per token; use 16"):
        run(configure(parts, tmp_path, view=view))


def test_samples_made_again_are_the_same(parts: dict[str, Any], undisturbed: Path) -> None:
    report = check_sample(configure(parts, undisturbed), 7, device="cpu")
    assert (report.ok, report.samples, report.rows) == (True, 7, 7 * NUM_VIEWS)
    assert report.tokens == report.rows * 64


def test_a_dataset_that_is_not_what_the_tokenizer_makes_is_found(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that no checksum shows: the wrong tokens were written in good order."""
    encode = TokenEncoder.encode

    def shifted(self: TokenEncoder, images: torch.Tensor) -> EncodedViews:
        views = encode(self, images)
        return replace(views, tokens=views.tokens.flip(-2))

    config = configure(parts, tmp_path / "tokens")
    with monkeypatch.context() as patch:
        patch.setattr(TokenEncoder, "encode", shifted)
        run(config)
    assert verify_tokens(tmp_path / "tokens").ok
    report = check_sample(config, 3, device="cpu")
    assert not report.ok
    assert set(report.differing) == {"tokens"}
    assert "tokens differ" in str(report)
    with pytest.raises(UserError, match="view_seed: 0, not 1"):
        check_sample(configure(parts, tmp_path / "tokens", view_seed=1), 3, device="cpu")


def test_paths_become_absolute_but_urls_stay(parts: dict[str, Any]) -> None:
    config = configure(parts, Path("tokens"), source="s3://bucket/data")
    absolute = with_absolute_paths(config)
    assert absolute.output == str(Path.cwd() / "tokens")
    assert absolute.source == "s3://bucket/data"
