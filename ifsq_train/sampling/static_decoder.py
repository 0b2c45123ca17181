"""A decoding step that a CUDA graph can hold: everything it changes stays where it is.

A graph is captured once per number of rows and bucket of lengths, and replayed for every token.
For that the caches are buffers of a module, whose addresses the compiler takes as fixed: a step
that changes tensors it was handed would be left out of the graphs. A batch smaller than the caches
is padded instead of captured anew, and attention reads the bucket that holds the position.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor, nn

from ifsq_train.models.key_value_cache import CacheWindow
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.sampling.drawing import SamplingConfig, draw, guided_logits

_SHORTEST = 64
_MOST_GRAPHS = 64
"""Over both numbers of rows, all buckets and several settings; the compiler's own limit is 8."""


def length_bucket(position: int, length: int) -> int:
    """Positions that attention reads at `position`: a power of two from 64 on, at most all."""
    return min(length, max(_SHORTEST, 1 << position.bit_length()))


def row_bucket(rows: int) -> int:
    """Rows that caches for `rows` samples are made with: a power of two."""
    return 1 << (rows - 1).bit_length()


class StaticDecoder(nn.Module):
    """One token of a batch, with all caches.

    Attributes:
        model: what decodes.
        rows: samples there is room for; the caches hold both branches of guidance.
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self, model: LlamaGen, rows: int, compiler: Callable[..., Callable[..., Tensor]]
    ) -> None:
        """Caches of zeros.

        Args:
            model: in eval mode.
            rows: samples.
            compiler: makes the step from its plain function.
        """
        super().__init__()
        self.model, self.rows = model, rows
        weight = model.norm.weight
        depth, heads = len(model.layers), model.num_heads
        shape = (2 * rows, heads, model.num_tokens, len(weight) // heads)
        for layer in range(depth):
            self.register_buffer(f"keys_{layer}", weight.new_zeros(shape), persistent=False)
            self.register_buffer(f"values_{layer}", weight.new_zeros(shape), persistent=False)
        self._compiled = compiler(self.forward)

    def __deepcopy__(self, memo: dict[int, object]) -> None:
        """A copy of the network makes caches of its own when it needs some."""

    def step(
        self, x: Tensor, uniform: Tensor, position: int, config: SamplingConfig, *, guided: bool
    ) -> Tensor:
        """Tokens int64 [B, G] of a position.

        Args:
            x: what the position reads, float [B, 1, D], of both branches where guided.
            uniform: fp64 [B, G].
            position: one after the other; 0 begins another batch.
            config: guidance and filters.
            guided: whether this position is.
        """
        place = torch.full((1,), position, device=x.device)
        length = length_bucket(position, self.model.num_tokens)
        torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS):
            return self._compiled(x, uniform, place, length, config, guided).clone()

    def forward(
        self,
        x: Tensor,
        uniform: Tensor,
        place: Tensor,
        length: int,
        config: SamplingConfig,
        guided: bool,
    ) -> Tensor:
        """`step` with the position int64 [1] on the device, so that no shape depends on it."""
        model = self.model
        caches = [
            CacheWindow(
                self.get_buffer(f"keys_{i}"), self.get_buffer(f"values_{i}"), len(x), length
            )
            for i in range(len(model.layers))
        ]
        stream = model.decode_step(x, list(caches), place)
        groups = len(model.codebook_sizes)
        head_caches = model.new_caches(len(x), groups, head=True, static=True) if groups > 1 else []
        chosen: list[Tensor] = []
        for group in range(groups):
            hidden = model.head_hidden(stream, head_caches, group)
            # Position 0: whether it is guided has been decided already.
            logits = guided_logits(model, hidden, group, config, 0 if guided else None)
            chosen.append(draw(logits, uniform[:, group], config))
            if group + 1 < groups:
                newest = model.group_embedding(group)(chosen[-1])
                stream = (torch.cat([newest, newest]) if guided else newest).unsqueeze(1)
        return torch.stack(chosen, 1)


def with_cuda_graphs(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled, and captured as a CUDA graph for every set of shapes."""
    return torch.compile(function, mode="reduce-overhead", fullgraph=True, dynamic=False)


def static_decoder(
    model: LlamaGen,
    rows: int,
    compiler: Callable[..., Callable[..., Tensor]] = with_cuda_graphs,
) -> StaticDecoder:
    """The decoder of a network with room for `rows` samples; made once and kept with it."""
    found = model.__dict__.get(_KEPT)
    if found is None or found.rows < rows or found.keys_0.dtype != model.norm.weight.dtype:
        with torch.inference_mode(False):
            found = StaticDecoder(model, row_bucket(rows), compiler)
        # Not as an attribute: the decoder holds the network and must not become a part of it.
        model.__dict__[_KEPT] = found
    return found


_KEPT = "_static_decoder"
