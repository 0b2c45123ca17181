"""LlamaGen as the released code computes it, written plainly: the other side of the benchmarks.

Same parameter names as `ifsq_train.models.llamagen.LlamaGen`, so that both sides have the same
weights. Whole logits in fp32; unfused attention with a boolean mask over a padded cache; caches
made anew for every call and, in the factorized head, for every token; a Python loop over samples
in the alignment loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifsq_train.models.transformer import LabelEmbedder, RMSNorm, projector, rope_table


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Adjacent channel pairs turned by the table [S, K/2, 2]; x [B, S, H, K]."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    table = table.view(1, pairs.size(1), 1, pairs.size(3), 2)
    turned = torch.stack(
        [
            pairs[..., 0] * table[..., 0] - pairs[..., 1] * table[..., 1],
            pairs[..., 1] * table[..., 0] + pairs[..., 0] * table[..., 1],
        ],
        dim=-1,
    )
    return turned.flatten(3).type_as(x)


class Cache(nn.Module):
    """Keys and values of padded length, rewritten at the given positions."""

    k: Tensor
    v: Tensor

    def __init__(self, batch: int, length: int, heads: int, width: int) -> None:
        super().__init__()
        self.register_buffer("k", torch.zeros(batch, heads, length, width))
        self.register_buffer("v", torch.zeros(batch, heads, length, width))

    def update(self, position: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Everything, also what is not filled yet; the mask hides it."""
        self.k[:, :, position] = k
        self.v[:, :, position] = v
        return self.k, self.v


class Attention(nn.Module):
    """As released."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.drop = nn.Dropout(dropout)
        self.cache: Cache | None = None

    def forward(self, x: Tensor, table: Tensor, position: Tensor | None, mask: Tensor | None):
        batch, length, dim = x.shape
        q, k, v = self.wqkv(x).split([dim, dim, dim], dim=-1)
        q, k, v = (part.view(batch, length, self.heads, -1) for part in (q, k, v))
        q, k = rotate(q, table), rotate(k, table)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if self.cache is not None and position is not None:
            k, v = self.cache.update(position, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.drop(self.wo(out.transpose(1, 2).contiguous().view(batch, length, dim)))


class FeedForward(nn.Module):
    """As released."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        hidden = -(-int(2 * (4 * dim) / 3) // 256) * 256
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """As released."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dropout)
        self.feed_forward = FeedForward(dim, dropout)
        self.attention_norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim)

    def forward(self, x: Tensor, table: Tensor, position=None, mask=None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, position, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class ReferenceLlamaGen(nn.Module):
    """Trunk, factorized head and projector as released."""

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        dim: int,
        codebook_sizes: Sequence[int],
        grid: tuple[int, int],
        num_classes: int,
        dropout: float,
        projection_dims: Sequence[int] = (),
        projection_depth: int = 8,
    ) -> None:
        super().__init__()
        self.sizes, self.dim, self.heads = list(codebook_sizes), dim, num_heads
        self.num_tokens, self.num_classes = grid[0] * grid[1], num_classes
        self.depth = projection_depth
        self.cls_embedding = LabelEmbedder(num_classes, dim)
        self.tok_dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = RMSNorm(dim)
        if len(self.sizes) > 1:
            for group, size in enumerate(self.sizes):
                self.add_module(f"{group}_emb", nn.Embedding(size, dim))
            self.factorized_blocks = nn.ModuleList(Block(dim, num_heads, dropout) for _ in range(2))
            self.output = nn.ModuleList(nn.Linear(dim, size, bias=False) for size in self.sizes)
        else:
            self.tok_embeddings = nn.Embedding(self.sizes[0], dim)
            self.output = nn.Linear(dim, self.sizes[0], bias=False)
        self.projectors = nn.ModuleList(projector(dim, 2048, z) for z in projection_dims)
        self.table = rope_table(*grid, dim // num_heads)

    def embedding(self, group: int) -> nn.Module:
        """Table of a group."""
        return getattr(self, f"{group}_emb") if len(self.sizes) > 1 else self.tok_embeddings

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [B, S, G] to [B, S, D]."""
        return sum(self.embedding(g)(tokens[..., g]) for g in range(len(self.sizes)))  # pyright: ignore

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Training: fp32 logits per group and projections; tokens [B, T, G]."""
        x = torch.cat([self.cls_embedding(labels).unsqueeze(1), self.embed(tokens[:, :-1])], 1)
        x, projections = self.tok_dropout(x), []
        for depth, layer in enumerate(self.layers, start=1):
            x = layer(x, self.table[: x.shape[1]])
            if depth == self.depth:
                projections = [head(x) for head in self.projectors]
        if len(self.sizes) == 1:
            return [self.output(self.norm(x)).float()], projections
        parts = [x] + [self.embedding(g)(tokens[..., g]) for g in range(len(self.sizes) - 1)]
        mini = torch.stack(parts, 2).flatten(0, 1)
        for block in self.factorized_blocks:
            mini = block(mini, self.table[: len(self.sizes)])
        mini = self.norm(mini).view(*x.shape[:2], len(self.sizes), -1)
        return [head(mini[:, :, g]).float() for g, head in enumerate(self.output)], projections  # pyright: ignore

    def setup(self, blocks: nn.ModuleList, batch: int, length: int) -> Tensor:
        """New caches and their mask [B, S, S]."""
        length = -(-length // 8) * 8
        for block in blocks:
            block.attention.cache = Cache(batch, length, self.heads, self.dim // self.heads)  # pyright: ignore
        return torch.tril(torch.ones(length, length, dtype=torch.bool)).repeat(batch, 1, 1)

    def step(self, blocks: nn.ModuleList, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """One cached position through blocks."""
        for block in blocks:
            x = block(x, self.table[position], position, mask[: len(x), None, position])
        return x


def reference_alignment(projections: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Minus the mean cosine, sample by sample."""
    loss, count = torch.zeros(()), 0
    for ours, theirs in zip(projections, targets, strict=True):
        for mine, target in zip(ours, theirs, strict=True):
            mine, target = F.normalize(mine, dim=-1), F.normalize(target, dim=-1)
            loss = loss + (-(mine * target).sum(-1)).mean()
            count += 1
    return loss / count


@torch.no_grad()
def reference_sample(
    model: ReferenceLlamaGen,
    labels: Tensor,
    cfg_scale: float,
    top_k: int = 0,
    *,
    any_kernel: bool = False,
) -> Tensor:
    """Tokens int64 [B, T, G]; draws from torch's generator.

    The released sampler allows attention its unfused kernel only; with `any_kernel` torch chooses.
    """
    with nullcontext() if any_kernel else sdpa_kernel(SDPBackend.MATH):
        return _reference_sample(model, labels, cfg_scale, top_k)


def _reference_sample(
    model: ReferenceLlamaGen, labels: Tensor, cfg_scale: float, top_k: int
) -> Tensor:
    batch, groups = len(labels), len(model.sizes)
    guided = cfg_scale > 1
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.num_classes)])
    with torch.device(labels.device):
        mask = model.setup(model.layers, len(labels), model.num_tokens + 1)
    tokens = torch.zeros(batch, model.num_tokens, groups, dtype=torch.int64)
    x = model.cls_embedding(labels).unsqueeze(1)
    for index in range(model.num_tokens):
        position = torch.tensor([index])
        x = model.step(model.layers, x, position, mask)
        for group in range(groups):
            if groups > 1:
                if group == 0:
                    head_mask = model.setup(
                        model.factorized_blocks, len(labels), model.num_tokens + 1
                    )
                x = model.step(model.factorized_blocks, x, torch.tensor([group]), head_mask)  # pyright: ignore
                logits = model.output[group](model.norm(x))[:, 0].float()  # pyright: ignore
            else:
                logits = model.output(model.norm(x))[:, 0].float()
            if guided:
                cond, uncond = logits.split(batch)
                logits = uncond + (cond - uncond) * cfg_scale
            if top_k:
                logits[logits < logits.topk(top_k)[0][..., -1:]] = -float("inf")
            tokens[:, index, group] = torch.multinomial(logits.softmax(-1), 1)[:, 0]
            if group + 1 < groups:
                chosen = model.embedding(group)(tokens[:, index, group]).unsqueeze(1)
                x = torch.cat([chosen, chosen]) if guided else chosen
        x = model.embed(tokens[:, index : index + 1])
        x = torch.cat([x, x]) if guided else x
    return tokens
