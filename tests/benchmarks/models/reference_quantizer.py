"""FSQ, VQ and LFQ as the released code computes them, written plainly for comparison.

Same operations in the same order and layout (channels last, pack, straight-through through
detach, fp32 indices, entropy terms over all codes), without any of our changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReferenceFsq(nn.Module):
    """Simple bound, optional groups, running input moments in training mode."""

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: list[int], alpha: float, groups: list[int] | None = None) -> None:
        super().__init__()
        self.alpha = alpha
        self.groups = groups or [len(levels)]
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.int32))
        basis: list[int] = []
        start = 0
        for size in self.groups:
            weight = 1
            for level in levels[start : start + size]:
                basis.append(weight)
                weight *= level
            start += size
        self.register_buffer("basis", torch.tensor(basis, dtype=torch.int32))
        self.register_buffer("running_mean", torch.zeros(1, len(levels), 1, 1))
        self.register_buffer("running_var", torch.ones(1, len(levels), 1, 1))

    def bound(self, z: Tensor) -> Tensor:
        half = (self.levels - 1) / 2
        return (2 * torch.sigmoid(self.alpha * z) - 1) * half

    def quantize(self, z: Tensor) -> Tensor:
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2)

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        half = self.levels // 2
        digits = codes * half + half
        weighted = (digits * self.basis).split(self.groups, dim=-1)
        return torch.stack([part.sum(dim=-1).to(torch.int64) for part in weighted], dim=-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> codes of the same shape, indices [B, H, W, G]."""
        if self.training:
            mean = z.detach().mean(dim=(0, 2, 3), keepdim=True)
            var = z.detach().var(dim=(0, 2, 3), keepdim=True, unbiased=False)
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean
            self.running_var = 0.9 * self.running_var + 0.1 * var
        batch, channels, height, width = z.shape
        rows = z.movedim(1, -1).reshape(batch, height * width, 1, channels)
        codes = self.quantize(rows)
        indices = self.codes_to_indices(codes)
        flat = codes.reshape(batch, height * width, channels)
        out = flat.reshape(batch, height, width, channels).movedim(-1, 1)
        return out, indices.reshape(batch, height, width, len(self.groups))


class ReferenceVq(nn.Module):
    """Nearest entry by squared distance; both loss terms; straight-through."""

    def __init__(self, size: int, channels: int, beta: float = 0.5) -> None:
        super().__init__()
        self.beta = beta
        self.embedding = nn.Embedding(size, channels)
        nn.init.uniform_(self.embedding.weight, -1.0 / size, 1.0 / size)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, C, H, W] -> entries of the same shape, indices [B*H*W], loss."""
        z = z.permute(0, 2, 3, 1).contiguous()
        rows = z.view(-1, z.shape[-1])
        table = self.embedding.weight
        distances = (
            torch.sum(rows**2, dim=1, keepdim=True)
            + torch.sum(table**2, dim=1)
            - 2 * torch.einsum("bd,dn->bn", rows, table.t())
        )
        indices = torch.argmin(distances, dim=1)
        entries = self.embedding(indices).view(z.shape)
        loss = torch.mean((entries.detach() - z) ** 2)
        loss = loss + self.beta * torch.mean((entries - z.detach()) ** 2)
        entries = z + (entries - z).detach()
        return entries.permute(0, 3, 1, 2).contiguous(), indices, loss


class ReferenceLfq(nn.Module):
    """Signs; entropies over all codes at temperature 0.01 in training mode."""

    mask: Tensor
    codebook: Tensor

    def __init__(self, bits: int, temperature: float = 0.01) -> None:
        super().__init__()
        self.temperature = temperature
        numbers = torch.arange(2**bits)
        self.register_buffer("mask", 2 ** torch.arange(bits))
        codes = ((numbers[:, None] & self.mask) != 0).float() * 2 - 1
        self.register_buffer("codebook", codes)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, C, H, W] -> signs of the same shape, indices [B, H*W], loss."""
        batch, channels, height, width = z.shape
        x = z.movedim(1, -1).reshape(batch, height * width, 1, channels)
        quantized = torch.where(x > 0, torch.ones_like(x), -torch.ones_like(x))
        indices = ((quantized > 0).int() * self.mask.int()).sum(-1).to(torch.int64)
        logits = 2 * torch.einsum("...id,jd->...ij", x, self.codebook)
        rows = logits.reshape(-1, logits.shape[-1])
        probabilities = F.softmax(rows / self.temperature, dim=-1)
        log_probabilities = F.log_softmax(rows / self.temperature + 1e-5, dim=-1)
        average = probabilities.mean(dim=0)
        codebook_entropy = -torch.sum(average * torch.log(average + 1e-5))
        sample_entropy = -torch.mean(torch.sum(probabilities * log_probabilities, dim=-1))
        commit = F.mse_loss(x, quantized.detach(), reduction="none").mean()
        quantized = x + (quantized - x).detach()
        out = quantized.reshape(batch, height, width, channels).movedim(-1, 1)
        return out, indices[..., 0], sample_entropy - codebook_entropy + 0.25 * commit
