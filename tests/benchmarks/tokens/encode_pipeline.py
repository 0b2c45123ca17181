"""Images to token shards: the pipeline beside its bare encoder and beside the released manner.

    python -m tests.benchmarks.tokens.encode_pipeline [--data imagenet --images 64 ...]

Three ways with the same weights, in turns, each round in fresh processes, medians of the rounds:

bare      `TokenEncoder` on batches that lie in memory
pipeline  read, decode, crop, encode, pack, hash and publish shards
released  one image a step: DataLoader, Pillow ADM crop, its views as one batch, a .npy of codes and
          a .npy of the label per image (the way of the released extract_features.py)

The first two run with one encoder per core (`--encoders`), each on one thread as equal bits
need; the released way is one process with as many threads as torch takes. Time counts from when
all networks are loaded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.images.reader import ImageReader
from data_pipelines.manifest import ShardManifest
from data_pipelines.storage.open import open_storage
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config import PrecomputeConfig
from ifsq_train.precompute.encoder import open_encoder
from ifsq_train.precompute.job import ItemEncoder
from ifsq_train.precompute.progress import plan_items
from ifsq_train.precompute.stream import ListedItems, publishing
from tests.support.cifar import write_cifar
from tests.support.precompute_parts import write_tokenizer
from tests.support.repository import SHARED

IMAGENET = SHARED / "data" / "imagenet-sample"


def main() -> None:
    options = parse()
    folder = Path(tempfile.mkdtemp(prefix="encode-"))
    config = prepare(folder, options)
    images = min(options.images, ShardManifest.open(str(config.source)).num_samples)
    loose_files(config, folder / "loose", images)
    times: dict[str, list[float]] = {"bare": [], "pipeline": [], "released": []}
    for _ in range(options.rounds):
        for name, rates in times.items():
            count = 1 if name == "released" else options.encoders
            took = in_processes(name, count, config, folder, images)
            rates.append(images * config.view.num_views / took)
    rates = {name: statistics.median(values) for name, values in times.items()}
    for name, rate in rates.items():
        print(
            f"{name:9} {rate:9.1f} views/s  (rounds: {', '.join(f'{v:.1f}' for v in times[name])})"
        )
    print(f"pipeline / bare      {rates['pipeline'] / rates['bare']:.3f}")
    print(f"pipeline / released  {rates['pipeline'] / rates['released']:.2f}")
    shutil.rmtree(folder)


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data", choices=["cifar", "imagenet"], default="cifar")
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--base-channels", type=int, default=64)
    options.add_argument("--levels", type=int, default=3, help="resolutions of the encoder")
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--encoders", type=int, default=os.cpu_count())
    options.add_argument("--samples-per-shard", type=int, default=64)
    return options.parse_args()


def prepare(folder: Path, options: argparse.Namespace) -> PrecomputeConfig:
    if options.data == "cifar":
        source, size = write_cifar(folder / "images", options.images), 32
    else:
        few = sorted(IMAGENET.rglob("*.JPEG"))[: options.images]
        for path in few:
            link = folder / "few" / path.relative_to(IMAGENET)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        pack_folder(folder / "few", folder / "images", shard_bytes=64 << 20)
        source, size = folder / "images", 256
    model = {
        "base_channels": options.base_channels,
        "channel_multipliers": [1, 1, 2, 4, 4][: options.levels],
        "num_res_blocks": 2,
    }
    write_tokenizer(folder / "tokenizer", **model)
    return PrecomputeConfig.model_validate(
        {
            "kind": "precompute",
            "source": str(source),
            "tokenizer": str(folder / "tokenizer"),
            "output": str(folder / "tokens"),
            "view": {"kind": "center_flip", "image_size": size},
            "samples_per_shard": options.samples_per_shard,
            "batch_size": options.batch_size,
            "decoder": "cpu",
        }
    )


def in_processes(
    way: str, count: int, config: PrecomputeConfig, folder: Path, images: int
) -> float:
    """Seconds from when the last of `count` processes is ready until the last has ended."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(count + 1)
    arguments = (way, count, config.model_dump(), str(folder), images, ready)
    processes = [context.Process(target=work, args=(i, *arguments)) for i in range(count)]
    for process in processes:
        process.start()
    ready.wait(300)
    began = time.perf_counter()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return time.perf_counter() - began


def work(
    place: int, way: str, count: int, fields: dict[str, Any], folder: str, images: int, ready: Any
) -> None:
    """One process's share of a way."""
    config = PrecomputeConfig.model_validate(fields)
    WAYS[way](config, Path(folder), images, place, count, ready)


def bare(
    config: PrecomputeConfig, folder: Path, images: int, place: int, count: int, ready: Any
) -> None:
    """As many views as the share has, from a few batches in memory."""
    del folder, place
    encoder = open_encoder(config, "cpu")
    size, _ = config.view.size
    batches = [torch.rand(config.batch_size, 3, size, size) * 2 - 1 for _ in range(4)]
    encoder.encode(batches[0])
    ready.wait()
    for number in range(-(-images * config.view.num_views // config.batch_size // count)):
        encoder.encode(batches[number % len(batches)]).arrays()


def pipeline(
    config: PrecomputeConfig, folder: Path, images: int, place: int, count: int, ready: Any
) -> None:
    """Every `count`-th item, published."""
    del images
    encoder = ItemEncoder(config, "cpu", decode_threads=1)
    items = plan_items(encoder.spec)[place::count]
    output = open_storage(folder / "pipeline")
    ready.wait()
    for _ in encoder.make(ListedItems(items), publishing(output)):
        pass
    encoder.close()


class _ReleasedDataset(Dataset[Any]):
    """A file per image, cropped by Pillow as ADM does, and its mirror."""

    def __init__(self, paths: list[Path], labels: list[int], size: int) -> None:
        self.paths, self.labels, self.size = paths, labels, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self.paths[index]).convert("RGB")
        size = self.size
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = size / min(image.size)
        wanted = (round(image.width * scale), round(image.height * scale))
        pixels = np.array(image.resize(wanted, Image.Resampling.BICUBIC))
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        crop = torch.from_numpy(pixels[top : top + size, left : left + size]).permute(2, 0, 1)
        view = crop.float().div(255).sub(0.5).div(0.5)
        return torch.stack([view, view.flip(-1)]), self.labels[index]


def released(
    config: PrecomputeConfig, folder: Path, images: int, place: int, count: int, ready: Any
) -> None:
    """The published loop, with a loader process beside it."""
    del place, count
    files, labels = loose_files(config, folder / "loose", images)
    network = load_tokenizer(config.tokenizer).network.eval()
    output = Path(tempfile.mkdtemp(dir=folder))
    for name in ("codes", "labels"):
        (output / name).mkdir()
    dataset = _ReleasedDataset(files, labels, config.view.size[0])
    loader = DataLoader(dataset, batch_size=1, num_workers=1)
    ready.wait()
    for number, (views, label) in enumerate(loader):
        with torch.no_grad():
            indices = network.encode(views.flatten(0, 1)).indices
        codes = indices.reshape(1, views.shape[1], -1)
        np.save(output / "codes" / f"{number}.npy", codes.cpu().numpy())
        np.save(output / "labels" / f"{number}.npy", label.cpu().numpy())


def loose_files(
    config: PrecomputeConfig, folder: Path, images: int
) -> tuple[list[Path], list[int]]:
    folder.mkdir(exist_ok=True)
    samples = ImageReader(ShardManifest.open(str(config.source))).read(np.arange(images))
    paths, labels = [], []
    for sample in samples:
        path = folder / f"{sample.id}.jpg"
        if not path.exists():
            path.write_bytes(sample.data)
        paths.append(path)
        labels.append(sample.label)
    return paths, labels


WAYS: dict[str, Callable[..., None]] = {"bare": bare, "pipeline": pipeline, "released": released}

if __name__ == "__main__":
    main()
