"""Decoding on the CPU with libjpeg-turbo and torch's antialiased uint8 resize.

The whole image is resized and the crop cut out, so the sampling grid is that of the released code
without fractional boxes; torch's integer resize is within one grey level of Pillow's and needs
half the time. JPEGs at least four times as large as needed are decoded at 1/2, 1/4 or 1/8 by the
DCT and then resized from a fractional box by Pillow, which keeps at least twice the resolution.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.images.decoders.base import DecodedBatch, Encoded
from data_pipelines.images.decoders.limits import MAX_PIXELS, BadImage
from data_pipelines.images.decoders.pixels import (
    decode_jpeg_scaled,
    decode_rgb,
    decode_window,
    is_large,
    read_facts,
    sniff_format,
)
from data_pipelines.memory import RecycledTensors, Scratch
from data_pipelines.storage.mapped import settled
from data_pipelines.threads import default_threads
from data_pipelines.views import Size, ViewGeometry

_KEPT_RESOLUTION = 2
_FILTER_REACH = 3
"""More source pixels, at the scale of the resize, than the widest filter looks at."""
MAX_RESIZED_PIXELS = 1 << 22
"""A larger whole is never made to cut the crop out of; see `_resize_box`."""
_PILLOW_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


class CpuDecoder:
    """See the module text. Output on `device`; decoding always on the CPU."""

    name = "cpu"

    def __init__(
        self,
        size: Size,
        *,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.size = size
        self.device = torch.device(device)
        self._max_pixels = max_pixels
        self._threads = threads or default_threads()
        self._pool = ThreadPoolExecutor(self._threads, "decode")
        self._scratch, self._batches = Scratch(), RecycledTensors()

    def decode(self, encoded: Sequence[Encoded], geometry: ViewGeometry) -> DecodedBatch:
        """As ImageDecoder.decode."""
        assert geometry.size == self.size
        assert len(encoded) == len(geometry)
        images = self._empty(len(encoded))

        positions = iter(range(len(encoded)))
        failures: list[tuple[int, str]] = []

        def fill() -> None:
            # All threads share the iterator: one task for each thread, not for each image.
            for position in positions:
                try:
                    images[position] = self._decode_one(encoded[position], geometry, position)
                except BadImage as error:
                    images[position] = 0
                    failures.append((position, str(error)))

        threads = min(self._threads, len(encoded))
        for task in [self._pool.submit(fill) for _ in range(threads)]:
            task.result()
        return DecodedBatch(images.to(self.device, non_blocking=True), sorted(failures))

    def close(self) -> None:
        self._pool.shutdown()

    def _empty(self, count: int) -> torch.Tensor:
        shape = (count, 3, *self.size)
        if self.device.type != "cuda":
            return self._batches.empty(shape, torch.uint8)
        # Page-locked, so that the copy runs beside computing; torch reuses the memory.
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def _decode_one(self, data: Encoded, geometry: ViewGeometry, at: int) -> torch.Tensor:
        data = settled(data)
        if geometry.box_halving:
            pixels = decode_rgb(data, self._max_pixels, self._scratch)
            _check_size(pixels, geometry, at, 1)
            crop = _halve_and_crop(pixels, geometry, at)
            return crop.flip(-1) if geometry.flips[at] else crop
        denominator = _denominator(geometry, at)
        crop = None
        if denominator > 1 and sniff_format(data) == "jpeg":
            scaled = decode_jpeg_scaled(data, denominator, self._scratch, self._max_pixels)
            if scaled is not None:
                _check_size(scaled, geometry, at, denominator)
                crop = _resize_box(scaled, geometry, at, denominator)
        if crop is None and is_large(data, *_indexed_size(geometry, at)):
            crop = self._decode_part(data, geometry, at, denominator)
        if crop is None:
            pixels = decode_rgb(data, self._max_pixels, self._scratch)
            _check_size(pixels, geometry, at, 1)
            crop = _resize_and_crop(pixels, geometry, at)
        return crop.flip(-1) if geometry.flips[at] else crop

    def _decode_part(
        self, data: Encoded, geometry: ViewGeometry, at: int, denominator: int
    ) -> torch.Tensor:
        """Only what the crop shows, from an image whose RGB pixels would take much memory."""
        facts = read_facts(data, self._max_pixels)
        if (facts.height, facts.width) != _indexed_size(geometry, at):
            raise _wrong_size((facts.height, facts.width), _indexed_size(geometry, at))
        window = _window(geometry, at, denominator)
        pixels = decode_window(data, window, denominator, self._max_pixels)
        return _resize_box(pixels, geometry, at, denominator, window[:2])


def _denominator(geometry: ViewGeometry, at: int) -> int:
    """Largest DCT reduction that keeps twice the resolution of the resized image."""
    ratio = min(
        int(geometry.source_heights[at]) // int(geometry.resized_heights[at]),
        int(geometry.source_widths[at]) // int(geometry.resized_widths[at]),
    )
    return max(d for d in (1, 2, 4, 8) if d == 1 or ratio >= _KEPT_RESOLUTION * d)


def _indexed_size(geometry: ViewGeometry, at: int) -> tuple[int, int]:
    return int(geometry.source_heights[at]), int(geometry.source_widths[at])


def _check_size(
    pixels: NDArray[np.uint8], geometry: ViewGeometry, at: int, denominator: int
) -> None:
    indexed = _indexed_size(geometry, at)
    expected = (-(-indexed[0] // denominator), -(-indexed[1] // denominator))
    if pixels.shape[:2] != expected:
        raise _wrong_size(pixels.shape[:2], expected)


def _wrong_size(found: Sequence[int], expected: Sequence[int]) -> BadImage:
    return BadImage(
        f"decoded to {found[1]}x{found[0]} pixels where the index implies "
        f"{expected[1]}x{expected[0]}"
    )


def _window(geometry: ViewGeometry, at: int, denominator: int) -> tuple[int, int, int, int]:
    """What the crop and the resize filter around it reach of the source, from whole multiples."""
    height, width = _indexed_size(geometry, at)
    x0, y0, x1, y1 = geometry.boxes[at].tolist()
    scale = max((x1 - x0) / geometry.size[1], (y1 - y0) / geometry.size[0], denominator)
    margin = _FILTER_REACH * scale + denominator
    left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
    return (
        left - left % denominator, top - top % denominator,
        min(width, int(x1 + margin) + 1), min(height, int(y1 + margin) + 1),
    )  # fmt: skip


def _resize_and_crop(pixels: NDArray[np.uint8], geometry: ViewGeometry, at: int) -> torch.Tensor:
    """uint8 [H, W, 3] to the crop, uint8 [3, h, w]."""
    resized_size = (int(geometry.resized_heights[at]), int(geometry.resized_widths[at]))
    if resized_size[0] * resized_size[1] > MAX_RESIZED_PIXELS:
        return _resize_box(pixels, geometry, at, 1)
    # A view of the interleaved bytes: torch resizes channels-last uint8 without a copy.
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    if tuple(image.shape[-2:]) != resized_size:
        image = torch.nn.functional.interpolate(
            image, resized_size, mode=geometry.interpolation, antialias=True
        )
    top, left, (tall, wide) = int(geometry.tops[at]), int(geometry.lefts[at]), geometry.size
    return image[0, :, top : top + tall, left : left + wide]


def _halve_and_crop(pixels: NDArray[np.uint8], geometry: ViewGeometry, at: int) -> torch.Tensor:
    """As the released code: halve by averages while twice as large, then resize and crop."""
    image = Image.fromarray(pixels)
    height, width = int(geometry.resized_heights[at]), int(geometry.resized_widths[at])
    while min(image.size) >= 2 * min(height, width):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    top, left, (tall, wide) = int(geometry.tops[at]), int(geometry.lefts[at]), geometry.size
    if height * width > MAX_RESIZED_PIXELS:
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + wide) * across, (top + tall) * down)
        crop = image.resize((wide, tall), _PILLOW_FILTERS[geometry.interpolation], box=box)
    else:
        whole = image.resize((width, height), _PILLOW_FILTERS[geometry.interpolation])
        crop = whole.crop((left, top, left + wide, top + tall))
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


def _resize_box(
    pixels: NDArray[np.uint8],
    geometry: ViewGeometry,
    at: int,
    denominator: int,
    origin: tuple[int, int] = (0, 0),
) -> torch.Tensor:
    """The crop from a part of the image at 1/denominator, uint8 [3, h, w].

    `origin`: x and y of the part's first pixel in the source.
    """
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = ((geometry.boxes[at] - np.tile(origin, 2)) / denominator).tolist()
    box = (x0, y0, min(x1, width), min(y1, height))
    size = (geometry.size[1], geometry.size[0])
    resample = _PILLOW_FILTERS[geometry.interpolation]
    crop = np.array(Image.fromarray(pixels).resize(size, resample, box=box))
    return torch.from_numpy(crop).permute(2, 0, 1)
