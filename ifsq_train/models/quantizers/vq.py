"""Vector quantization with a learned codebook: the paper's baseline, and LlamaGen's."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ifsq_train.models.plain import plain_paths
from ifsq_train.models.quantizers.base import Quantizer, QuantizerOutput, RunningMoments

_ENTRIES_AT_ONCE = {"cpu": 2**18, "gpu": 2**27}
"""Distances made at once: on a CPU a megabyte, for its cache, and half a gigabyte on a GPU."""
_BLOCK = 256
"""Entries of a codebook whose smallest distance a CPU takes first."""


def _to_rows(latents: Tensor) -> Tensor:
    """[B, C, H, W] -> [B*H*W, C] in fp32."""
    return latents.float().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


@torch.no_grad()
def nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest entry by squared Euclidean distance, the first of equals.

    Without the rows' own square, equal for all entries: one pass less, fewer digits lost.

    Args:
        rows: fp32 [N, C].
        codebook: fp32 [K, C].

    Returns:
        int64 [N].
    """
    plain = plain_paths()
    if rows.device.type == "cpu" and not plain:
        return _nearest_in_blocks(rows, codebook)
    squares, columns = codebook.square().sum(1), codebook.t()
    count = len(rows) if plain else max(1, _ENTRIES_AT_ONCE["gpu"] // len(codebook))
    parts = [
        torch.addmm(squares, part, columns, alpha=-2.0).argmin(1) for part in rows.split(count)
    ]
    return torch.cat(parts)


def _nearest_in_blocks(rows: Tensor, codebook: Tensor) -> Tensor:
    """`nearest` for a CPU: the squares are one more channel, where `addmm` would copy them into
    every row first, and smallest distances come before places, since `amin` is vectorized and
    `argmin` is not.
    """
    # The last block is filled up with the first entry, which is found before its copies.
    missing = -len(codebook) % _BLOCK
    entries = torch.cat([codebook, codebook[:1].expand(missing, -1)])
    table = torch.cat([entries * -2.0, entries.square().sum(1, keepdim=True)], 1).t().contiguous()
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    count = max(1, _ENTRIES_AT_ONCE["cpu"] // len(entries))
    room = rows.new_empty(min(count, len(rows)), len(entries))
    found = []
    for part in rows.split(count):
        distances = torch.mm(part, table, out=room[: len(part)]).unflatten(1, (-1, _BLOCK))
        block = distances.amin(2).argmin(1, keepdim=True)
        inside = distances.take_along_dim(block.unsqueeze(2), 1)[:, 0].argmin(1, keepdim=True)
        found.append(block * _BLOCK + inside)
    return torch.cat(found)[:, 0]


class VQ(Quantizer, RunningMoments):
    """Nearest codebook entry, two-term loss (van den Oord et al. 2017; released quant.py).

    Args:
        codebook_size: entries.
        num_channels: channels of an entry.
        beta: weight of one of the two loss terms, see `loss_form`.
        loss_form: ``released`` puts beta on the codebook term (what the released code runs);
            ``vqvae`` on the commitment term (as published).
        track_statistics: keep running input moments for the log.
    """

    def __init__(
        self,
        codebook_size: int,
        num_channels: int,
        *,
        beta: float = 0.5,
        loss_form: Literal["released", "vqvae"] = "released",
        track_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.num_channels, self.codebook_sizes = num_channels, (codebook_size,)
        self.beta, self.loss_form = beta, loss_form
        self.embedding = nn.Embedding(codebook_size, num_channels)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)
        self._track_statistics = track_statistics
        if track_statistics:
            self._init_moments(num_channels)

    @classmethod
    def from_config(cls, config: Any) -> Quantizer:
        """See Quantizer.from_config; a `NormalizedVQ` where the recipe asks for one."""
        if config.normalized:
            return NormalizedVQ.from_config(config)
        return cls(
            config.codebook_size, config.num_channels, beta=config.beta, loss_form=config.loss_form
        )

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """See Quantizer.forward; distances and losses in fp32."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            if self._track_statistics and self.training:
                self._track(latents.detach())
            rows = _to_rows(latents)
            flat = nearest(rows, self.embedding.weight.float())
            batch, _, height, width = latents.shape
            indices = flat.view(batch, height, width, 1)
            quantized = self.embedding(indices[..., 0]).permute(0, 3, 1, 2)
            commitment = F.mse_loss(latents, quantized.detach())
            codebook = F.mse_loss(quantized, latents.detach())
            released = self.loss_form == "released"
            weights = (1.0, self.beta) if released else (self.beta, 1.0)
            loss = weights[0] * commitment + weights[1] * codebook
            output = quantized.detach() + (latents - latents.detach())
            return QuantizerOutput(output, indices, {"codebook": loss}, self._stats(indices))

    @override
    def indices_to_latents(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        return self.embedding(indices[..., 0]).float().permute(0, 3, 1, 2).contiguous()

    @override
    def spec(self) -> dict[str, Any]:
        return {"kind": "vq", "codebook_sizes": list(self.codebook_sizes)}


class NormalizedVQ(Quantizer):
    """LlamaGen's quantizer: unit-length latents and entries (released llamagen/vq_model.py).

    Args:
        codebook_size: entries.
        num_channels: channels of an entry.
        beta: weight of the commitment term.
        entropy_ratio: weight of the entropy term, 0 leaves it out.
        temperature: of the soft assignment in the entropy term.
    """

    def __init__(
        self,
        codebook_size: int,
        num_channels: int,
        *,
        beta: float = 0.25,
        entropy_ratio: float = 0.0,
        temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_channels, self.codebook_sizes = num_channels, (codebook_size,)
        self.beta, self.entropy_ratio, self.temperature = beta, entropy_ratio, temperature
        self.embedding = nn.Embedding(codebook_size, num_channels)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)
        with torch.no_grad():
            self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))

    @classmethod
    @override
    def from_config(cls, config: Any) -> NormalizedVQ:
        return cls(
            config.codebook_size,
            config.num_channels,
            beta=config.beta,
            entropy_ratio=config.entropy_ratio,
        )

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """See Quantizer.forward; losses only in training mode, as released."""
        with torch.autocast(latents.device.type, enabled=False):
            unit = F.normalize(latents.float(), dim=1)
            codebook = F.normalize(self.embedding.weight.float(), dim=-1)
            rows = _to_rows(unit)
            flat = nearest(rows, codebook)
            batch, _, height, width = latents.shape
            quantized = codebook[flat].view(batch, height, width, -1).permute(0, 3, 1, 2)
            losses = self._losses(unit, quantized, rows, codebook) if self.training else {}
            output = quantized.detach() + (unit - unit.detach())
            indices = flat.view(batch, height, width, 1)
            return QuantizerOutput(output, indices, losses, self._stats(indices))

    def _losses(
        self, unit: Tensor, quantized: Tensor, rows: Tensor, codebook: Tensor
    ) -> dict[str, Tensor]:
        losses = {
            "codebook": F.mse_loss(quantized, unit.detach()),
            "commitment": self.beta * F.mse_loss(unit, quantized.detach()),
        }
        if self.entropy_ratio:
            affinity = -(
                rows.square().sum(1, keepdim=True)
                + codebook.square().sum(1)
                - 2.0 * rows @ codebook.t()
            )
            losses["entropy"] = self.entropy_ratio * _entropy_gap(affinity / self.temperature)
        return losses

    @override
    def indices_to_latents(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        codebook = F.normalize(self.embedding.weight.float(), dim=-1)
        return codebook[indices[..., 0]].permute(0, 3, 1, 2).contiguous()

    @override
    def spec(self) -> dict[str, Any]:
        return {"kind": "normalized_vq", "codebook_sizes": list(self.codebook_sizes)}


def _entropy_gap(logits: Tensor) -> Tensor:
    """Mean entropy of the assignments minus the entropy of their mean, nats; logits [N, K]."""
    probabilities = logits.softmax(-1)
    # The released code adds 1e-5 inside both logarithms.
    log_probabilities = (logits + 1e-5).log_softmax(-1)
    average = probabilities.mean(0)
    average_entropy = -(average * (average + 1e-5).log()).sum()
    sample_entropy = -(probabilities * log_probabilities).sum(-1).mean()
    return sample_entropy - average_entropy
