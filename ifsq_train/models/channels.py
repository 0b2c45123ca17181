"""Colour and grey: images come as RGB, a network may take or make a single channel."""

from __future__ import annotations

from torch import Tensor

_RED, _BLUE = 0.299, 0.114
"""Shares of luminance (ITU-R 601, as in Pillow's conversion to grey); green has the rest."""


def seen_by(images: Tensor, channels: int) -> Tensor:
    """Images [B, 3, H, W] as a network of so many channels sees them, or those it sees already.

    One channel is the luminance; three are the images themselves.
    """
    if images.shape[1] == channels:
        return images
    assert (images.shape[1], channels) == (3, 1)
    red, green, blue = images.split(1, dim=1)
    # In this form a grey image is itself, to the last bit.
    return green + (red - green) * _RED + (blue - green) * _BLUE


def as_rgb(images: Tensor) -> Tensor:
    """Images [B, 3, H, W]; grey ones [B, 1, H, W] repeated, for networks defined on colours."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
