"""Packing and decoding on Ray: the same bytes and pixels, whoever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import DataError
from data_pipelines.images.packing.index import index_tars
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.manifest import ShardManifest
from ifsq_train.config import ImageDataConfig
from ifsq_train.data.images import open_images
from launchers.on_ray.cluster import ray_session
from launchers.on_ray.decode_pool import DecodePool, PooledImages, pooled_images
from launchers.on_ray.shards import shards_on_ray
from tests.support.image_folders import write_photos

SEED, BATCH, STEPS = 5, 14, 10


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with ray_session(None, min_cpus=3) as started:
        yield started


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("ray") / "photos", 60)


@pytest.fixture(scope="module")
def dataset(photos: Path) -> ShardManifest:
    return pack_folder(photos, photos.parent / "here", shard_bytes=20_000)


def _files(folder: Path) -> dict[str, bytes]:
    # A killed worker's temporary file is invisible to readers and removed by a later run.
    paths = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".tmp-"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _kill_one(name: str) -> bool:
    """End a Ray worker of this test's own cluster, as the kernel's memory killer would."""
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in process.name() or name in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                return True
    return False


def _kill_when_seen(name: str, killed: threading.Event) -> None:
    """Look for a worker at work until there is one."""
    deadline = time.monotonic() + 60
    while not killed.is_set() and time.monotonic() < deadline:
        if _kill_one(name):
            killed.set()


def _config(dataset: ShardManifest, **changes: Any) -> ImageDataConfig:
    return ImageDataConfig.model_validate(
        {
            "url": dataset.storage.url,
            "view": {"kind": "adm_random", "image_size": 32},
            "global_batch_size": BATCH,
            "shuffle_window": 16,
            **changes,
        }
    )


def test_packing_on_ray_gives_the_same_bytes_though_workers_die(ray, photos, dataset):
    killed = threading.Event()
    killer = threading.Thread(target=_kill_when_seen, args=("ray::_apply", killed), daemon=True)
    killer.start()
    with shards_on_ray(2, None) as map_shards:
        target = photos.parent / "on-ray"
        manifest = pack_folder(photos, target, shard_bytes=20_000, map_shards=map_shards)
        assert killed.is_set(), "no worker was seen at work"
        assert manifest.digest == dataset.digest
        assert _files(target) == _files(photos.parent / "here")
        index = photos.parent / "index"
        assert index_tars(target, index, map_shards=map_shards).num_samples == 60


def test_bad_images_of_all_workers_share_one_budget(ray, photos, tmp_path):
    source = tmp_path / "source"
    for number in range(6):
        folder = source / f"class{number}"
        folder.mkdir(parents=True)
        (folder / "bad.jpg").write_bytes(b"junk")
    with (
        shards_on_ray(2, None) as map_shards,
        pytest.raises(DataError, match="4 bad samples are more than max_bad_samples=3"),
    ):
        pack_folder(
            source, tmp_path / "out", shard_bytes=1, max_bad_samples=3, map_shards=map_shards
        )


def _pooled(ray: Any, config: ImageDataConfig, budget: ErrorBudget | None = None) -> PooledImages:
    return pooled_images(ray, config, seed=SEED, budget=budget or ErrorBudget(0), num_actors=2)


def test_pool_makes_the_same_batches_though_an_actor_dies(ray, dataset):
    config = _config(dataset)
    local = open_images(config, seed=SEED, budget=ErrorBudget(0), device=torch.device("cpu"))
    pooled = _pooled(ray, config)
    for step in range(STEPS):
        if step == 4:
            assert _kill_one("ray::DecodeActor")
        ours, theirs = local.load(step, 0, 1), pooled.load(step, 0, 1)
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.positions, theirs.positions)
    assert pooled.pool.restarts == 1
    # A resumed trainer, of another world size: its share is cut out of the same batch.
    share = pooled.load(3, 1, 3)
    whole = local.load(3, 0, 1)
    assert torch.equal(share.inputs, whole.inputs[share.positions])
    pooled.pool.close()


def test_pool_works_no_further_ahead_than_asked(ray):
    class Slow:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def open(self) -> None:
            pass

        def make(self, share: Any) -> Any:
            self.asked.append(share.step)
            pixels = np.zeros((0, 3, 1, 1), np.uint8)
            from data_pipelines.images.source import PixelBatch

            labels = torch.zeros(0, dtype=torch.int64)
            empty = np.zeros(0, np.int64)
            return PixelBatch(pixels, labels, empty, [], empty, [], [])  # type: ignore[arg-type]

        def seen(self) -> list[int]:
            return self.asked

    from launchers.on_ray.decode_pool import Share

    started: list[Any] = []

    def start() -> Any:
        started.append(ray.remote(Slow).options(num_cpus=0).remote())
        return started[-1]

    pool = DecodePool(ray, start, 2)
    for step in range(6):
        pool.take(Share(step, 0, 1))
    asked = sorted(step for actor in started for step in ray.get(actor.seen.remote()))
    assert len(asked) == len(set(asked))
    assert set(range(6)) <= set(asked) <= set(range(5 + pool.batches_ahead))
    pool.close()


def test_bad_samples_met_by_actors_are_counted_once_by_the_trainer(ray, photos, tmp_path):
    folder = tmp_path / "tars"
    manifest = pack_folder(photos, folder, shard_bytes=20_000)
    _zero_image(folder, manifest, 7)
    quarantine = tmp_path / "quarantine.jsonl"
    pooled = _pooled(ray, _config(manifest), ErrorBudget(1, quarantine))
    for step in range(2 * pooled.plan.steps_per_epoch):
        pooled.load(step, 0, 1)
    pooled.pool.close()
    (line,) = quarantine.read_text().splitlines()
    assert '"sample_id": 7' in line


def _zero_image(folder: Path, manifest: ShardManifest, sample_id: int) -> None:
    (shard,), (row,) = (found.tolist() for found in manifest.locate(np.array([sample_id])))
    path, rows = folder / manifest.shard(shard).name, manifest.rows(shard)
    data, start = bytearray(path.read_bytes()), int(rows.offset[row])
    data[start : start + int(rows.size[row])] = bytes(int(rows.size[row]))
    path.write_bytes(data)
