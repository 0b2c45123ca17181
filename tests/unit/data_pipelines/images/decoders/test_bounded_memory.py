"""Decoding an image at 256 pixels takes less than 200 MB whatever it is; refusing one, less."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images.decoders.cpu import CpuDecoder
from data_pipelines.images.decoders.dali import DaliDecoder, dali_is_installed
from data_pipelines.images.decoders.limits import BadImage
from data_pipelines.images.decoders.pixels import read_facts, validate_image
from data_pipelines.views import AdmCenterView, view_geometry
from tests.support.image_samples import encode, smooth_pixels
from tests.support.peak_memory import peak_memory

SIZE, MEGABYTES = 256, 200
Decoder = CpuDecoder | DaliDecoder


def _plain(mode: str, width: int, height: int, image_format: str, **options: object) -> bytes:
    """One colour: quick to make, and as large as any other once it is decoded."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, image_format, **options)
    return buffer.getvalue()


def _repeated_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times."""
    data = encode(smooth_pixels(64, 64), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


@pytest.fixture(params=["cpu", "dali"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    if request.param == "cpu":
        return CpuDecoder((SIZE, SIZE), threads=1)
    if not dali_is_installed():
        pytest.skip("nvidia-dali is not installed")
    return DaliDecoder((SIZE, SIZE), threads=1)


ACCEPTED: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: _plain("RGB", 8000, 8000, "JPEG"),
    "long jpeg": lambda: _plain("RGB", 300, 9600, "JPEG"),
    "png": lambda: _plain("RGB", 6000, 6000, "PNG", compress_level=1),
    "1-bit png": lambda: _plain("1", 8000, 8000, "PNG"),
    "long png": lambda: _plain("RGB", 9600, 300, "PNG", compress_level=1),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_is_accepted_takes_little_memory(decoder: Decoder, kind: str) -> None:
    data, small = ACCEPTED[kind](), encode(smooth_pixels(300, 300))
    _decode(decoder, small)
    with peak_memory() as peak:
        _decode(decoder, data)
    assert peak.megabytes < MEGABYTES


def _decode(decoder: Decoder, data: bytes) -> None:
    facts = read_facts(data)
    geometry = view_geometry(
        AdmCenterView(SIZE), seed=0, epoch=0, sample_ids=np.arange(1), views=np.zeros(1, int),
        heights=np.array([facts.height]), widths=np.array([facts.width]),
    )  # fmt: skip
    assert decoder.decode([data], geometry).failures == []


REFUSED: dict[str, Callable[[], bytes]] = {
    "1 x 65,000": lambda: _plain("RGB", 1, 65_000, "JPEG"),
    "30,000 x 2": lambda: _plain("RGB", 30_000, 2, "PNG"),
    "4,000 scans": lambda: _repeated_scans(4000),
    "webp": lambda: _plain("RGB", 4000, 4000, "WEBP", lossless=True, method=0),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusing_takes_hardly_any_memory(kind: str) -> None:
    data = REFUSED[kind]()
    with peak_memory() as peak, pytest.raises(BadImage):
        validate_image(data)
    assert peak.megabytes < MEGABYTES / 4
