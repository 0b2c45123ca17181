"""Damaged bytes of images, tars and Parquet files end in a word, never in a traceback.

Nor in a hang, or in much memory: a mutation may take ten seconds of a CPU and a gigabyte.
"""

import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.errors import UserError
from data_pipelines.images.decoders.limits import BadImage
from data_pipelines.images.decoders.pixels import validate_image
from data_pipelines.images.packing.formats import storable
from data_pipelines.images.packing.parquet import ParquetItems, open_parquet
from data_pipelines.images.packing.parquet_files import ParquetColumns
from data_pipelines.images.packing.samples import group_samples
from data_pipelines.images.packing.tar import scan_tar
from tests.support.image_samples import encode, smooth_pixels
from tests.support.peak_memory import peak_memory

PIXELS = smooth_pixels(24, 32)
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
IMAGES_EACH, TARS, PARQUETS = 250, 600, 300
CPU_SECONDS, MEGABYTES = 10, 1000


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    with peak_memory() as peak:
        yield
    assert peak.megabytes < MEGABYTES


def _seeds(count: int) -> Iterator[int]:
    """Of so many mutations, none of which may take long."""
    for seed in range(count):
        began = time.process_time()
        yield seed
        assert time.process_time() - began < CPU_SECONDS, seed


def _mutated(data: bytes, seed: int) -> bytes:
    """Some bytes changed, a piece cut out, filled with zeros or repeated."""
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    first, last = sorted(int(at) for at in rng.integers(0, len(data), 2))
    match int(rng.integers(0, 4)):
        case 0:
            for at in rng.integers(0, len(data), 1 + seed % 8):
                changed[at] = int(rng.integers(0, 256))
        case 1:
            del changed[first:last]
        case 2:
            changed[first:last] = bytes(last - first)
        case _:
            changed[first:first] = data[first:last]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", FORMATS)
def test_mutated_images_are_decoded_or_bad(image_format):
    data = encode(PIXELS, image_format)
    refused = 0
    for seed in _seeds(IMAGES_EACH):
        try:
            validate_image(storable(_mutated(data, seed), 1 << 22), 1 << 22)
        except BadImage:
            refused += 1
    assert 0 < refused <= IMAGES_EACH


def test_mutated_tars_are_read_or_refused(tmp_path: Path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(4):
            info = tarfile.TarInfo(f"{'ü' * 60}{i}.jpg")
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes([i + 1]) * 700))
    refused = 0
    for seed in _seeds(TARS):
        (tmp_path / "x.tar").write_bytes(_mutated(buffer.getvalue(), seed))
        try:
            list(group_samples(scan_tar(tmp_path / "x.tar", "x.tar")))
        except UserError:
            refused += 1
    assert 0 < refused < TARS


def test_mutated_parquet_files_are_read_or_refused(tmp_path: Path):
    image = encode(PIXELS)
    table = pa.table({"image": [{"bytes": image, "path": "a"}] * 6, "label": [0, 1, 2] * 2})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    data = (tmp_path / "a.parquet").read_bytes()
    refused = 0
    for seed in _seeds(PARQUETS):
        (tmp_path / "a.parquet").write_bytes(_mutated(data, seed))
        try:
            source = open_parquet(str(tmp_path), ParquetColumns(), shard_bytes=1 << 20)
            if source.ranges:
                items = ParquetItems(
                    str(tmp_path), source.columns, source.classes, source.ranges, 0
                )
                list(items)
        except UserError:
            refused += 1
    assert 0 < refused < PARQUETS
