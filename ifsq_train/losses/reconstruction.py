"""How far a reconstruction is from its image, per pixel."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def pixel_loss(reconstruction: Tensor, images: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Mean absolute (l1) or squared (l2) difference, fp32 scalar; inputs [B, 3, H, W]."""
    difference = F.l1_loss if kind == "l1" else F.mse_loss
    return difference(reconstruction.float(), images.float())
