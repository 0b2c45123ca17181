"""DiT: a transformer that predicts the velocity of a flow over latents (released dit/models).

Shape suffixes: B batch, T patches, D width, H heads, K head width, C latent channels, P patch side.
Parameter names equal those of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.fused import (
    fused_paths,
    gated_add,
    norm_modulate,
    norm_rotate,
    swiglu,
)
from ifsq_train.models.transformer import LabelEmbedder, RMSNorm, attend_all, projector, rope_table

SIZES: dict[str, dict[str, int]] = {
    "S": {"num_layers": 12, "dim": 384, "num_heads": 6},
    "B": {"num_layers": 12, "dim": 768, "num_heads": 12},
    "L": {"num_layers": 24, "dim": 1024, "num_heads": 16},
    "XL": {"num_layers": 28, "dim": 1152, "num_heads": 16},
    "1p0B": {"num_layers": 24, "dim": 1536, "num_heads": 24},
    "1p6B": {"num_layers": 28, "dim": 1792, "num_heads": 28},
}
_TIME_FEATURES = 256


def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Fixed positions fp32 [height * width, dim]: half for the column, half for the row."""
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def encode(places: Tensor) -> Tensor:
        angles = torch.outer(places.double(), frequencies)
        return torch.cat([angles.sin(), angles.cos()], 1)

    rows = encode(torch.arange(height)).repeat_interleave(width, 0)
    columns = encode(torch.arange(width)).repeat(height, 1)
    return torch.cat([columns, rows], 1).float()


def time_features(t: Tensor) -> Tensor:
    """Cosines, then sines, of a time in [0, 1] at 128 frequencies; [B] -> fp32 [B, 256]."""
    half = _TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], -1)


class PatchEmbedder(nn.Module):
    """Non-overlapping patches to tokens."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, h, w] -> [B, T, D], row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbedder(nn.Module):
    """`time_features` through a two-layer network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """Times in [0, 1], [B] -> [B, D]."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        return self.mlp(time_features(t).to(first.weight.dtype))


class GridRotary(nn.Module):
    """Rotary positions of a grid; the tables are saved, as released."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, height: int, width: int, head_dim: int) -> None:
        super().__init__()
        table = rope_table(height, width, head_dim, num_class_tokens=0)
        table = table.repeat_interleave(2, 1)
        self.register_buffer("freqs_cos", table[..., 0])
        self.register_buffer("freqs_sin", table[..., 1])

    def turns(self) -> Tensor:
        """The tables as complex numbers, complex64 [T, K / 2]."""
        return torch.complex(self.freqs_cos[:, ::2].float(), self.freqs_sin[:, ::2].float())

    def forward(self, x: Tensor) -> Tensor:
        """Turn adjacent channel pairs of float [B, H, T, K]."""
        wide = x.float()
        first, second = wide.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-second, first], -1).flatten(-2)
        return (wide * self.freqs_cos.float() + turned * self.freqs_sin.float()).type_as(x)


class DiTAttention(nn.Module):
    """Full multi-head attention, optionally with normed and rotated queries and keys."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool, rms_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm, self.k_norm = (
            _head_norm(dim // num_heads, rms_norm) if qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor, rotary: nn.Module) -> Tensor:
        """Float [B, T, D] -> the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if fused_paths(x) and isinstance(rotary, GridRotary) and isinstance(self.q_norm, RMSNorm):
            turned = partial(norm_rotate, turns=rotary.turns())
            q, k = self.q_norm(q, turned), self.k_norm(k, turned)
        else:
            q, k = (part.transpose(1, 2) for part in (q, k))
            q, k = rotary(self.q_norm(q)), rotary(self.k_norm(k))
        v = v.transpose(1, 2)
        mixed = attend_all(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class GeluFeedForward(nn.Module):
    """Four times as wide, tanh GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, T, D] -> the same."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGluFeedForward(nn.Module):
    """SwiGLU of two thirds the width, with biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * dim)
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, T, D] -> the same."""
        both = self.w12(x)
        if fused_paths(both):
            return self.w3(swiglu(both))
        gate, value = both.chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class DiTBlock(nn.Module):
    """Attention and feed-forward, each shifted, scaled and gated by the condition."""

    def __init__(
        self, dim: int, num_heads: int, *, qk_norm: bool, swiglu: bool, rms_norm: bool
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(dim, rms_norm), _norm(dim, rms_norm)
        self.attn = DiTAttention(dim, num_heads, qk_norm=qk_norm, rms_norm=rms_norm)
        self.mlp = SwiGluFeedForward(dim) if swiglu else GeluFeedForward(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor, rotary: nn.Module) -> Tensor:
        """Float [B, T, D] and [B, D] -> [B, T, D]."""
        parts = self.adaLN_modulation(condition).unsqueeze(1).chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = _add(x, gate1, self.attn(_modulate(self.norm1, x, scale1, shift1), rotary))
        return _add(x, gate2, self.mlp(_modulate(self.norm2, x, scale2, shift2)))


class FinalLayer(nn.Module):
    """Tokens to patches."""

    def __init__(self, dim: int, out: int, rms_norm: bool) -> None:
        super().__init__()
        self.norm_final = _norm(dim, rms_norm)
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Float [B, T, D] and [B, D] -> [B, T, P * P * C]."""
        shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, -1)
        return self.linear(_modulate(self.norm_final, x, scale, shift))


def _modulate(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    if isinstance(norm, RMSNorm) and fused_paths(x):
        return norm(x, partial(norm_modulate, scale=scale, shift=shift))
    return norm(x) * (1 + scale) + shift


def _add(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    return gated_add(x, gate, branch) if fused_paths(x) else x + gate * branch


def _norm(dim: int, rms_norm: bool) -> nn.Module:
    return RMSNorm(dim, 1e-6) if rms_norm else nn.LayerNorm(dim, 1e-6, elementwise_affine=False)


def _head_norm(dim: int, rms_norm: bool) -> nn.Module:
    return RMSNorm(dim, 1e-6) if rms_norm else nn.LayerNorm(dim, 1e-5)


@dataclass(frozen=True)
class DiTOutput:
    """One forward pass.

    Attributes:
        prediction: [B, C, h, w] (2C channels with `learn_sigma`), the velocity by default.
        projections: REPA projector outputs [B, T, Z], empty without projectors.
    """

    prediction: Tensor
    projections: tuple[Tensor, ...] = ()


class DiT(nn.Module):
    """Class-conditional diffusion transformer.

    Args:
        num_layers, num_heads, dim: see `SIZES`.
        latent_channels: C.
        grid: height and width of the latents.
        patch_size: side of a patch.
        num_classes: real classes; index `num_classes` is the null class.
        qk_norm, swiglu, rotary, rms_norm: what the released configuration turns on.
        learn_sigma: double the output channels (not for flows).
        projection_dims: teacher widths of REPA projectors; none by default.
        projection_depth: block (1-based) after which the projectors read.
        projector_width: hidden width of a projector.

    Attributes:
        residual_dtype: of the stream between blocks; None: that of the weights.

    Raises:
        ValueError: a grid that does not divide into patches.
    """

    pos_embed: Tensor
    residual_dtype: torch.dtype | None = None

    def __init__(
        self,
        *,
        num_layers: int,
        num_heads: int,
        dim: int,
        latent_channels: int,
        grid: tuple[int, int],
        patch_size: int = 1,
        num_classes: int = 1000,
        qk_norm: bool = True,
        swiglu: bool = True,
        rotary: bool = True,
        rms_norm: bool = True,
        learn_sigma: bool = False,
        projection_dims: Sequence[int] = (),
        projection_depth: int = 8,
        projector_width: int = 2048,
    ) -> None:
        super().__init__()
        if grid[0] % patch_size or grid[1] % patch_size:
            raise ValueError(
                f"a latent grid of {grid} does not divide into patches of {patch_size}"
            )
        self.patch_size, self.num_classes = patch_size, num_classes
        self.patches = (grid[0] // patch_size, grid[1] // patch_size)
        self.projection_depth = projection_depth
        self.latent_channels, self.grid = latent_channels, grid
        self.x_embedder = PatchEmbedder(latent_channels, patch_size, dim)
        self.t_embedder = TimeEmbedder(dim)
        self.y_embedder = LabelEmbedder(num_classes, dim)
        # A buffer, under the released name: engines and averages then see trained weights only.
        self.register_buffer("pos_embed", sincos_positions(*self.patches, dim).unsqueeze(0))
        self.feat_rope = GridRotary(*self.patches, dim // num_heads) if rotary else nn.Identity()
        shape: dict[str, Any] = {"qk_norm": qk_norm, "swiglu": swiglu, "rms_norm": rms_norm}
        self.blocks = nn.ModuleList(DiTBlock(dim, num_heads, **shape) for _ in range(num_layers))
        out = latent_channels * (2 if learn_sigma else 1)
        self.final_layer = FinalLayer(dim, patch_size**2 * out, rms_norm)
        self.projectors = nn.ModuleList(
            projector(dim, projector_width, width) for width in projection_dims
        )
        self.reset_parameters()

    def example_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, time and label of one sample, all zero, for counting operations."""
        latents = torch.zeros(1, self.latent_channels, *self.grid)
        return latents, torch.zeros(1), torch.zeros(1, dtype=torch.int64)

    def reset_parameters(self) -> None:
        """Xavier-uniform linears, small embeddings; modulations and the last layer start at 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        assert self.x_embedder.proj.bias is not None
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)  # pyright: ignore[reportArgumentType]
        modulations = [block.adaLN_modulation[1] for block in self.blocks]  # pyright: ignore
        for layer in (*modulations, self.final_layer.adaLN_modulation[1], self.final_layer.linear):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor, *, drop_labels: Tensor | None = None
    ) -> DiTOutput:
        """Predict from noisy latents.

        Args:
            x: float [B, C, h, w].
            t: [B] in [0, 1]; 0 is noise, 1 is data.
            labels: int64 [B] in [0, num_classes]; num_classes is the null class.
            drop_labels: bool [B], labels to replace by the null class.
        """
        tokens = self.x_embedder(x) + self.pos_embed
        tokens = tokens if self.residual_dtype is None else tokens.to(self.residual_dtype)
        condition = self.t_embedder(t) + self.y_embedder(labels, drop_labels)
        projections: tuple[Tensor, ...] = ()
        for depth, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition, self.feat_rope)
            if depth == self.projection_depth:
                projections = tuple(projector(tokens) for projector in self.projectors)
        return DiTOutput(self._unpatchify(self.final_layer(tokens, condition)), projections)

    def _unpatchify(self, patches: Tensor) -> Tensor:
        """[B, T, P * P * C] -> [B, C, h, w]."""
        side = self.patch_size
        image = patches.unflatten(1, self.patches).unflatten(-1, (side, side, -1))
        return image.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
