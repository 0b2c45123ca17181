"""Chooses the image decoder by its configured name."""

import torch

from data_pipelines.errors import UserError
from data_pipelines.images.decoders.base import DecoderKind, ImageDecoder
from data_pipelines.images.decoders.limits import MAX_PIXELS
from data_pipelines.views import Size


def open_decoder(
    kind: DecoderKind,
    size: Size,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageDecoder:
    """A backend by name.

    Args:
        kind: "cpu" needs nothing but this package's dependencies; "dali" needs nvidia-dali and
            decodes on the GPU where `device` is one; "auto" is DALI for a GPU if it is installed,
            else cpu.
        size: height and width of what comes out, in pixels.
        device: where the images come out.
        threads: decoding threads; None takes the CPUs this process may use.

    Raises:
        UserError: an unknown kind, or "dali" without nvidia-dali.
    """
    device = torch.device(device)
    if kind == "auto":
        from data_pipelines.images.decoders.dali import dali_is_installed

        kind = "dali" if device.type == "cuda" and dali_is_installed() else "cpu"
    if kind == "cpu":
        from data_pipelines.images.decoders.cpu import CpuDecoder

        return CpuDecoder(size, device=device, threads=threads, max_pixels=max_pixels)
    if kind == "dali":
        from data_pipelines.images.decoders.dali import DaliDecoder

        return DaliDecoder(size, device=device, threads=threads, max_pixels=max_pixels)
    raise UserError(f"decoder {kind!r} is unknown; use auto, cpu or dali")
