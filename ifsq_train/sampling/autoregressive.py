"""Drawing image tokens from a LlamaGen, one position at a time with a key-value cache.

The draws of a sample depend on its own seed only: any batching, and any number of machines,
gives the same set of images up to rounding of the network's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
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
        on_logits: called with (position, group, guided logits [B, V]).

    Returns:
        int64 [B, T], or [B, T, G] for a factorized model.
    """
    assert not model.training, "dropout would make every draw another one"
    groups, length = len(model.codebook_sizes), model.num_tokens
    draws = _uniforms(seeds, length, groups).to(labels.device)
    guided = config.cfg_scale > 1.0
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.num_classes)])
    trunk = _Trunk(model, len(labels), config.compiled)
    head_caches = model.new_caches(len(labels), groups, head=True) if groups > 1 else []
    tokens = torch.zeros(len(seeds), length, groups, dtype=torch.int64, device=labels.device)
    x = model.cls_embedding(labels).unsqueeze(1)
    for position in range(length):
        if guided and _is_last_guided(config, position - 1) and not plain_paths():
            # Nothing is guided any more: the unconditional branch is not needed again.
            guided, x = False, x[: len(seeds)]
            for cache in (*trunk.caches, *head_caches):
                cache.keep_first(len(seeds))
        stream = trunk.step(x, position)
        for group in range(groups):
            hidden = model.head_hidden(stream, head_caches, group)
            logits = _logits(model, hidden, group, config, position if guided else None)
            if on_logits is not None:
                on_logits(position, group, logits)
            chosen = _draw(logits, draws[:, position, group], config)
            tokens[:, position, group] = chosen
            if group + 1 < groups:
                stream = _repeat(model.group_embedding(group)(chosen), guided).unsqueeze(1)
        newest = tokens[:, position : position + 1]
        x = _repeat(model.embed_tokens(newest if groups > 1 else newest[..., 0]), guided)
    return tokens if groups > 1 else tokens[..., 0]


class _Trunk:
    """The blocks with their caches, allocated once; compiled with CUDA graphs where asked for."""

    def __init__(self, model: LlamaGen, batch: int, compiled: bool) -> None:
        self._device = model.norm.weight.device
        self._static = compiled and self._device.type == "cuda" and not plain_paths()
        self.caches = model.new_caches(batch, model.num_tokens, static=self._static)
        self._step: Callable[..., Tensor] = model.decode_step
        if self._static:
            # Kept with the model, so that further batches find it compiled.
            found = _COMPILED.get(model)
            if found is None:
                found = torch.compile(model.decode_step, mode="reduce-overhead", fullgraph=True)
                _COMPILED[model] = found
            self._step = found

    def step(self, x: Tensor, position: int) -> Tensor:
        """Residual stream [B, 1, D] of an embedded position [B, 1, D]."""
        if not self._static:
            return self._step(x, self.caches, position)
        place = torch.full((1,), position, device=self._device)
        torch.compiler.cudagraph_mark_step_begin()
        return self._step(x, self.caches, place).clone()


_COMPILED: WeakKeyDictionary[LlamaGen, Callable[..., Tensor]] = WeakKeyDictionary()


def _repeat(x: Tensor, guided: bool) -> Tensor:
    """Both branches of guidance see the same tokens."""
    return torch.cat([x, x]) if guided else x


def _logits(
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


def _is_last_guided(config: SamplingConfig, position: int) -> bool:
    """Whether no later position is guided, released counting: j - 1 <= interval, and token 0."""
    return config.cfg_interval >= 0 and position == config.cfg_interval + 1


def _draw(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Inverse of the cumulative distribution at `uniform` fp64 [B]; int64 [B]."""
    if config.greedy:
        return logits.argmax(-1)
    probabilities = filtered_probabilities(logits, config)
    if plain_paths() or probabilities.shape[-1] < 2 * _BLOCK:
        return _invert(probabilities.double().cumsum(-1), uniform)
    return _invert_in_blocks(probabilities, uniform)


def _invert(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """First entry whose cumulative mass fp64 [B, V] is above the share `uniform` of all; [B]."""
    total = cumulative[:, -1]
    # Below the total, so that rounding never lets a last entry of zero probability be chosen.
    target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(-1), right=True)[:, 0]


def _invert_in_blocks(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """`_invert` without a cumulative sum over the whole codebook: its block first; fp32 [B, V]."""
    size = probabilities.shape[-1]
    whole = size // _BLOCK * _BLOCK
    sums = probabilities[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1, dtype=torch.float64)
    if whole < size:
        rest = probabilities[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)
        sums = torch.cat([sums, rest], 1)
    cumulative = sums.cumsum(-1)
    block = _invert(cumulative, uniform).unsqueeze(-1)
    mass = sums.gather(1, block)[:, 0]
    before = cumulative.gather(1, block)[:, 0] - mass
    within = ((uniform * cumulative[:, -1] - before) / mass).clamp(0.0, 1.0)
    entries = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    inside = probabilities.gather(1, entries.clamp_max(size - 1)).double()
    inside = inside.masked_fill(entries >= size, 0.0)
    return block[:, 0] * _BLOCK + _invert(inside.cumsum(-1), within)


def _uniforms(seeds: Sequence[int], length: int, groups: int) -> Tensor:
    """fp64 [B, T, G] in [0, 1); row i is a function of seeds[i]."""
    rows = [np.random.Generator(np.random.Philox(key=s)).random((length, groups)) for s in seeds]
    return torch.from_numpy(np.stack(rows))
