"""Drawing image tokens from a LlamaGen, one position at a time with a key-value cache.

The draws of a sample depend on its own seed only: any batching, and any number of machines,
gives the same set of images up to rounding of the network's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.plain import plain_paths
from ifsq_train.sampling.drawing import (
    SamplingConfig,
    draw,
    filtered_probabilities,
    guided_logits,
)
from ifsq_train.sampling.static_decoder import StaticDecoder, static_decoder

__all__ = ["SamplingConfig", "filtered_probabilities", "sample_tokens"]


@torch.no_grad()
def sample_tokens(
    model: LlamaGen,
    labels: Tensor,
    seeds: Sequence[int],
    config: SamplingConfig,
    on_logits: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Draw all tokens of a batch of images.

    Args:
        model: in eval mode.
        labels: int64 [B], on the model's device.
        seeds: one per sample; decides its draws.
        config: guidance and filters.
        on_logits: called with (position, group, guided logits [B, V]); nothing is compiled then.

    Returns:
        int64 [B, T], or [B, T, G] for a factorized model.
    """
    assert not model.training, "dropout would make every draw another one"
    draws = _uniforms(seeds, model.num_tokens, len(model.codebook_sizes)).to(labels.device)
    static = config.compiled and labels.device.type == "cuda" and not plain_paths()
    if static and on_logits is None:
        tokens = draw_compiled(static_decoder(model, len(seeds)), labels, draws, config)
    else:
        tokens = _draw_eagerly(model, labels, draws, config, on_logits)
    return tokens if len(model.codebook_sizes) > 1 else tokens[..., 0]


def draw_compiled(
    decoder: StaticDecoder, labels: Tensor, draws: Tensor, config: SamplingConfig
) -> Tensor:
    """`sample_tokens` with one captured graph per position; int64 [B, T, G].

    Args:
        decoder: with room for B samples.
        labels: int64 [B].
        draws: fp64 [B, T, G] in [0, 1).
        config: guidance and filters.
    """
    model, (count, length, groups) = decoder.model, draws.shape
    labels, draws = _padded(labels, decoder.rows), _padded(draws, decoder.rows)
    guided = config.cfg_scale > 1.0
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.num_classes)])
    tokens = torch.zeros(decoder.rows, length, groups, dtype=torch.int64, device=labels.device)
    x = model.cls_embedding(labels).unsqueeze(1)
    for position in range(length):
        if guided and _is_last_guided(config, position - 1):
            guided, x = False, x[: decoder.rows]
        chosen = decoder.step(x, draws[:, position], position, config, guided=guided)
        tokens[:, position] = chosen
        x = _repeat(model.embed_tokens(chosen[:, None] if groups > 1 else chosen), guided)
    return tokens[:count]


def _draw_eagerly(
    model: LlamaGen,
    labels: Tensor,
    draws: Tensor,
    config: SamplingConfig,
    on_logits: Callable[[int, int, Tensor], None] | None,
) -> Tensor:
    """Every kernel by itself; int64 [B, T, G]."""
    count, length, groups = draws.shape
    guided = config.cfg_scale > 1.0
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.num_classes)])
    caches = model.new_caches(len(labels), length)
    head_caches = model.new_caches(len(labels), groups, head=True) if groups > 1 else []
    tokens = torch.zeros(count, length, groups, dtype=torch.int64, device=labels.device)
    x = model.cls_embedding(labels).unsqueeze(1)
    for position in range(length):
        if guided and _is_last_guided(config, position - 1) and not plain_paths():
            # Nothing is guided any more: the unconditional branch is not needed again.
            guided, x = False, x[:count]
            for cache in (*caches, *head_caches):
                cache.keep_first(count)
        stream = model.decode_step(x, caches, position)
        for group in range(groups):
            hidden = model.head_hidden(stream, head_caches, group)
            logits = guided_logits(model, hidden, group, config, position if guided else None)
            if on_logits is not None:
                on_logits(position, group, logits)
            chosen = draw(logits, draws[:, position, group], config)
            tokens[:, position, group] = chosen
            if group + 1 < groups:
                stream = _repeat(model.group_embedding(group)(chosen), guided).unsqueeze(1)
        newest = tokens[:, position : position + 1]
        x = _repeat(model.embed_tokens(newest if groups > 1 else newest[..., 0]), guided)
    return tokens


def _padded(x: Tensor, rows: int) -> Tensor:
    """Zeros below, up to a number of rows."""
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])]) if len(x) < rows else x


def _repeat(x: Tensor, guided: bool) -> Tensor:
    """Both branches of guidance see the same tokens."""
    return torch.cat([x, x]) if guided else x


def _is_last_guided(config: SamplingConfig, position: int) -> bool:
    """Whether no later position is guided, released counting: j - 1 <= interval, and token 0."""
    return config.cfg_interval >= 0 and position == config.cfg_interval + 1


def _uniforms(seeds: Sequence[int], length: int, groups: int) -> Tensor:
    """fp64 [B, T, G] in [0, 1); row i is a function of seeds[i]."""
    rows = [np.random.Generator(np.random.Philox(key=s)).random((length, groups)) for s in seeds]
    return torch.from_numpy(np.stack(rows))
