"""The images a recipe trains on: the same whoever loads them, and however often."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import UserError
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.manifest import ShardManifest
from ifsq_train.config import ImageDataConfig
from ifsq_train.data.batch import Batch
from ifsq_train.data.images import ImageTrainData, open_images
from ifsq_train.data.preview import dataset_config, preview_batch, recipe_config
from tests.support.image_folders import write_photos

pytestmark = pytest.mark.heavy

SEED, BATCH, STEPS = 11, 14, 10


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two datasets with the same classes: 60 and 21 images in several shards."""
    root = tmp_path_factory.mktemp("datasets")
    made = []
    for number, count in enumerate((60, 21)):
        photos = write_photos(root / f"photos{number}", count)
        made.append(pack_folder(photos, root / f"packed{number}", shard_bytes=20_000).storage.url)
    return made


def _open(
    datasets: list[str],
    mixed: bool = False,
    budget: ErrorBudget | None = None,
    threads: int = 1,
    **changes: Any,
) -> ImageTrainData:
    settings: dict[str, Any] = {
        "view": {"kind": "adm_random", "image_size": 32},
        "global_batch_size": BATCH,
        "shuffle_window": 16,
        **changes,
    }
    if mixed:
        settings["mix"] = [{"url": u, "weight": w} for u, w in zip(datasets, (5, 2), strict=True)]
    else:
        settings["url"] = datasets[0]
    config = ImageDataConfig.model_validate(settings)
    return open_images(
        config,
        seed=SEED,
        budget=budget or ErrorBudget(0),
        device=torch.device("cpu"),
        threads=threads,
    )


def _joined(parts: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    positions = np.concatenate([part.positions for part in parts]).tolist()
    images, labels = zip(*((part.inputs, part.labels) for part in parts), strict=True)
    return torch.cat(images), torch.cat(labels), positions


@pytest.mark.parametrize("mixed", [False, True], ids=["one", "mixed"])
def test_ten_batches_are_bit_identical_for_any_workers_threads_and_restarts(datasets, mixed):
    reference = _open(datasets, mixed)
    wanted = [reference.load(step, 0, 1) for step in range(STEPS)]
    for world_size, threads in itertools.product((1, 2, 3, 4, 7), (1, 2, 5)):
        # A fresh set of workers for every step: a resume at each of them.
        for step in range(STEPS):
            workers = _open(datasets, mixed, threads=threads)
            parts = [workers.load(step, rank, world_size) for rank in range(world_size)]
            images, labels, positions = _joined(parts)
            assert torch.equal(images, wanted[step].inputs)
            assert torch.equal(labels, wanted[step].labels)
            assert positions == list(range(BATCH))
            workers.source.close()


def test_samples_of_a_mixture_look_as_they_do_alone(datasets):
    mixed = _open(datasets, mixed=True)
    ids, epochs = mixed.plan.rank_ids(3, 0, 1), mixed.plan.rank_epochs(3, 0, 1)
    batch, alone = mixed.show(ids, epochs), _open(datasets[1:])
    second = np.flatnonzero(ids >= 60)
    assert len(second) == 4
    expected = alone.show(ids[second] - 60, epochs[second])
    assert torch.equal(batch.pixels[second], expected.pixels)
    assert [batch.keys[at] for at in second] == expected.keys
    assert torch.equal(batch.labels[second], expected.labels)


def test_labels_of_different_classes_are_dropped(datasets, tmp_path):
    photos = write_photos(tmp_path / "photos", 12)
    (photos / "class2").rename(photos / "other")
    foreign = pack_folder(photos, tmp_path / "packed").storage.url
    data = _open([datasets[0], foreign], mixed=True)
    assert data.load(0, 0, 1).labels.tolist() == [-1] * BATCH
    assert data.source.class_names == []


def test_repeated_samples_of_a_small_dataset_show_other_crops(datasets):
    data = _open(datasets, mixed=True)
    epochs = [int(data.plan.rank_epochs(step, 0, 1).max()) for step in (0, 40)]
    assert epochs[0] == 0
    assert epochs[1] > 3
    first, later = (data.show(np.array([70]), np.array([e])).pixels for e in epochs)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("sources", [{}, {"url": "a", "mix": [{"url": "b", "weight": 1}]}])
def test_one_source_is_needed(sources):
    view = {"kind": "adm_center", "image_size": 32}
    with pytest.raises(ValidationError, match="of url and mix; give exactly one"):
        ImageDataConfig.model_validate({"view": view, "global_batch_size": 4, **sources})


def test_one_in_fifty_damaged_files_is_left_out_when_packing(tmp_path):
    photos = write_photos(tmp_path / "photos", 200)
    files = sorted(photos.rglob("*.jpg"))
    rng = random.Random(1)
    damaged = rng.sample(files, 4)
    damages = [
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda _: b"a text in a file called .jpg\n" * 20,
        lambda data: bytes([data[0] ^ 64]) + data[1:],
    ]
    for path, damage in zip(damaged, damages, strict=True):
        path.write_bytes(damage(path.read_bytes()))
    # A wrong extension alone is no damage: the content decides.
    png = next(path for path in files if path not in damaged)
    Image.open(png).save(png, "PNG")
    manifest = pack_folder(photos, tmp_path / "packed", shard_bytes=60_000)
    lines = (tmp_path / "packed" / "quarantine.jsonl").read_text().splitlines()
    named = {json.loads(line)["key"] for line in lines}
    assert named == {path.relative_to(photos).as_posix() for path in damaged}
    assert manifest.num_samples == 196


def test_one_in_fifty_damaged_samples_are_named_and_harm_nobody_else(tmp_path):
    photos = write_photos(tmp_path / "photos", 200)
    manifest = pack_folder(photos, tmp_path / "packed", shard_bytes=60_000)
    url = [manifest.storage.url]
    whole = _open(url)
    steps = range(whole.plan.steps_per_epoch)
    expected = [whole.load(step, 0, 1) for step in steps]
    damaged = _damage(tmp_path / "packed", manifest, random.Random(2), 4)
    quarantine = tmp_path / "quarantine.jsonl"
    data = _open(url, budget=ErrorBudget(4, quarantine))
    for step in range(2 * len(steps)):
        batch = data.load(step, 0, 1)
        if step in steps:
            asked = data.plan.rank_ids(step, 0, 1)
            kept = [at for at, sample in enumerate(asked.tolist()) if sample not in damaged]
            assert torch.equal(batch.inputs[kept], expected[step].inputs[kept])
    named = {json.loads(line)["sample_id"] for line in quarantine.read_text().splitlines()}
    assert named == damaged


def _damage(folder: Path, manifest: ShardManifest, rng: random.Random, count: int) -> set[int]:
    """Some samples in the tars: a bit flipped, the end lost, emptied, or a text; their ids."""

    def flip(data: bytes) -> bytes:
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]

    kinds = [flip, lambda d: d[: len(d) // 2], lambda _: b"", lambda d: b"no image " * len(d)]
    ids = rng.sample(range(manifest.num_samples), count)
    for number, sample_id in enumerate(ids):
        (shard,), (row,) = (found.tolist() for found in manifest.locate(np.array([sample_id])))
        path, rows = folder / manifest.shard(shard).name, manifest.rows(shard)
        data = bytearray(path.read_bytes())
        start, size = int(rows.offset[row]), int(rows.size[row])
        kind = kinds[number % len(kinds)]
        # The tar keeps its layout, as storage that lost a block does.
        data[start : start + size] = kind(bytes(data[start : start + size]))[:size].ljust(
            size, b"\0"
        )
        path.write_bytes(data)
    return set(ids)


@pytest.mark.parametrize("recipe", ["llamagen/b-f8-ifsq-d4-4bit", "demo/tokens"])
def test_a_recipe_that_trains_on_no_images_has_no_preview(recipe: str) -> None:
    """One trains on tokens, one does not train."""
    with pytest.raises(UserError, match="trains on no images"):
        recipe_config(recipe, [])


def test_preview_is_one_picture_of_the_batch(datasets, tmp_path):
    config = dataset_config(datasets[0], "adm_center", 32, 9)
    output = tmp_path / "new" / "preview.png"
    assert preview_batch(config, 0, 2, 9, output) == 9
    sheet = np.asarray(Image.open(output))
    data = open_images(config, seed=0, budget=ErrorBudget(0), device=torch.device("cpu"))
    pixels = data.load_pixels(2, 0, 1).pixels.numpy()
    # Each 32-pixel image is enlarged threefold: find the first one by its exact pixels.
    first = np.repeat(np.repeat(pixels[0].transpose(1, 2, 0), 3, 0), 3, 1)
    height, width = first.shape[:2]
    found = [
        (y, x)
        for y in range(40)
        for x in range(20)
        if np.array_equal(sheet[y : y + height, x : x + width], first)
    ]
    assert len(found) == 1
