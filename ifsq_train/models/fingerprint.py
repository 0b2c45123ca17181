"""Hashing tensors, so that what a network produced can name the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Digest(Protocol):
    """The part of hashlib's objects used here."""

    def update(self, data: bytes, /) -> None: ...


def update_with_tensors(digest: Digest, tensors: Mapping[str, Tensor]) -> None:
    """Feed name, type, shape and bytes of every tensor, in the order of their names."""
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{values.dtype}:{tuple(values.shape)};".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
