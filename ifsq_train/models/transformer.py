"""Parts of the transformers: norm, rotary positions, causal attention, embeddings.

Shape suffixes: B batch, S positions fed at once, D width, H heads, K head width.
Parameter names equal those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.cpu_bf16 import has_bf16_instructions
from ifsq_train.models.fused import fused_in_bf16, norm_scale, silu_times
from ifsq_train.models.key_value_cache import KeyValueCache
from ifsq_train.models.plain import cpu_formulas

_MOST_SCORES = 512
"""Positions up to which all scores of a layer are held at once, on a CPU."""


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precisions widened; fp32 and fp64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, times a weight in the input's precision."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(
        self, x: Tensor, fused: Callable[[Tensor, Tensor, float], Tensor] | None = None
    ) -> Tensor:
        """Float [..., D] -> the same, or what `fused`, a step that norms on its way, makes of it.

        It goes through here because engines gather the weights of a module when it is called.
        """
        if fused is not None:
            return fused(x, self.weight, self.eps)
        wide = at_least_fp32(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


def rope_table(height: int, width: int, head_dim: int, num_class_tokens: int = 1) -> Tensor:
    """Rotary (cos, sin) of every position, fp32 [num_class_tokens + height*width, K/2, 2].

    The first half of the pairs turns with the row, the second with the column. Rows of class
    tokens are (0, 0), which zeroes their queries and keys, as in the released checkpoints.
    """
    half = head_dim // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2)[: half // 2].float() / half)
    rows = torch.outer(torch.arange(height).float(), frequencies)
    columns = torch.outer(torch.arange(width).float(), frequencies)
    angles = torch.cat(
        [
            rows[:, None, :].expand(-1, width, -1),
            columns[None, :, :].expand(height, -1, -1),
        ],
        -1,
    ).reshape(height * width, half)
    turns = torch.stack([angles.cos(), angles.sin()], -1)
    return torch.cat([torch.zeros(num_class_tokens, half, 2), turns])


def apply_rope(x_BSHK: Tensor, table: Tensor) -> Tensor:
    """Turn adjacent channel pairs by the table's angles; table [S, K/2, 2].

    On a CPU as products of complex numbers, which are the same numbers in one pass. A compiler
    fuses the plain formula instead, and cannot generate code for complex numbers on a GPU.
    """
    pairs = at_least_fp32(x_BSHK).unflatten(-1, (-1, 2))
    if not cpu_formulas(x_BSHK.device) or torch.compiler.is_compiling():
        cos, sin = table[None, :, None, :, 0], table[None, :, None, :, 1]
        first, second = pairs[..., 0], pairs[..., 1]
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], -1)
    else:
        turns = torch.view_as_complex(at_least_fp32(table))[None, :, None]
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turns)
    return turned.flatten(-2).type_as(x_BSHK)


def attend_all(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Full attention; [B, H, S, K] each.

    On a CPU in bf16 by plain products, three times as fast as the fused kernel. Scores are then
    rounded to bf16, as its probabilities are.
    """
    fused = not cpu_formulas(query.device) or torch.compiler.is_compiling()
    if fused or query.dtype != torch.bfloat16 or query.shape[2] > _MOST_SCORES:
        return F.scaled_dot_product_attention(query, keys, values)
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return scores.softmax(-1) @ values


def attend_before(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention; [B, H, S, K] each.

    By plain products, the later half of the queries by itself, where a CPU trains in bf16 by the
    quicker ways and has instructions for it: the fused kernel's derivative is slow there.
    """
    length = query.shape[2]
    plain = query.dtype == torch.bfloat16 and fused_in_bf16(query) and has_bf16_instructions()
    if not plain or not 2 <= length <= _MOST_SCORES:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    hidden = torch.full((length, length), -torch.inf, dtype=query.dtype).triu_(1)
    query, middle, mixed = query * query.shape[-1] ** -0.5, length // 2, []
    for first, end in ((0, middle), (middle, length)):
        scores = query[:, :, first:end] @ keys[:, :, :end].transpose(-1, -2)
        mixed.append((scores + hidden[first:end, :end]).softmax(-1) @ values[:, :, :end])
    return torch.cat(mixed, 2)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions; no biases."""

    def __init__(self, dim: int, num_heads: int, residual_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.resid_dropout = nn.Dropout(residual_dropout)

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        cache: KeyValueCache | None = None,
        start: int | Tensor = 0,
    ) -> Tensor:
        """Float [B, S, D]; with a cache one position, `start`, attends to all before it.

        A `start` int64 [1] on the device is for static caches.
        """
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q, k = apply_rope(q, table), apply_rope(k, table)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if cache is None:
            mixed = attend_before(q, k, v)
        else:
            assert q.shape[2] == 1, "decoding feeds one position at a time"
            mixed = cache.attend(q, k, v, start)
        return self.resid_dropout(self.wo(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU with the width rounded up to a multiple; no biases."""

    def __init__(self, dim: int, multiple_of: int, dropout: float) -> None:
        super().__init__()
        hidden = int(2 * (4 * dim) / 3)
        hidden = -(-hidden // multiple_of) * multiple_of
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.ffn_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, S, D] -> the same."""
        gate, value = self.w1(x), self.w3(x)
        fused = gate.dtype == torch.bfloat16 and fused_in_bf16(gate)
        mixed = silu_times(gate, value) if fused else F.silu(gate) * value
        return self.ffn_dropout(self.w2(mixed))


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(
        self, dim: int, num_heads: int, multiple_of: int, residual_dropout: float, dropout: float
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads, residual_dropout)
        self.feed_forward = FeedForward(dim, multiple_of, dropout)
        self.attention_norm = RMSNorm(dim)
        self.ffn_norm = RMSNorm(dim)

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        cache: KeyValueCache | None = None,
        start: int | Tensor = 0,
    ) -> Tensor:
        """Float [B, S, D] -> the same; cache and start as for Attention."""
        fused = norm_scale if fused_in_bf16(x) else None
        x = x + self.attention(self.attention_norm(x, fused), table, cache, start)
        return x + self.feed_forward(self.ffn_norm(x, fused))


class LabelEmbedder(nn.Module):
    """Class embeddings; the last row stands for no class."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Labels int64 [B], optional bool [B] of those to treat as no class -> [B, D]."""
        if dropped is not None:
            labels = torch.where(dropped, self.num_classes, labels)
        return self.embedding_table(labels)


def projector(dim: int, width: int, out: int) -> nn.Sequential:
    """Three-layer SiLU network of REPA."""
    return nn.Sequential(
        nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out)
    )
