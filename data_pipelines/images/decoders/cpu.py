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
from data_pipelines.images.decoders.pixels import (
    MAX_PIXELS,
    BadImage,
    decode_jpeg_scaled,
    decode_rgb,
    sniff_format,
)
from data_pipelines.memory import RecycledTensors, Scratch
from data_pipelines.storage.mapped import settled
from data_pipelines.threads import default_threads
from data_pipelines.views import ViewGeometry

_KEPT_RESOLUTION = 2
_PILLOW_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


class CpuDecoder:
    """See the module text. Output on `device`; decoding always on the CPU."""

    name = "cpu"

    def __init__(
        self,
        image_size: int,
        *,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.image_size = image_size
        self.device = torch.device(device)
        self._max_pixels = max_pixels
        self._threads = threads or default_threads()
        self._pool = ThreadPoolExecutor(self._threads, "decode")
        self._scratch, self._batches = Scratch(), RecycledTensors()

    def decode(self, encoded: Sequence[Encoded], geometry: ViewGeometry) -> DecodedBatch:
        """As ImageDecoder.decode."""
        assert geometry.image_size == self.image_size
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
        shape = (count, 3, self.image_size, self.image_size)
        if self.device.type != "cuda":
            return self._batches.empty(shape, torch.uint8)
        # Page-locked, so that the copy runs beside computing; torch reuses the memory.
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def _decode_one(self, data: Encoded, geometry: ViewGeometry, at: int) -> torch.Tensor:
        data = settled(data)
        denominator = _denominator(geometry, at)
        crop = None
        if denominator > 1 and sniff_format(data) == "jpeg":
            scaled = decode_jpeg_scaled(data, denominator, self._scratch)
            if scaled is not None:
                _check_size(scaled, geometry, at, denominator)
                crop = _resize_box(scaled, geometry, at, denominator)
        if crop is None:
            pixels = decode_rgb(data, self._max_pixels, self._scratch)
            _check_size(pixels, geometry, at, 1)
            crop = _resize_and_crop(pixels, geometry, at)
        return crop.flip(-1) if geometry.flips[at] else crop


def _denominator(geometry: ViewGeometry, at: int) -> int:
    """Largest DCT reduction that keeps twice the resolution of the resized image."""
    ratio = min(
        int(geometry.source_heights[at]) // int(geometry.resized_heights[at]),
        int(geometry.source_widths[at]) // int(geometry.resized_widths[at]),
    )
    return max(d for d in (1, 2, 4, 8) if d == 1 or ratio >= _KEPT_RESOLUTION * d)


def _check_size(
    pixels: NDArray[np.uint8], geometry: ViewGeometry, at: int, denominator: int
) -> None:
    indexed = int(geometry.source_heights[at]), int(geometry.source_widths[at])
    expected = (-(-indexed[0] // denominator), -(-indexed[1] // denominator))
    if pixels.shape[:2] != expected:
        raise BadImage(
            f"decoded to {pixels.shape[1]}x{pixels.shape[0]} pixels where the index implies "
            f"{expected[1]}x{expected[0]}"
        )


def _resize_and_crop(pixels: NDArray[np.uint8], geometry: ViewGeometry, at: int) -> torch.Tensor:
    """uint8 [H, W, 3] to the crop, uint8 [3, S, S]."""
    # A view of the interleaved bytes: torch resizes channels-last uint8 without a copy.
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized_size = (int(geometry.resized_heights[at]), int(geometry.resized_widths[at]))
    if tuple(image.shape[-2:]) != resized_size:
        image = torch.nn.functional.interpolate(
            image, resized_size, mode=geometry.interpolation, antialias=True
        )
    top, left, size = int(geometry.tops[at]), int(geometry.lefts[at]), geometry.image_size
    return image[0, :, top : top + size, left : left + size]


def _resize_box(
    pixels: NDArray[np.uint8], geometry: ViewGeometry, at: int, denominator: int
) -> torch.Tensor:
    """The crop from an image decoded at 1/denominator, uint8 [3, S, S]."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = (geometry.boxes[at] / denominator).tolist()
    box = (x0, y0, min(x1, width), min(y1, height))
    size = (geometry.image_size, geometry.image_size)
    resample = _PILLOW_FILTERS[geometry.interpolation]
    crop = np.array(Image.fromarray(pixels).resize(size, resample, box=box))
    return torch.from_numpy(crop).permute(2, 0, 1)
