"""The precision networks run in: fp32 parameters, and bf16 by autocast or not."""

from __future__ import annotations

import torch


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """bf16 autocast on a kind of device if `precision` is "bf16"; with any other, none.

    Args:
        device: a device or its type, such as "cuda".
        precision: as recipes name it.
    """
    kind = device.type if isinstance(device, torch.device) else device
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")
