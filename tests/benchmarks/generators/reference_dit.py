"""DiT as the released code computes it, written plainly: the other side of the benchmarks.

Same parameter names as `ifsq_train.models.dit.DiT`, so that both sides have the same weights.
Norms, rotation and modulation are one operation after the other, in the precision autocast leaves
them in; queries and keys are normed and rotated apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.dit import sincos_positions, time_features
from ifsq_train.models.transformer import rope_table


class ReferenceNorm(nn.Module):
    """Root-mean-square norm in fp32, then the weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return normed.type_as(x) * self.weight


class ReferenceRotary(nn.Module):
    """Adjacent channel pairs turned by saved tables."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, side: int, head_dim: int) -> None:
        super().__init__()
        table = rope_table(side, side, head_dim, num_class_tokens=0).repeat_interleave(2, 1)
        self.register_buffer("freqs_cos", table[..., 0])
        self.register_buffer("freqs_sin", table[..., 1])

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-second, first), -1).flatten(-2)
        return x * self.freqs_cos + turned * self.freqs_sin


class ReferenceAttention(nn.Module):
    """As released, with norms of queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = ReferenceNorm(self.head_dim), ReferenceNorm(self.head_dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: nn.Module) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotary(self.q_norm(q)), rotary(self.k_norm(k))
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(out.transpose(1, 2).reshape(batch, length, dim))


class ReferenceSwiGlu(nn.Module):
    """As released."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * dim)
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(first) * second)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift every token."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class ReferenceBlock(nn.Module):
    """As released."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ReferenceNorm(dim), ReferenceNorm(dim)
        self.attn = ReferenceAttention(dim, heads)
        self.mlp = ReferenceSwiGlu(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor, rotary: nn.Module) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, 1)
        attended = self.attn(modulate(self.norm1(x), shift1, scale1), rotary)
        x = x + gate1.unsqueeze(1) * attended
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class ReferenceFinal(nn.Module):
    """As released."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm_final = ReferenceNorm(dim)
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class ReferenceDiT(nn.Module):
    """Patches of one latent cell; labels are dropped with probability 0.1 in training."""

    pos_embed: Tensor

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        dim: int,
        channels: int,
        side: int,
        projectors: Sequence[nn.Module] = (),
        projection_depth: int = 8,
    ) -> None:
        super().__init__()
        self.depth, self.side, self.num_classes = projection_depth, side, 1000
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, dim, 1)})
        mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.t_embedder = nn.ModuleDict({"mlp": mlp})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(1001, dim)})
        self.register_buffer("pos_embed", sincos_positions(side, side, dim).unsqueeze(0))
        self.feat_rope = ReferenceRotary(side, dim // num_heads)
        self.blocks = nn.ModuleList(ReferenceBlock(dim, num_heads) for _ in range(num_layers))
        self.final_layer = ReferenceFinal(dim, channels)
        self.projectors = nn.ModuleList(projectors)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Velocity [B, C, h, w] and projections."""
        tokens = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        if self.training:
            dropped = torch.rand(len(labels)) < 0.1
            labels = torch.where(dropped, self.num_classes, labels)
        condition = self.t_embedder["mlp"](time_features(t))
        condition = condition + self.y_embedder["embedding_table"](labels)
        projections: list[Tensor] = []
        for depth, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition, self.feat_rope)
            if depth == self.depth:
                projections = [head(tokens) for head in self.projectors]
        out = self.final_layer(tokens, condition)
        return out.view(len(x), self.side, self.side, -1).permute(0, 3, 1, 2), projections
