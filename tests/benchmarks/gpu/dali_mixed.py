"""Images per second of DALI `mixed` on a GPU, beside the GPU's decoder alone and the CPU path.

    python tests/benchmarks/gpu/dali_mixed.py FOLDER [--batch 256] [--seconds 10] [--threads 8]

FOLDER is a folder of images. Three things are measured at 256 px, whole batches, wall clock:

- `decoder alone`: fn.decoders.image(device="mixed") without crop, resize or our geometry: what the
  hardware gives;
- `dali-mixed`: our decoder with crop windows and resize, from ids to pixels on the GPU;
- `cpu`: the CPU backend with as many threads, copied to the GPU.

It also checks what a GPU must keep: the same image has the same pixels in batches of 1, 7 and all,
and both backends agree within a mean of half a grey level.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.images.budget import ErrorBudget
from data_pipelines.images.decode import open_decoder
from data_pipelines.images.pack import pack_folder
from data_pipelines.images.reader import ImageReader
from data_pipelines.images.source import ImageSource
from data_pipelines.manifest import ShardManifest
from data_pipelines.plan import SamplePlan
from data_pipelines.views import AdmCenterView

SIZE = 256


def images_per_second(run: Callable[[int], int], seconds: float) -> float:
    """`run(step)` returns how many images it made; ten steps are not counted."""
    for step in range(10):
        run(step)
    torch.cuda.synchronize()
    began, count, step = time.perf_counter(), 0, 10
    while time.perf_counter() - began < seconds:
        count += run(step)
        step += 1
    torch.cuda.synchronize()
    return count / (time.perf_counter() - began)


def decoder_alone(
    manifest: ShardManifest, plan: SamplePlan, batch: int, threads: int, hw_load: float
) -> Callable[[int], int]:
    """Decoding to RGB at full size and nothing else; `hw_load` is the hardware decoder's part."""
    from nvidia.dali import fn, pipeline_def, types

    reader = ImageReader(manifest)

    def pipeline() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.DALIDataType.UINT8, ndim=1)
        return fn.decoders.image(
            encoded, device="mixed", output_type=types.DALIImageType.RGB, hw_decoder_load=hw_load,
        )  # fmt: skip

    make: Any = pipeline_def
    built = make(
        pipeline, batch_size=batch, num_threads=threads, device_id=0, prefetch_queue_depth=1
    )()
    built.build()

    def run(step: int) -> int:
        data = reader.read(plan.batch_ids(step)).data
        built.run(torch.cuda.current_stream(), encoded=[np.frombuffer(d, np.uint8) for d in data])
        return len(data)

    return run


def source_of(manifest: ShardManifest, kind: Any, threads: int) -> ImageSource:
    decoder = open_decoder(kind, SIZE, "cuda", threads)
    return ImageSource(manifest, AdmCenterView(SIZE), decoder, ErrorBudget(1000), seed=0)


def check(manifest: ShardManifest, threads: int) -> None:
    """Pixels do not depend on the batch; backends agree."""
    ids = np.arange(min(64, manifest.num_samples))
    mixed, cpu = (source_of(manifest, kind, threads) for kind in ("dali", "cpu"))
    together = mixed.pixels(ids).pixels
    for size in (1, 7):
        parts = [mixed.pixels(ids[at : at + size]).pixels for at in range(0, len(ids), size)]
        same = torch.equal(torch.cat(parts), together)
        print(f"pixels in batches of {size}: {'the same' if same else 'DIFFERENT'}")
    apart = (together.to(torch.int16) - cpu.pixels(ids).pixels.to(torch.int16)).abs()
    print(f"mean difference of the backends: {apart.float().mean():.3f} grey levels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device is here; this script measures one")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = pack_folder(options.folder, Path(scratch), max_bad_samples=1000)
        plan = SamplePlan(
            manifest.digest, manifest.shard_sizes, min(options.batch, manifest.num_samples), 0
        )
        check(manifest, options.threads)
        for hw_load in (0.0, 0.65, 1.0):
            run = decoder_alone(manifest, plan, plan.global_batch_size, options.threads, hw_load)
            rate = images_per_second(run, options.seconds)
            print(f"decoder alone, hardware share {hw_load}: {rate:.0f} images/s")
        for kind in ("dali", "cpu"):
            source = source_of(manifest, kind, options.threads)

            def run_source(step: int, source: ImageSource = source) -> int:
                return len(source.batch(plan.batch_ids(step)).images)

            rate = images_per_second(run_source, options.seconds)
            print(f"{source.decoder.name}: {rate:.0f} images/s")
            source.close()


if __name__ == "__main__":
    main()
