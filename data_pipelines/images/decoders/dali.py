"""Decoding with NVIDIA DALI: on the GPU (`mixed`) where the device is one, else on the CPU.

Windows, boxes and flips come from our geometry through `external_source`; DALI's own readers and
random numbers are not used, because their order depends on ranks and restarts. Only the window a
view needs (with a margin for the resize filter) is decoded.

Differences to the CPU backend: the resize is DALI's (about 0.3 grey levels on average), and a
JPEG cut below the window decodes without an error. Whatever DALI refuses is tried once more by the
CPU backend, so that both refuse the same images otherwise.
"""

import importlib.util
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.images.decoders.base import DecodedBatch, Encoded
from data_pipelines.images.decoders.cpu import CpuDecoder
from data_pipelines.images.decoders.limits import MAX_PIXELS, BadImage
from data_pipelines.images.decoders.pixels import read_facts, sniff_format
from data_pipelines.storage.mapped import settled
from data_pipelines.threads import default_threads
from data_pipelines.views import Size, ViewGeometry

_BAD_SAMPLE = re.compile(r"sample #(\d+)")
MAX_DALI_PIXELS = 1 << 24
"""DALI decodes windows at full size; a larger image goes to the CPU backend, which reduces it."""
_FILTER_RADIUS = {"bicubic": 2.0, "bilinear": 1.0}


def dali_is_installed() -> bool:
    """Whether nvidia-dali can be imported, without importing it."""
    return (
        importlib.util.find_spec("nvidia") is not None
        and importlib.util.find_spec("nvidia.dali") is not None
    )


class DaliDecoder:
    """See the module text. One pipeline per interpolation, grown to the largest batch seen.

    Raises:
        UserError: nvidia-dali is not installed.
    """

    def __init__(
        self,
        size: Size,
        *,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not dali_is_installed():
            raise UserError(
                "decoder dali needs nvidia-dali, which is not installed; "
                "run: pip install 'ifsq-train[dali]', or use decoder cpu"
            )
        self.size = size
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.name = "dali-mixed" if self.on_gpu else "dali-cpu"
        self._threads = threads or default_threads()
        self._max_pixels = max_pixels
        self._pipelines: dict[str, tuple[int, Any]] = {}
        self._running = threading.Lock()
        """A pipeline decodes one batch at a time."""
        self._fallback = CpuDecoder(
            size, device=self.device, threads=self._threads, max_pixels=max_pixels
        )

    def decode(self, encoded: Sequence[Encoded], geometry: ViewGeometry) -> DecodedBatch:
        """As ImageDecoder.decode."""
        assert geometry.size == self.size
        assert len(encoded) == len(geometry)
        left_out = {at for at in range(len(encoded)) if not self._suits(encoded[at], geometry, at)}
        shape = (len(encoded), 3, *self.size)
        images = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        while len(left_out) < len(encoded):
            kept = [at for at in range(len(encoded)) if at not in left_out]
            try:
                with self._running:
                    images[kept] = self._run(
                        [settled(encoded[at]) for at in kept], geometry.take(kept)
                    )
                break
            except RuntimeError as error:
                left_out.add(kept[_position_of_bad_sample(error)])
        failures: list[tuple[int, str]] = []
        if left_out:
            failures = self._decode_others(sorted(left_out), encoded, geometry, images)
        return DecodedBatch(images, failures)

    def close(self) -> None:
        self._pipelines.clear()
        self._fallback.close()

    def _suits(self, data: Encoded, geometry: ViewGeometry, at: int) -> bool:
        """Whether DALI gets it: a JPEG of the recorded size, not too large. Others decode here."""
        try:
            if geometry.box_halving or sniff_format(data) != "jpeg":
                return False
            facts = read_facts(data, self._max_pixels)
        except BadImage:
            return False
        if facts.height * facts.width > MAX_DALI_PIXELS:
            return False
        return (facts.height, facts.width) == (
            geometry.source_heights[at],
            geometry.source_widths[at],
        )

    def _decode_others(
        self,
        positions: list[int],
        encoded: Sequence[Encoded],
        geometry: ViewGeometry,
        images: torch.Tensor,
    ) -> list[tuple[int, str]]:
        batch = self._fallback.decode([encoded[at] for at in positions], geometry.take(positions))
        images[positions] = batch.images
        return [(positions[at], reason) for at, reason in batch.failures]

    def _run(self, encoded: Sequence[Encoded], geometry: ViewGeometry) -> torch.Tensor:
        pipeline = self._pipeline(geometry.interpolation, len(encoded))
        starts, shapes, roi_starts, roi_ends = _windows(geometry)
        inputs = {
            "encoded": [np.frombuffer(data, dtype=np.uint8) for data in encoded],
            "start": list(starts),
            "shape": list(shapes),
            "roi_start": list(roi_starts),
            "roi_end": list(roi_ends),
            "mirror": list(geometry.flips.astype(np.int32)),
        }
        if self.on_gpu:
            (output,) = pipeline.run(torch.cuda.current_stream(self.device), **inputs)
            return torch.from_dlpack(output.as_tensor()).clone()
        (output,) = pipeline.run(**inputs)
        return torch.from_numpy(np.array(output.as_array()))

    def _device_id(self) -> int | None:
        if not self.on_gpu:
            return None
        index = self.device.index
        return torch.cuda.current_device() if index is None else index

    def _pipeline(self, interpolation: str, batch_size: int) -> Any:
        capacity, pipeline = self._pipelines.get(interpolation, (0, None))
        if batch_size > capacity:
            pipeline = _build_pipeline(
                batch_size, self._threads, self.size, interpolation,
                self._device_id(),
            )  # fmt: skip
            self._pipelines[interpolation] = (batch_size, pipeline)
        return pipeline


def _windows(
    geometry: ViewGeometry,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Decoded windows (start, shape) and the box inside them (start, end), each [B, 2] as y, x.

    The window is the box plus what the resize filter reaches beyond it, within the image.
    """
    boxes = geometry.boxes
    low, high = boxes[:, [1, 0]], boxes[:, [3, 2]]
    limit = np.stack([geometry.source_heights, geometry.source_widths], axis=1)
    scale = np.maximum((high - low) / geometry.size, 1.0)
    margin = np.ceil(scale * _FILTER_RADIUS[geometry.interpolation]) + 1
    start = np.clip(np.floor(low - margin), 0, limit)
    end = np.clip(np.ceil(high + margin), 0, limit)
    return (
        start.astype(np.int32),
        (end - start).astype(np.int32),
        (low - start).astype(np.float32),
        (high - start).astype(np.float32),
    )


def _position_of_bad_sample(error: RuntimeError) -> int:
    found = _BAD_SAMPLE.search(str(error))
    if found is None:
        raise error
    return int(found.group(1))


def _build_pipeline(
    batch_size: int, threads: int, output: Size, interpolation: str, device_id: int | None
) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    filters = {
        "bicubic": types.DALIInterpType.INTERP_CUBIC,
        "bilinear": types.DALIInterpType.INTERP_LINEAR,
    }
    on_gpu = device_id is not None
    # With the hardware decoder or plain upsampling, pixels may depend on the batch's other images.
    decoder_options = {"hw_decoder_load": 0.0, "jpeg_fancy_upsampling": True} if on_gpu else {}

    def pipeline() -> Any:
        def given(name: str, dtype: Any, ndim: int) -> Any:
            return fn.external_source(name=name, dtype=dtype, ndim=ndim, device="cpu")

        images = fn.decoders.image_slice(
            given("encoded", types.DALIDataType.UINT8, 1),
            given("start", types.DALIDataType.INT32, 1),
            given("shape", types.DALIDataType.INT32, 1),
            axis_names="HW",
            device="mixed" if on_gpu else "cpu",
            output_type=types.DALIImageType.RGB,
            adjust_orientation=False,
            **decoder_options,
        )
        resized: Any = fn.resize(
            images,
            size=list(output),
            roi_start=given("roi_start", types.DALIDataType.FLOAT, 1),
            roi_end=given("roi_end", types.DALIDataType.FLOAT, 1),
            interp_type=filters[interpolation],
            antialias=True,
        )
        return fn.crop_mirror_normalize(
            resized,
            mirror=given("mirror", types.DALIDataType.INT32, 0),
            dtype=types.DALIDataType.UINT8,
            output_layout="CHW",
        )

    make_factory: Any = pipeline_def  # its stub refuses device_id=None, which means no GPU
    built = make_factory(
        pipeline, batch_size=batch_size, num_threads=threads, device_id=device_id,
        prefetch_queue_depth=1,
    )()  # fmt: skip
    built.build()
    return built
