"""Decoded 256 px ADM-aligned batches: our backends beside the released code's path.

    python -m tests.benchmarks.data.decode FOLDER [--repeats N] [--count N]

FOLDER is a folder of images. Prints images per CPU-second (user and system time of the process,
one thread), images per second with a thread for every CPU, the mean absolute difference to the
released code's centre crop in grey levels (all images, and those it does not halve first), what
the pipeline around the decoder costs, and the share of the index arithmetic (order and crops).
Batches are dropped as soon as they are made, as a training loop does.
"""

from __future__ import annotations

import argparse
import functools
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.images.decoders.base import to_unit_range
from data_pipelines.images.decoders.dali import dali_is_installed
from data_pipelines.images.decoders.open import open_decoder
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.images.reader import ImageReader
from data_pipelines.images.source import ImageSource
from data_pipelines.manifest import ShardManifest
from data_pipelines.order.plan import SamplePlan
from data_pipelines.prefetch import Prefetcher
from data_pipelines.threads import default_threads
from data_pipelines.views import AdmCenterView, view_geometry

SIZE, BATCH = 256, 64
Run: TypeAlias = Callable[[int], Iterator[Any]]
"""Makes all batches with so many threads."""
REFERENCE, ARITHMETIC = "Pillow ADM (released code)", "order and crops alone, x10"


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


def cpu_seconds(run: Run) -> float:
    """CPU time of this process while it makes all batches with one thread."""
    began = time.process_time()
    for _ in run(1):
        pass
    return time.process_time() - began


def wall_seconds(run: Run) -> float:
    """Time by the clock while it makes all batches with a thread for every CPU."""
    began = time.perf_counter()
    for _ in run(default_threads()):
        pass
    return time.perf_counter() - began


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

    def pillow(self, threads: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(threads) as pool:
            for ids in self.batches:
                yield np.stack(list(pool.map(adm_center, self.reader.read(ids).data)))

    def decoder(self, kind: Any, threads: int) -> Iterator[np.ndarray]:
        decoder = open_decoder(kind, (SIZE, SIZE), threads=threads)
        for ids in self.batches:
            batch, geometry = self.geometry(ids)
            yield decoder.decode(batch.data, geometry).images.numpy()
        decoder.close()

    def pipeline(self, kind: Any, threads: int, *, to_float: bool) -> Iterator[Any]:
        """Order, reading, checksums, crops and decoding, made ahead; pixels or [-1, 1]."""
        decoder = open_decoder(kind, (SIZE, SIZE), threads=threads)
        source = ImageSource(self.manifest, self.spec, decoder, ErrorBudget(0), seed=0)
        plan = SamplePlan(self.manifest.digest, self.manifest.shard_sizes, BATCH, 0)
        make = source.batch if to_float else source.pixels
        with Prefetcher(
            lambda step: make(plan.batch_ids(step)), range(len(self.batches)), 2, threads
        ) as batches:
            yield from batches
        source.close()

    def conversion(self, _threads: int) -> Iterator[torch.Tensor]:
        """8-bit pixels to [-1, 1], which a GPU does for itself."""
        pixels = torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8)
        for _ in self.batches:
            yield to_unit_range(pixels)

    def arithmetic(self, _threads: int) -> Iterator[None]:
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
                yield None


def differences(bench: Bench, run: Run, reference: Sequence[np.ndarray]) -> str:
    """Mean absolute differences in grey levels: of all, and of images that are not halved."""
    found, small = [], []
    for ids, ours, theirs in zip(bench.batches, run(1), reference, strict=True):
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
        runs = runs_of(bench, kinds)
        print_table(bench, runs, *measure(runs, options.repeats))


def runs_of(bench: Bench, kinds: Sequence[str]) -> dict[str, Run]:
    """What is measured, by name."""
    runs: dict[str, Run] = {REFERENCE: bench.pillow}
    for kind in kinds:
        pipeline = functools.partial(bench.pipeline, kind)
        runs[f"{kind}, decoder"] = functools.partial(bench.decoder, kind)
        runs[f"{kind}, whole pipeline"] = functools.partial(pipeline, to_float=False)
        runs[f"{kind}, whole pipeline, [-1, 1]"] = functools.partial(pipeline, to_float=True)
    runs["conversion to [-1, 1] alone"] = bench.conversion
    runs[ARITHMETIC] = bench.arithmetic
    return runs


def measure(runs: dict[str, Run], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of CPU time and of time by the clock."""
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            cpu[name].append(cpu_seconds(run))
            wall[name].append(wall_seconds(run))
    return (
        {name: statistics.median(seconds) for name, seconds in cpu.items()},
        {name: statistics.median(seconds) for name, seconds in wall.items()},
    )


def print_table(
    bench: Bench, runs: dict[str, Run], cpu: dict[str, float], wall: dict[str, float]
) -> None:
    """The figures as Markdown."""
    share = cpu.pop(ARITHMETIC) / 10 / cpu["cpu, decoder"]
    reference = list(bench.pillow(1))
    print(
        "| | images per CPU-second | of Pillow ADM | images per second,"
        f" {default_threads()} threads | of Pillow ADM | difference | of those not halved |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in cpu:
        compared = name.endswith("decoder")
        apart = differences(bench, runs[name], reference) if compared else " | "
        columns = [
            f"{bench.num_images / seconds[name]:.0f} | {seconds[REFERENCE] / seconds[name]:.2f}"
            for seconds in (cpu, wall)
        ]
        print(f"| {name} | {' | '.join(columns)} | {apart} |")
    print(f"\norder and crops: {share:.2%} of the time of decoding")


if __name__ == "__main__":
    main()
