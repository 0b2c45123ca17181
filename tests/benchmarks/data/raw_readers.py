"""Raw samples handed to the decoder per CPU-second: our reader beside its peers.

Every reader runs in a process of its own, without worker processes, over the same images from the
page cache, opens them once, reads them several times over as a training does, and touches every
page of every sample. CPU time is user and system time of the process after its first hundred
samples, for the first pass (memory maps are populated by it) and for the later ones. Ray Data
always works in other processes and ahead: for it the time of all of them counts, after one pass
more. Peers that cannot be imported are left out.

    python -m tests.benchmarks.data.raw_readers FOLDER [--copies N] [--passes N] [--python PYTHON]

FOLDER is a folder of class folders of images; `--copies` repeats it to have enough samples;
`--python` names the interpreter of an environment that has the peers (webdataset, litdata,
mosaicml-streaming, torch; DALI and Ray are looked for in this one).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH, WARM_UP, PAGE = 256, 100, 4096
SHARD_BYTES = 64 << 20
PASS_ENDS = None
RAY_DATA = "Ray Data"
HERE = ("ours", "DALI webdataset reader", RAY_DATA)
"""Readers of this environment."""


def read_ours(folder: Path, passes: int) -> Iterator[Any]:
    from data_pipelines.images.reader import ImageReader
    from data_pipelines.manifest import ShardManifest
    from data_pipelines.order.plan import SamplePlan

    manifest = ShardManifest.open(folder / "packed")
    plan = SamplePlan(manifest.digest, manifest.shard_sizes, BATCH, 0)
    reader = ImageReader(manifest)
    for step in range(passes * plan.steps_per_epoch):
        yield from reader.read(plan.batch_ids(step)).data
        if plan.epoch(step) != plan.epoch(step + 1):
            yield PASS_ENDS


def read_webdataset(folder: Path, passes: int) -> Iterator[Any]:
    from webdataset.compat import WebDataset

    urls = sorted(str(path) for path in (folder / "packed").glob("*.tar"))
    data: Any = WebDataset(urls, shardshuffle=len(urls), seed=0)
    shuffled = data.shuffle(1000)
    for _ in range(passes):
        for sample in shuffled:
            yield sample.get("jpg") or sample.get("jpeg") or sample["png"]
        yield PASS_ENDS


def read_loose(folder: Path, passes: int) -> Iterator[Any]:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset):
        def __init__(self) -> None:
            self.paths = (folder / "files.txt").read_text().splitlines()

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> bytes:
            with open(self.paths[index], "rb") as file:  # noqa: PTH123
                return file.read()

    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(Files(), BATCH, shuffle=True, collate_fn=list, generator=generator)
    for _ in range(passes):
        for batch in loader:
            yield from batch
        yield PASS_ENDS


def read_streaming(folder: Path, passes: int) -> Iterator[Any]:
    streaming: Any = importlib.import_module("streaming")
    data = streaming.StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    for _ in range(passes):
        for sample in data:
            yield sample["image"]
        yield PASS_ENDS


def read_litdata(folder: Path, passes: int) -> Iterator[Any]:
    litdata: Any = importlib.import_module("litdata")
    data = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True)
    for _ in range(passes):
        for sample in data:
            yield sample["image"]
        yield PASS_ENDS


def read_dali(folder: Path, passes: int) -> Iterator[Any]:
    from nvidia.dali import fn, pipeline_def

    paths = sorted(str(path) for path in (folder / "packed").glob("*.tar"))
    indices = [path.removesuffix(".tar") + ".idx" for path in paths]

    make: Any = pipeline_def  # its stub refuses device_id=None, which means no GPU

    @make(batch_size=BATCH, num_threads=1, device_id=None)
    def pipeline() -> Any:
        return fn.readers.webdataset(
            paths=paths, index_paths=indices, ext=["jpg;jpeg;png"], random_shuffle=True,
            initial_fill=1000, name="reader", missing_component_behavior="error",
        )  # fmt: skip

    running: Any = pipeline()
    running.build()
    for _ in range(passes):
        for _ in range(running.epoch_size("reader") // BATCH):
            (images,) = running.run()
            for at in range(len(images)):
                yield memoryview(images.at(at))
        yield PASS_ENDS


def read_ray(folder: Path, passes: int) -> Iterator[Any]:
    import ray
    import ray.data

    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    paths = sorted(str(path) for path in (folder / "packed").glob("*.tar"))
    data = ray.data.read_webdataset(paths, decoder=None, shuffle="files")
    for _ in range(passes):
        for batch in data.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=1000):
            yield from batch["jpg"]
        yield PASS_ENDS


READERS: dict[str, Callable[[Path, int], Iterator[Any]]] = {
    "ours": read_ours,
    "webdataset": read_webdataset,
    "loose files, DataLoader": read_loose,
    "MosaicML Streaming": read_streaming,
    "litdata": read_litdata,
    "DALI webdataset reader": read_dali,
    RAY_DATA: read_ray,
}


def tree_seconds() -> float:
    """User and system time of this process and of all below it that are alive."""
    import psutil

    spent = time.process_time()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


def measure(name: str, folder: Path, passes: int) -> dict[str, Any]:
    """Microseconds of CPU per sample in every pass, and CPU seconds until the first sample."""
    cpu_seconds = tree_seconds if name == RAY_DATA else time.process_time
    count, timed, num_bytes, checked, per_pass = 0, 0, 0, 0, []
    began = cpu_seconds()
    first = start = began
    for data in READERS[name](folder, passes + (name == RAY_DATA)):
        if data is PASS_ENDS:
            now = cpu_seconds()
            per_pass.append((now - start) / timed * 1e6)
            start, timed = now, 0
            continue
        count, timed = count + 1, timed + 1
        num_bytes += len(data)
        checked += sum(memoryview(data).cast("B")[::PAGE])
        if count == 1:
            first = cpu_seconds() - began
        if count == WARM_UP:
            start, timed = cpu_seconds(), 0
    return {
        "us": per_pass[-passes:],
        "samples": count,
        "bytes": num_bytes / count,
        "first_seconds": first,
        "checked": checked,
    }


def prepare(source: Path, folder: Path, copies: int, python: str) -> None:
    """The same images for every reader, shuffled once as our packing does."""
    from data_pipelines.images.packing.pack import pack_samples

    files = sorted(path for path in source.rglob("*") if path.is_file())
    names = [(path, copy) for copy in range(copies) for path in files]
    loose = folder / "loose"
    loose.mkdir()
    listed = []
    for number, (path, copy) in enumerate(names):
        target = loose / str(number % 256) / f"{copy}-{number:07d}{path.suffix.lower()}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        listed.append(target)
    (folder / "files.txt").write_text("\n".join(map(str, listed)))
    triples = ((f"{i:07d}", path.read_bytes(), i % 1000) for i, path in enumerate(listed))
    manifest = pack_samples(triples, folder / "packed", shard_bytes=SHARD_BYTES)
    for shard in manifest.shards():
        tar = folder / "packed" / shard.name
        index = tar.with_suffix(".idx")
        subprocess.run(["wds2idx", str(tar), str(index)], capture_output=True, check=False)
    subprocess.run([python, __file__, "--convert", str(folder), str(source)], check=False)


def convert(folder: Path) -> None:
    """Copies in the peers' own formats; run by the interpreter that has them."""
    paths = (folder / "files.txt").read_text().splitlines()
    try:
        streaming: Any = importlib.import_module("streaming")
        columns = {"image": "bytes", "label": "int"}
        with streaming.MDSWriter(
            out=str(folder / "mds"), columns=columns, size_limit=SHARD_BYTES
        ) as writer:
            for number, path in enumerate(paths):
                writer.write({"image": Path(path).read_bytes(), "label": number % 1000})
    except ImportError as error:
        print(f"MosaicML Streaming is left out: {error}", file=sys.stderr)
    try:
        litdata: Any = importlib.import_module("litdata")
        litdata.optimize(
            load_for_litdata, list(enumerate(paths)), str(folder / "litdata"),
            chunk_bytes="64MB", num_workers=1,
        )  # fmt: skip
    except ImportError as error:
        print(f"litdata is left out: {error}", file=sys.stderr)


def load_for_litdata(item: tuple[int, str]) -> dict[str, Any]:
    """One sample in litdata's format."""
    return {"image": Path(item[1]).read_bytes(), "label": item[0] % 1000}


def compare(folder: Path, passes: int, repeats: int, python: str) -> None:
    """Every reader in turn, several times; medians."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in READERS}
    for _ in range(repeats):
        for name in READERS:
            command = [sys.executable if name in HERE else python, __file__, "--measure", name]
            done = subprocess.run(
                [*command, "--passes", str(passes), str(folder)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
            else:
                print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    print(f"\n{found['ours'][0]['bytes'] / 1000:.1f} KB a sample, {passes} passes, medians")
    print("| reader | first pass, us CPU per sample | of ours | later passes | of ours | all |")
    print("|---|---|---|---|---|---|")
    medians = {name: summary(runs) for name, runs in found.items() if runs}
    ours = medians["ours"]
    for name, figures in sorted(medians.items(), key=lambda item: item[1][2]):
        ratios = [value / own for value, own in zip(figures, ours, strict=True)]
        print(
            f"| {name} | {figures[0]:.1f} | {ratios[0]:.2f} | {figures[1]:.1f} | {ratios[1]:.2f}"
            f" | {ratios[2]:.2f} |"
        )


def summary(runs: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Medians over the runs: first pass, mean of the later ones, mean of all."""
    return (
        statistics.median(run["us"][0] for run in runs),
        statistics.median(statistics.fmean(run["us"][1:] or run["us"]) for run in runs),
        statistics.median(statistics.fmean(run["us"]) for run in runs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--measure")
    parser.add_argument("--convert", action="store_true")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder, options.passes)))
    elif options.convert:
        convert(options.folder)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with tempfile.TemporaryDirectory() as scratch:
            prepare(options.folder, Path(scratch), options.copies, options.python)
            compare(Path(scratch), options.passes, options.repeats, options.python)


if __name__ == "__main__":
    main()
