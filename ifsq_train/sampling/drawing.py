"""One token of a LlamaGen: guidance, filters and the draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.plain import plain_paths

_BLOCK = 128
"""Codebook entries looked at together when a token is drawn."""


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn.

    Attributes:
        cfg_scale: guidance s: ``uncond + s (cond - uncond)``; 1 turns guidance off.
        cfg_interval: guide token 0 and tokens j with j - 1 <= interval; -1 guides all.
        temperature: divides the guided logits.
        top_k: keep logits at least as large as the k-th largest; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose mass exceeds p.
        greedy: take the most likely token.
        compiled: compile the decoding step with CUDA graphs; ignored on the CPU.
    """

    cfg_scale: float = 1.0
    cfg_interval: int = -1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    compiled: bool = False


def filtered_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Probabilities fp32 [..., V] after temperature, top-k and top-p (in this order)."""
    logits = logits.float()
    if config.temperature != 1.0:
        logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        threshold = logits.topk(config.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if config.top_p < 1.0:
        ordered, order = logits.sort(-1, descending=True)
        mass = ordered.softmax(-1).cumsum(-1)
        # The token that crosses p is kept: drop those whose mass before them exceeds it.
        beyond = (mass > config.top_p).roll(1, -1)
        beyond[..., 0] = False
        dropped = torch.zeros_like(beyond).scatter(-1, order, beyond)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits.softmax(-1)


def guided_logits(
    model: LlamaGen, hidden: Tensor, group: int, config: SamplingConfig, guided_at: int | None
) -> Tensor:
    """Guided logits fp32 [B, V_g] at a position; without guidance where that is None.

    Guidance is linear, and so is the output layer: guided before it, half as many rows pass it.
    """
    if guided_at is None:
        return model.head_logits(hidden, group).float()
    if plain_paths():
        return _guide(model.head_logits(hidden, group), config, guided_at)
    return model.head_logits(_guide(hidden, config, guided_at).to(hidden.dtype), group).float()


def _guide(both: Tensor, config: SamplingConfig, position: int) -> Tensor:
    """Rows of the conditional and the unconditional branch to guided ones, in fp32."""
    conditional, unconditional = both.float().chunk(2)
    if config.cfg_interval >= 0 and position >= 1 and position - 1 > config.cfg_interval:
        return conditional
    return unconditional + (conditional - unconditional) * config.cfg_scale


def draw(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Inverse of the cumulative distribution at `uniform` fp64 [B]; int64 [B]."""
    if config.greedy:
        return logits.argmax(-1)
    probabilities = filtered_probabilities(logits, config)
    if plain_paths() or probabilities.shape[-1] < 2 * _BLOCK:
        return invert(probabilities.double().cumsum(-1), uniform)
    return invert_in_blocks(probabilities, uniform)


def invert(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """First entry whose cumulative mass fp64 [B, V] is above the share `uniform` of all; [B]."""
    total = cumulative[:, -1]
    # Below the total, so that rounding never lets a last entry of zero probability be chosen.
    target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(-1), right=True)[:, 0]


def invert_in_blocks(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """`invert` without a cumulative sum over the whole codebook: its block first; fp32 [B, V]."""
    size = probabilities.shape[-1]
    whole = size // _BLOCK * _BLOCK
    sums = probabilities[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1, dtype=torch.float64)
    if whole < size:
        rest = probabilities[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)
        sums = torch.cat([sums, rest], 1)
    cumulative = sums.cumsum(-1)
    block = invert(cumulative, uniform).unsqueeze(-1)
    mass = sums.gather(1, block)[:, 0]
    before = cumulative.gather(1, block)[:, 0] - mass
    within = ((uniform * cumulative[:, -1] - before) / mass).clamp(0.0, 1.0)
    entries = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    inside = probabilities.gather(1, entries.clamp_max(size - 1)).double()
    inside = inside.masked_fill(entries >= size, 0.0)
    return block[:, 0] * _BLOCK + invert(inside.cumsum(-1), within)
