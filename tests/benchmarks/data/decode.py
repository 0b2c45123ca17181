"""Decoded 256 px ADM-aligned batches per CPU-second: our backends beside the released code's path.

    python tests/benchmarks/data/decode.py FOLDER [--repeats N] [--count N]

FOLDER is a folder of images. Prints images per CPU-second (user and system time of the process),
the mean absolute difference to the released code's centre crop in grey levels (all images, and
those it does not halve first), what the pipeline around the decoder costs, and the share of the
index arithmetic (order and crops).
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.images.budget import ErrorBudget
from data_pipelines.images.dali import dali_is_installed
from data_pipelines.images.decode import open_decoder, to_unit_range
from data_pipelines.images.pack import pack_folder
from data_pipelines.images.reader import ImageReader
from data_pipelines.images.source import ImageSource
from data_pipelines.manifest import ShardManifest
from data_pipelines.plan import SamplePlan
from data_pipelines.views import AdmCenterView, view_geometry

SIZE, BATCH = 256, 64


def adm_center(data: bytes | memoryview) -> np.ndarray:
    """The released code's centre crop, uint8 [3, 256, 256]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    while min(*image.size) >= 2 * SIZE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = SIZE / min(*image.size)
    size = (round(image.width * scale), round(image.height * scale))
    pixels = np.array(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - SIZE) // 2, (pixels.shape[1] - SIZE) // 2
    return pixels[top : top + SIZE, left : left + SIZE].transpose(2, 0, 1)


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of all threads of this process while the function runs, and its result."""
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


class Bench:
    """The images of a folder, packed, and everything that is measured on them."""

    def __init__(self, manifest: ShardManifest, count: int) -> None:
        self.manifest, self.spec = manifest, AdmCenterView(SIZE)
        self.batches = [
            np.arange(first, first + BATCH) for first in range(0, count - BATCH + 1, BATCH)
        ]
        self.reader = ImageReader(manifest)
        self.num_images = BATCH * len(self.batches)

    def geometry(self, ids: np.ndarray) -> Any:
        batch = self.reader.read(ids)
        return batch, view_geometry(
            self.spec, seed=0, epoch=0, sample_ids=ids, views=np.zeros_like(ids),
            heights=batch.heights, widths=batch.widths,
        )  # fmt: skip

    def pillow(self) -> list[np.ndarray]:
        return [np.stack([adm_center(d) for d in self.reader.read(i).data]) for i in self.batches]

    def decoder(self, kind: Any) -> list[np.ndarray]:
        decoder = open_decoder(kind, SIZE, threads=1)
        prepared = [self.geometry(ids) for ids in self.batches]
        images = [decoder.decode(b.data, g).images.numpy() for b, g in prepared]
        decoder.close()
        return images

    def pipeline(self, kind: Any) -> None:
        """Order, reading, checksums, crops and decoding: everything up to 8-bit pixels."""
        decoder = open_decoder(kind, SIZE, threads=1)
        source = ImageSource(self.manifest, self.spec, decoder, ErrorBudget(0), seed=0)
        plan = SamplePlan(self.manifest.digest, self.manifest.shard_sizes, BATCH, 0)
        requests = range(len(self.batches))
        for step in requests:
            source.pixels(plan.batch_ids(step))
        source.close()

    def conversion(self) -> None:
        """8-bit pixels to [-1, 1], which a GPU does for itself."""
        pixels = torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8)
        for _ in self.batches:
            to_unit_range(pixels)

    def arithmetic(self) -> None:
        """Order and crops alone, ten times over."""
        plan = SamplePlan(self.manifest.digest, self.manifest.shard_sizes, BATCH, 0)
        sizes = np.full(BATCH, 400)
        for _ in range(10):
            for step in range(len(self.batches)):
                ids = plan.batch_ids(step)
                view_geometry(
                    self.spec, seed=0, epoch=0, sample_ids=ids, views=np.zeros_like(ids),
                    heights=sizes, widths=sizes,
                )  # fmt: skip


def differences(bench: Bench, images: list[np.ndarray], reference: list[np.ndarray]) -> str:
    """Mean absolute differences in grey levels: of all, and of images that are not halved."""
    found, small = [], []
    for ids, ours, theirs in zip(bench.batches, images, reference, strict=True):
        batch = bench.reader.read(ids)
        means = np.abs(ours.astype(np.int16) - theirs).mean(axis=(1, 2, 3))
        found.extend(means)
        small.extend(means[np.minimum(batch.heights, batch.widths) < 2 * SIZE])
    return f"{np.mean(found):.3f} | {np.mean(small):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--count", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ["cpu", *(["dali"] if dali_is_installed() else [])]
    with tempfile.TemporaryDirectory() as scratch:
        manifest = pack_folder(options.folder, Path(scratch), max_bad_samples=100)
        bench = Bench(manifest, min(options.count, manifest.num_samples))
        spent: dict[str, list[float]] = {}
        images: dict[str, Any] = {}
        for _ in range(options.repeats):
            runs: dict[str, Callable[[], Any]] = {"Pillow ADM (released code)": bench.pillow}
            for kind in kinds:
                runs[f"{kind}, decoder"] = lambda kind=kind: bench.decoder(kind)
                runs[f"{kind}, whole pipeline"] = lambda kind=kind: bench.pipeline(kind)
            runs["conversion to [-1, 1] alone"] = bench.conversion
            runs["order and crops alone, x10"] = bench.arithmetic
            for name, run in runs.items():
                seconds, images[name] = cpu_seconds(run)
                spent.setdefault(name, []).append(seconds)
        reference = images["Pillow ADM (released code)"]
        baseline = statistics.median(spent["Pillow ADM (released code)"])
        print("| | images per CPU-second | of Pillow ADM | difference | of those not halved |")
        print("|---|---|---|---|---|")
        for name, seconds in spent.items():
            median = statistics.median(seconds)
            if "x10" in name:
                share = median / 10 / statistics.median(spent["cpu, decoder"])
                print(f"\norder and crops: {share:.2%} of the time of decoding")
                continue
            apart = differences(bench, images[name], reference) if images[name] else " | "
            rate = bench.num_images / median
            print(f"| {name} | {rate:.0f} | {baseline / median:.2f} | {apart} |")


if __name__ == "__main__":
    main()
