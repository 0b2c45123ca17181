"""Batch norm over the samples of all workers, on any device and with unequal shares.

torch's own SyncBatchNorm runs on GPUs only; this one is plain differentiable collectives, so a
test on two CPU workers sees what a cluster does.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics are those of all workers' samples together.

    In eval mode and in a run of one worker it is its parent.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Float [B, C, H, W] -> the same shape; collective in training mode."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        values = input.float()
        count = torch.full((1,), values.numel() / values.shape[1], device=values.device)
        sums = _sum_over_ranks(torch.cat([values.sum((0, 2, 3)), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centered = values - mean[None, :, None, None]
        # Centred before it is squared: the difference of two large sums would lose the digits.
        variance = _sum_over_ranks(centered.square().sum((0, 2, 3))) / total
        self._track(mean.detach(), variance.detach(), total)
        scale = (variance + self.eps).rsqrt()
        normed = centered * scale[None, :, None, None]
        if self.affine:
            normed = normed * self.weight[None, :, None, None] + self.bias[None, :, None, None]
        return normed.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)


class _SumOverRanks(torch.autograd.Function):
    """all_reduce whose gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(_ctx: object, values: Tensor) -> Tensor:  # type: ignore[override]
        result = values.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(_ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        result = gradient.contiguous().clone()
        dist.all_reduce(result)
        return result


def _sum_over_ranks(values: Tensor) -> Tensor:
    return _SumOverRanks.apply(values)  # type: ignore[no-any-return]


def sync_batch_norms(module: nn.Module) -> None:
    """Make every BatchNorm2d of a network a synced one, in place; names and values stay."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SyncedBatchNorm2d
