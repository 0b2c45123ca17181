"""Images per second of DALI beside its decoder alone and the CPU path, and what must hold of it.

- `decoder alone`: fn.decoders.image without crop, resize or our geometry: what the hardware gives;
- `dali`: our decoder with crop windows and resize, from ids to pixels on the device;
- `cpu`: the CPU backend with as many threads, copied to the device.

The same image must have the same pixels in batches of 1, 7 and all, and both backends agree within
a mean of half a grey level. On a GPU DALI decodes on it (`mixed`), elsewhere on the CPU.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.images.decoders.open import open_decoder
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.images.reader import ImageReader
from data_pipelines.images.source import ImageSource
from data_pipelines.manifest import ShardManifest
from data_pipelines.order.plan import SamplePlan
from data_pipelines.views import AdmCenterView
from tests.benchmarks.gpu.bench import Bench


def measure_decode(bench: Bench) -> None:
    """Check and measure on the images of a folder, or on made ones."""
    if find_spec("nvidia.dali") is None:
        bench.emit("decode", skipped="DALI is not installed; pip install 'ifsq-train[dali]'")
        return
    threads, folder = min(8, os.cpu_count() or 1), bench.images
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            folder = Path(scratch) / "made"
            make_images(folder, bench.size(512, 24))
        manifest = pack_folder(folder, Path(scratch) / "packed", max_bad_samples=1000)
        batch = min(bench.size(256, 8), manifest.num_samples)
        plan = SamplePlan(manifest.digest, manifest.shard_sizes, batch, 0)
        check_pixels(bench, manifest, threads)
        for share in (0.0, 0.65, 1.0) if bench.device.type == "cuda" else (0.0,):
            run = decoder_alone(bench, manifest, plan, threads, share)
            rate = images_per_second(bench, run)
            bench.emit("decoder alone", hardware_share=share, images_per_s=round(rate))
        for kind in ("dali", "cpu"):
            source = source_of(bench, manifest, kind, threads)

            def run_source(step: int, source: ImageSource = source) -> int:
                return len(source.batch(plan.batch_ids(step)).images)

            rate = images_per_second(bench, run_source)
            bench.emit(f"decode, {source.decoder.name}", images_per_s=round(rate))
            source.close()


def make_images(folder: Path, count: int) -> None:
    """Smooth JPEGs of 500 x 375 pixels, the size of most of ImageNet."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class{number % 2}" / f"{number:04d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(place, quality=90)


def images_per_second(bench: Bench, run: Callable[[int], int]) -> float:
    """`run(step)` returns how many images it made; the first steps are not counted."""
    warm, seconds = (1, 0.2) if bench.tiny else (10, 10.0)
    for step in range(warm):
        run(step)
    bench.wait()
    began, count, step = time.perf_counter(), 0, warm
    while time.perf_counter() - began < seconds:
        count += run(step)
        step += 1
    bench.wait()
    return count / (time.perf_counter() - began)


def decoder_alone(
    bench: Bench, manifest: ShardManifest, plan: SamplePlan, threads: int, share: float
) -> Callable[[int], int]:
    """Decoding to RGB at full size and nothing else; `share` is the hardware decoder's part."""
    from nvidia.dali import fn, pipeline_def, types

    reader = ImageReader(manifest)
    cuda = bench.device.type == "cuda"
    options: dict[str, Any] = {"hw_decoder_load": share} if cuda else {}

    def pipeline() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.DALIDataType.UINT8, ndim=1)
        return fn.decoders.image(
            encoded,
            device="mixed" if cuda else "cpu",
            output_type=types.DALIImageType.RGB,
            **options,
        )

    make: Any = pipeline_def
    built = make(
        pipeline,
        batch_size=plan.global_batch_size,
        num_threads=threads,
        device_id=0 if cuda else None,
        prefetch_queue_depth=1,
    )()
    built.build()

    def run(step: int) -> int:
        data = reader.read(plan.batch_ids(step)).data
        encoded = [np.frombuffer(one, np.uint8) for one in data]
        stream = (torch.cuda.current_stream(),) if cuda else ()
        built.run(*stream, encoded=encoded)
        return len(data)

    return run


def source_of(bench: Bench, manifest: ShardManifest, kind: Any, threads: int) -> ImageSource:
    """A backend at 256 px in ADM's centre crop."""
    decoder = open_decoder(kind, (256, 256), bench.device.type, threads)
    return ImageSource(manifest, AdmCenterView(256), decoder, ErrorBudget(1000), seed=0)


def check_pixels(bench: Bench, manifest: ShardManifest, threads: int) -> None:
    """Pixels do not depend on the batch; backends agree."""
    ids = np.arange(min(64, manifest.num_samples))
    dali, cpu = (source_of(bench, manifest, kind, threads) for kind in ("dali", "cpu"))
    together = dali.pixels(ids).pixels
    for size in (1, 7):
        parts = [dali.pixels(ids[at : at + size]).pixels for at in range(0, len(ids), size)]
        bench.check(f"pixels in batches of {size}", torch.equal(torch.cat(parts), together))
    apart = (together.to(torch.int16) - cpu.pixels(ids).pixels.to(torch.int16)).abs()
    grey = float(apart.float().mean())
    bench.check("backends agree", grey < 0.5, grey=grey)
    for source in (dali, cpu):
        source.close()
