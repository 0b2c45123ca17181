"""iFSQ against FSQ against VQ at equal bits on small real images; writes docs/studies/pilot.md.

    python -m tests.benchmarks.study.run                      # everything, resumable
    python -m tests.benchmarks.study.run --only vq --seeds 1  # one run

Trains the recipes study/* with several seeds through the project's own loop, measures held-out
images, and writes a table and a plot. Finished runs are kept and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from data_pipelines.images.packing.pack import pack_folder
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config import ImageDataConfig, TrainConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.data.images import open_image_source
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.evaluation.codes import CodeUsage
from ifsq_train.evaluation.reconstruction import ReconstructionMeter
from ifsq_train.models.quantizers import FSQ
from ifsq_train.train import run
from tests.support.repository import SHARED

HERE = Path(__file__).resolve().parent

CIFAR = SHARED / "data" / "cifar10-train.tar.zst"
METHODS = ("ifsq", "fsq", "vq")
NUM_TRAIN, NUM_TEST = 20_000, 2_000


def main() -> None:
    """Train what is missing, then measure and write the report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", type=Path, default=Path("runs/study"))
    options.add_argument("--cifar", type=Path, default=CIFAR, help="tar.zst of class folders")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--only", choices=METHODS)
    options.add_argument("--steps", type=int, default=0, help="0: the recipes' own number")
    options.add_argument("--report", type=Path, help="folder for pilot.md and pilot.svg")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    args = options.parse_args()
    source = prepare(args.output / "data", args.cifar)
    runs = [(args.only or method, seed) for seed in args.seeds for method in METHODS]
    runs = list(dict.fromkeys(runs))
    if len(runs) > 1 and args.jobs > 1:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda one: run_apart(args, *one), runs))
    for method, seed in runs:
        record = train_and_measure(args.output, method, seed, args.steps)
        print(json.dumps({k: v for k, v in record.items() if k != "curve"}))
    if args.report:
        from tests.benchmarks.study.report import write_report

        write_report(args.output, args.report, source)


def run_apart(args: argparse.Namespace, method: str, seed: int) -> None:
    """One run in a process of its own on its share of the cores: small networks fill no more."""
    command = [sys.executable, __file__, "--output", str(args.output), "--cifar", str(args.cifar)]
    command += ["--only", method, "--seeds", str(seed), "--steps", str(args.steps)]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def prepare(folder: Path, cifar: Path) -> str:
    """Pack training and held-out images once; CIFAR-10 where it is, else scikit-learn's digits."""
    name = "CIFAR-10" if cifar.is_file() else "digits"
    if not (folder / "test" / "manifest.json").is_file():
        for part, chosen in (("train", lambda i: i >= 200), ("test", lambda i: i < 200)):
            images = folder / f"{part}-images"
            if cifar.is_file():
                extract_cifar(cifar, images, chosen)
            else:
                write_digits(images, chosen)
            pack_folder(images, str(folder / part), shard_bytes=2**25, seed=0)
    return name


def extract_cifar(archive: Path, target: Path, chosen) -> None:
    """The first images of every class: 200 held out, the following 2,000 to train on."""
    with (
        pa.OSFile(str(archive)) as raw,
        pa.CompressedInputStream(raw, "zstd") as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,  # type: ignore[arg-type]
    ):
        for member in tar:
            path = Path(member.name)
            if not member.isfile() or not path.stem.isdigit():
                continue
            number = int(path.stem)
            content = tar.extractfile(member)
            if number < (NUM_TRAIN + NUM_TEST) // 10 and chosen(number) and content:
                place = target / path.parent.name / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.read())


def write_digits(target: Path, chosen) -> None:
    """The 1,797 digits of scikit-learn at 32x32; every ninth of a class is held out."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if chosen(0 if number % 9 == 0 else 200):
            place = target / str(label) / f"{number:04d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((image * 255 / 16).astype(np.uint8))
            grey.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(place)


def train_and_measure(output: Path, method: str, seed: int, steps: int) -> dict:
    """One run's numbers; taken from its file if it has finished before."""
    folder = output / f"{method}-{seed}"
    result = folder / "study.json"
    if result.is_file():
        return json.loads(result.read_text())
    changes = [f"seed={seed}", f"output={folder}", f"data.url={output / 'data' / 'train'}"]
    changes += [f"steps={steps}"] if steps else []
    config = load_recipe(f"study/{method}", changes)
    assert isinstance(config, TrainConfig)
    wall, cpu = time.perf_counter(), cpu_seconds()
    run(config, InProcessContext())
    record = measure(folder, str(output / "data" / "test"), config)
    record |= {"method": method, "seed": seed, "steps": config.steps}
    record |= {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu}
    record["curve"] = list(training_curve(folder))
    result.write_text(json.dumps(record))
    return record


@torch.no_grad()
def measure(folder: Path, data: str, config: TrainConfig) -> dict:
    """Held-out reconstruction and code use."""
    assert isinstance(config.data, ImageDataConfig)
    network = load_tokenizer(folder).network
    quantizer = network.quantize
    fsq = quantizer if isinstance(quantizer, FSQ) else None
    levels = fsq.level_counts if fsq else None
    usage = CodeUsage(levels, quantizer.codebook_sizes)
    meter = ReconstructionMeter()
    source = open_image_source(
        data, config.data.view, decoder="cpu", seed=0, device=torch.device("cpu")
    )
    count = source.manifest.num_samples
    moments = []
    for first in range(0, count, 100):
        ids = torch.arange(first, min(first + 100, count)).numpy()
        images = source.batch(ids).images
        latents = network.quant_conv(network.encoder(images))
        moments.append(latents.transpose(0, 1).flatten(1))
        output = quantizer(latents)
        digits = fsq.indices_to_digits(output.indices) if fsq else None
        usage.update(digits, output.indices)
        meter.add(images, network.decode(output.latents))
    values = torch.cat(moments, 1)
    return {
        **meter.results(),
        **usage.result(),
        "prebound_mean": values.mean(1).tolist(),
        "prebound_std": values.std(1).tolist(),
    }


def training_curve(folder: Path) -> Iterator[tuple[int, float]]:
    """Step and training loss of every log line."""
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            yield record["step"], record["loss"]


def cpu_seconds() -> float:
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
