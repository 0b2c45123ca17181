"""LlamaGen: a decoder-only transformer over image tokens (released llamagen/models).

Shape suffixes: B batch, T tokens of an image, S positions fed at once, D width, H heads,
K head width, G token groups, V entries of a group's codebook.
Parameter names equal those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from ifsq_train.models.key_value_cache import KeyValueCache, new_cache
from ifsq_train.models.token_head import TokenHead
from ifsq_train.models.transformer import Block, LabelEmbedder, RMSNorm, projector, rope_table


class Shape(TypedDict):
    """Depth, attention heads and width of a transformer."""

    num_layers: int
    num_heads: int
    dim: int


SIZES: dict[str, Shape] = {
    "S": {"num_layers": 12, "num_heads": 12, "dim": 384},
    "B": {"num_layers": 12, "num_heads": 12, "dim": 768},
    "L": {"num_layers": 24, "num_heads": 16, "dim": 1024},
    "XL": {"num_layers": 36, "num_heads": 20, "dim": 1280},
    "XXL": {"num_layers": 48, "num_heads": 24, "dim": 1536},
    "XXXL": {"num_layers": 24, "num_heads": 32, "dim": 3200},
}


@dataclass(frozen=True)
class LlamaGenOutput:
    """One forward pass.

    Attributes:
        logits: per group [B, T, V_g]; position i predicts token i.
        projections: REPA projector outputs [B, T, Z], empty without projectors.
        hidden: residual stream after the embedding and each block, only where asked for.
        group_losses: per group the mean cross-entropy in nats, fp32 scalar, only where asked for
            in place of logits.
    """

    logits: tuple[Tensor, ...]
    projections: tuple[Tensor, ...] = ()
    hidden: tuple[Tensor, ...] = ()
    group_losses: tuple[Tensor, ...] = ()


class LlamaGen(nn.Module):
    """Class-conditional next-token prediction over a grid of image tokens.

    Args:
        num_layers, num_heads, dim: see `SIZES`.
        codebook_sizes: entries of each token group; more than one adds the factorized head.
        grid: height and width of the token grid.
        num_classes: real classes; index `num_classes` is the null class.
        token_dropout, residual_dropout, feed_forward_dropout: 0.1 each in the released code.
        factorized_layers: blocks of the factorized head.
        multiple_of: feed-forward widths are rounded up to it.
        projection_dims: teacher widths of REPA projectors; none by default.
        projection_depth: block (1-based) after which the projectors read; 0 is the embedding.
        projector_width: hidden width of a projector.

    Attributes:
        residual_dtype: of the stream between blocks while training; None: that of the weights.
    """

    rope: Tensor
    residual_dtype: torch.dtype | None = None

    def __init__(
        self,
        *,
        num_layers: int,
        num_heads: int,
        dim: int,
        codebook_sizes: Sequence[int],
        grid: tuple[int, int],
        num_classes: int = 1000,
        token_dropout: float = 0.1,
        residual_dropout: float = 0.1,
        feed_forward_dropout: float = 0.1,
        factorized_layers: int = 2,
        multiple_of: int = 256,
        projection_dims: Sequence[int] = (),
        projection_depth: int = 8,
        projector_width: int = 2048,
    ) -> None:
        super().__init__()
        self.codebook_sizes, self.grid, self.num_heads = tuple(codebook_sizes), grid, num_heads
        self.num_classes, self.projection_depth = num_classes, projection_depth
        self.num_tokens = grid[0] * grid[1]
        self.cls_embedding = LabelEmbedder(num_classes, dim)
        self.tok_dropout = nn.Dropout(token_dropout)

        def blocks(count: int) -> nn.ModuleList:
            shape = (dim, num_heads, multiple_of, residual_dropout, feed_forward_dropout)
            return nn.ModuleList(Block(*shape) for _ in range(count))

        self.layers = blocks(num_layers)
        self.norm = RMSNorm(dim)
        if self.factorized:
            for group, size in enumerate(self.codebook_sizes):
                self.add_module(f"{group}_emb", nn.Embedding(size, dim))
            self.factorized_blocks = blocks(factorized_layers)
            self.output = nn.ModuleList(TokenHead(dim, size) for size in self.codebook_sizes)
        else:
            self.tok_embeddings = nn.Embedding(self.codebook_sizes[0], dim)
            self.output = TokenHead(dim, self.codebook_sizes[0])
        self.projectors = nn.ModuleList(
            projector(dim, projector_width, width) for width in projection_dims
        )
        table = rope_table(*grid, dim // num_heads)
        self.register_buffer("rope", table, persistent=False)
        self.reset_parameters()

    @property
    def factorized(self) -> bool:
        """Whether a position has several tokens."""
        return len(self.codebook_sizes) > 1

    def example_inputs(self) -> tuple[Tensor, Tensor]:
        """Tokens and label of one sample, all zero, for counting operations."""
        groups = (len(self.codebook_sizes),) if self.factorized else ()
        shape = (1, self.num_tokens, *groups)
        return torch.zeros(shape, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)

    def reset_parameters(self) -> None:
        """Linear and embedding weights N(0, 0.02), biases 0, output heads 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        heads = self.output if isinstance(self.output, nn.ModuleList) else [self.output]
        for head in heads:
            nn.init.zeros_(head.weight)  # pyright: ignore[reportArgumentType]

    def group_embedding(self, group: int) -> nn.Embedding:
        """Embedding table of a token group."""
        table = getattr(self, f"{group}_emb") if self.factorized else self.tok_embeddings
        assert isinstance(table, nn.Embedding)
        return table

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, S] or [B, S, G] -> [B, S, D]; groups are summed."""
        if not self.factorized:
            return self.tok_embeddings(tokens)
        parts = [self.group_embedding(g)(tokens[..., g]) for g in range(len(self.codebook_sizes))]
        return torch.stack(parts).sum(0)

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor,
        *,
        drop_labels: Tensor | None = None,
        keep_hidden: bool = False,
        losses_only: bool = False,
    ) -> LlamaGenOutput:
        """Teacher-forced pass.

        Args:
            tokens: int64 [B, T] or [B, T, G].
            labels: int64 [B] in [0, num_classes]; num_classes is the null class.
            drop_labels: bool [B], labels to replace by the null class.
            keep_hidden: also return the residual stream.
            losses_only: give `group_losses` in place of logits, which for a large codebook are
                the largest tensors of a step; never more than a part of them exists then.
        """
        first = self.cls_embedding(labels, drop_labels).unsqueeze(1)
        x = self.tok_dropout(torch.cat([first, self.embed_tokens(tokens[:, :-1])], 1))
        x = x if self.residual_dtype is None else x.to(self.residual_dtype)
        table = self.rope[: x.shape[1]]
        hidden, projections = [x], self._project(x, 0)
        for depth, layer in enumerate(self.layers, start=1):
            x = layer(x, table)
            projections = projections or self._project(x, depth)
            if keep_hidden:
                hidden.append(x)
        inputs = self._head_inputs(x, tokens)
        logits: tuple[Tensor, ...] = ()
        losses: tuple[Tensor, ...] = ()
        if losses_only:
            losses = self._group_losses(inputs, tokens)
        else:
            logits = tuple(head(h) for head, h in zip(self._heads(), inputs, strict=True))
        return LlamaGenOutput(logits, projections, tuple(hidden) if keep_hidden else (), losses)

    def _project(self, x: Tensor, depth: int) -> tuple[Tensor, ...]:
        if depth != self.projection_depth:
            return ()
        return tuple(projector(x) for projector in self.projectors)

    def _heads(self) -> list[nn.Module]:
        """Output layer of each group."""
        return list(self.output) if isinstance(self.output, nn.ModuleList) else [self.output]

    def _head_inputs(self, x_BTD: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """What each group's output layer reads, [B, T, D].

        Factorized: a short causal sequence per position, trunk output, then the groups before.
        """
        if not self.factorized:
            return (self.norm(x_BTD),)
        groups = len(self.codebook_sizes)
        parts = [x_BTD]
        parts += [self.group_embedding(g)(tokens[..., g]) for g in range(groups - 1)]
        mini = torch.stack([part.to(x_BTD.dtype) for part in parts], 2).flatten(0, 1)
        for block in self.factorized_blocks:
            mini = block(mini, self.rope[:groups])
        return self.norm(mini).unflatten(0, x_BTD.shape[:2]).unbind(2)

    def _group_losses(self, inputs: tuple[Tensor, ...], tokens: Tensor) -> tuple[Tensor, ...]:
        targets = tokens.unbind(-1) if self.factorized else (tokens,)
        heads = self._heads()
        return tuple(head(h, t) for head, h, t in zip(heads, inputs, targets, strict=True))

    def new_caches(
        self, batch: int, length: int, *, head: bool = False, static: bool = False
    ) -> list[KeyValueCache]:
        """One cache per trunk block, or per block of the factorized head; see `new_cache`."""
        weight = self.norm.weight
        blocks = self.factorized_blocks if head else self.layers
        shape = (batch, self.num_heads, length, weight.shape[0] // self.num_heads)
        return [new_cache(shape, weight, static=static) for _ in blocks]

    def decode_step(self, x: Tensor, caches: list[KeyValueCache], position: int | Tensor) -> Tensor:
        """One trunk step on an embedded position [B, 1, D] -> residual stream [B, 1, D].

        With `position` int64 [1] on the device no shape depends on it: fit for CUDA graphs.
        """
        if isinstance(position, Tensor):
            table = self.rope.index_select(0, position)
        else:
            table = self.rope[position : position + 1]
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, table, cache, position)
        return x

    def head_hidden(self, x: Tensor, caches: list[KeyValueCache], group: int) -> Tensor:
        """What one group's output layer reads, [B, D], from [B, 1, D].

        `caches` are those of the factorized head; others have none.
        """
        if self.factorized:
            table = self.rope[group : group + 1]
            for block, cache in zip(self.factorized_blocks, caches, strict=True):
                x = block(x, table, cache, group)
        return self.norm(x)[:, 0]

    def head_logits(self, hidden: Tensor, group: int) -> Tensor:
        """Logits [B, V_g] of one group from `head_hidden`; linear in it."""
        return self._heads()[group](hidden)
