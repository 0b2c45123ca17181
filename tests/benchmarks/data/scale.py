"""What size costs: time to the first batch, memory of the order, memory over many batches.

python -m tests.benchmarks.data.scale startup     1.28 million samples, synthetic manifest
python -m tests.benchmarks.data.scale plan        2 billion samples
python -m tests.benchmarks.data.scale memory [--batches 50000]
python -m tests.benchmarks.data.scale shuffle     quality against the window
"""

from __future__ import annotations

import argparse
import gc
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from data_pipelines.order.plan import SamplePlan


def resident_megabytes() -> float:
    """Memory of this process that is its own: without mapped files."""
    memory = psutil.Process().memory_full_info()
    return memory.uss / 1e6


def startup() -> None:
    """Open a synthetic ImageNet-sized dataset in a fresh process and decode its first batch."""
    with tempfile.TemporaryDirectory() as scratch:
        _write_synthetic(Path(scratch), num_shards=560, per_shard=2288)
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, __file__, "first-batch", "--folder", scratch],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            print(done.stdout.strip())


def _write_synthetic(folder: Path, num_shards: int, per_shard: int) -> None:
    """A manifest of one real shard under many names."""
    from data_pipelines.images.packing.pack import pack_samples
    from data_pipelines.manifest import ShardEntry, publish_manifest
    from data_pipelines.storage.open import open_storage

    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((500, 375)).save(buffer, "JPEG")
    image = buffer.getvalue()
    one = folder / "one"
    manifest = pack_samples(((f"s{i}", image, i % 1000) for i in range(per_shard)), one)
    (only,) = manifest.shards()
    (folder / "index").mkdir()
    entries = []
    for number in range(num_shards):
        name, index_name = f"shard-{number:06d}.tar", f"index/shard-{number:06d}.arrow"
        (folder / name).hardlink_to(one / only.name)
        (folder / index_name).hardlink_to(one / only.index_name)
        entries.append(
            ShardEntry(
                name, per_shard, only.num_bytes, only.sha256, index_name, only.index_sha256,
                only.content_sha256,
            )
        )  # fmt: skip
    publish_manifest(open_storage(folder), entries, classes=[str(i) for i in range(1000)])


def first_batch(folder: Path) -> None:
    """Times within one process, imports apart."""
    from data_pipelines.bad_samples import ErrorBudget
    from data_pipelines.images.decoders.open import open_decoder
    from data_pipelines.images.source import ImageSource
    from data_pipelines.manifest import ShardManifest
    from data_pipelines.views import AdmRandomView

    began = time.perf_counter()
    manifest = ShardManifest.open(folder)
    opened = time.perf_counter() - began
    plan = SamplePlan(manifest.digest, manifest.shard_sizes, 1024, 0)
    source = ImageSource(
        manifest, AdmRandomView(256), open_decoder("cpu", (256, 256)), ErrorBudget(0), seed=0
    )
    ids = plan.rank_ids(0, 0, 32)
    source.batch(ids)
    total = time.perf_counter() - began
    print(
        f"{manifest.num_samples:,} samples in {manifest.num_shards} shards: opened in"
        f" {opened:.3f} s, first batch of {len(ids)} images after {total:.3f} s"
    )


def plan_memory() -> None:
    """The order of 2 billion samples in 200,000 shards."""
    gc.collect()
    before = resident_megabytes()
    sizes = np.full(200_000, 10_000)
    plan = SamplePlan("digest", sizes, 8192, seed=0, shuffle_window=65_536)
    plan.batch_ids(0)
    first = resident_megabytes() - before
    began = time.perf_counter()
    steps = 50
    for step in range(steps):
        plan.batch_ids(step * 4_000)
    milliseconds = (time.perf_counter() - began) / steps * 1000
    print(
        f"{plan.num_samples:,} samples: {first:.0f} MB for the order,"
        f" {resident_megabytes() - before:.0f} MB after {steps} batches,"
        f" {milliseconds:.1f} ms a batch of 8192"
    )


def memory(num_batches: int) -> None:
    """Resident memory while small images are read and decoded, batch after batch."""
    from data_pipelines.bad_samples import ErrorBudget
    from data_pipelines.images.decoders.open import open_decoder
    from data_pipelines.images.packing.pack import pack_samples
    from data_pipelines.images.source import ImageSource
    from data_pipelines.prefetch import Prefetcher
    from data_pipelines.views import RawView

    rng = np.random.default_rng(0)
    samples = []
    for number in range(2000):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        samples.append((f"s{number}", buffer.getvalue(), number % 10))
    with tempfile.TemporaryDirectory() as scratch:
        manifest = pack_samples(samples, scratch, shard_bytes=50_000)
        plan = SamplePlan(manifest.digest, manifest.shard_sizes, 8, 0, 256)
        source = ImageSource(
            manifest, RawView(image_size=8), open_decoder("cpu", (8, 8), threads=2), ErrorBudget(0),
            seed=0,
        )  # fmt: skip
        seen = []
        with Prefetcher(
            lambda step: source.batch(plan.batch_ids(step)), range(num_batches), 4, 2
        ) as batches:
            for number, _ in enumerate(batches):
                if number in (500, num_batches // 10, num_batches // 2, num_batches - 1):
                    seen.append((number, resident_megabytes()))
        for number, megabytes in seen:
            print(f"after {number:6d} batches: {megabytes:.1f} MB")


def shuffle() -> None:
    """Class-sorted shards of ImageNet's size: how well is a batch of 1024 mixed?"""
    num_samples, num_classes, per_class = 1_281_000, 1000, 1281
    shards = np.full(560, num_samples // 560)
    shards[: num_samples - shards.sum()] += 1
    ideal = num_classes * (1 - (1 - 1 / num_classes) ** 1024)
    print("| window | lanes | classes in a batch | read order against dataset order |")
    print("|---|---|---|---|")
    for window in (1, 1024, 4096, 16_384, 65_536, 2_000_000):
        plan = SamplePlan("digest", shards, 1024, 0, window)
        steps = np.linspace(0, plan.steps_per_epoch - 1, 200).astype(int)
        classes = [len(np.unique(plan.batch_ids(int(s)) // per_class)) for s in steps]
        sizes = range(plan.steps_per_epoch)
        order = np.concatenate([plan.batch_ids(step) for step in sizes])
        # Within stretches as a training sees them: the order in which their samples arrive.
        parts = [order[at : at + 16_384] for at in range(0, len(order) - 16_384, 16_384)]
        correlation = np.mean(
            [abs(np.corrcoef(np.arange(len(part)), part)[0, 1]) for part in parts]
        )
        print(f"| {window:,} | {plan.lanes} | {np.mean(classes):.0f} | {correlation:.4f} |")
    print(f"\na uniform shuffle has {ideal:.0f} classes in a batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    what = ("startup", "plan", "memory", "shuffle", "first-batch")
    parser.add_argument("what", choices=what)
    parser.add_argument("--batches", type=int, default=50_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.what == "startup":
        startup()
    elif options.what == "plan":
        plan_memory()
    elif options.what == "memory":
        memory(options.batches)
    elif options.what == "shuffle":
        shuffle()
    else:
        first_batch(options.folder)


if __name__ == "__main__":
    main()
