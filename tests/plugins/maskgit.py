"""A generator like MaskGIT (Chang et al. 2022) with its own sampler, as a plug-in of one file.

A bidirectional transformer predicts masked tokens; drawing starts with all of them masked and keeps
the most certain ones of every round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ifsq_train.config import Config, GeneratorTaskConfig, SampleConfig
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.plugins import GeneratorKind
from ifsq_train.tasks.base import StepInfo
from ifsq_train.tasks.generator import GeneratorTask, Labels, Prediction


class MaskGitModelConfig(Config):
    """Bidirectional transformer over image tokens."""

    num_layers: int = Field(default=4, ge=1)
    num_heads: int = Field(default=4, ge=1)
    dim: int = Field(default=128, ge=8)
    num_classes: int = Field(default=1000, ge=1)
    class_dropout: float = Field(default=0.1, ge=0, le=1)


class MaskGitConfig(GeneratorTaskConfig):
    """Train a transformer to fill in masked image tokens."""

    speaks: ClassVar[Literal["tokens", "latents"]] = "tokens"
    kind: Literal["maskgit"]
    model: MaskGitModelConfig
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)


class MaskGitSampler(Config):
    """How MaskGIT's tokens are drawn."""

    kind: Literal["maskgit"]
    num_rounds: int = Field(default=8, ge=1)
    choice_temperature: float = Field(default=4.5, ge=0)
    """Gumbel noise on the certainty by which tokens are kept; falls linearly to 0."""


class Block(nn.Module):
    """Attention over all positions and a feed-forward network, both after a norm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attention, self.joined = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.forward_in, self.forward_out = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, T, D] of the same shape."""
        parts = self.attention(self.norms[0](x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.joined(mixed)
        return x + self.forward_out(F.gelu(self.forward_in(self.norms[1](x))))


class MaskGit(nn.Module):
    """Logits of all tokens at once; one token group."""

    def __init__(self, config: MaskGitModelConfig, spec: GeneratorSpec) -> None:
        super().__init__()
        (self.codebook_size,) = spec.codebook_sizes
        self.num_classes, self.num_tokens = config.num_classes, math.prod(spec.grid)
        self.tokens = nn.Embedding(self.codebook_size + 1, config.dim)
        self.classes = nn.Embedding(config.num_classes + 1, config.dim)
        self.places = nn.Parameter(torch.randn(self.num_tokens, config.dim) * 0.02)
        self.layers = nn.Sequential(
            *(Block(config.dim, config.num_heads) for _ in range(config.num_layers))
        )
        self.head = nn.Linear(config.dim, self.codebook_size)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, T, V] of tokens int64 [B, T], V where masked, and labels int64 [B]."""
        x = self.tokens(tokens) + self.places + self.classes(labels).unsqueeze(1)
        return self.head(self.layers(x))

    def example_inputs(self) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(1, self.num_tokens, dtype=torch.int64)
        return tokens, torch.zeros(1, dtype=torch.int64)


class MaskGitTask(GeneratorTask[MaskGitConfig]):
    """Cross-entropy of masked tokens; the part that is masked follows the cosine schedule."""

    def predict(
        self, network: nn.Module, inputs: Tensor, labels: Labels, info: StepInfo
    ) -> Prediction:
        assert isinstance(self.network, MaskGit)
        size, null = self.network.codebook_size, self.network.num_classes
        part = torch.cos(info.random.uniform("mask_ratio") * math.pi / 2).clamp_min(1e-3)
        chance = info.random.uniform("mask", inputs.shape[1:])
        masked = (chance < part.unsqueeze(1)).to(inputs.device)
        masked[:, 0] |= ~masked.any(1)
        classes = labels.classes.masked_fill(labels.dropped, null)
        logits = self.forward(network, info, inputs.masked_fill(masked, size), classes).float()
        losses = F.cross_entropy(
            logits.transpose(1, 2), inputs,
            label_smoothing=self.config.label_smoothing, reduction="none",
        )  # fmt: skip
        # Means over samples, so that micro-batches of any size add up.
        loss = ((losses * masked).sum(1) / masked.sum(1)).mean()
        return Prediction(loss, {"masked": masked.float().mean()})


def draw(network: MaskGit, labels: Tensor, seeds: Sequence[int], sample: SampleConfig) -> Tensor:
    """Tokens int64 [B, T]; row i is a function of its label and seed."""
    settings: Any = sample.sampler or MaskGitSampler(kind="maskgit")
    draws = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
    count, size, device = network.num_tokens, network.codebook_size, labels.device
    tokens = torch.full((len(labels), count), size, device=device)
    null = torch.full_like(labels, network.num_classes)
    for step in range(settings.num_rounds):
        logits = network(tokens, labels).float()
        if sample.cfg_scale != 1.0:
            free = network(tokens, null).float()
            logits = free + sample.cfg_scale * (logits - free)
        logits = logits / sample.temperature
        chosen = (logits + _gumbel(draws, (count, size)).to(device)).argmax(-1)
        hidden = tokens == size
        chosen = torch.where(hidden, chosen, tokens)
        certainty = logits.log_softmax(-1).gather(2, chosen.unsqueeze(2)).squeeze(2)
        left = 1.0 - (step + 1) / settings.num_rounds
        certainty += settings.choice_temperature * left * _gumbel(draws, (count,)).to(device)
        certainty = certainty.masked_fill(~hidden, torch.inf)
        num_masked = math.floor(count * math.cos(math.pi / 2 * (1.0 - left)) + 1e-9)
        again = certainty.argsort(1)[:, :num_masked]
        tokens = chosen.scatter(1, again, size) if num_masked else chosen
    return tokens


def _gumbel(draws: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    uniform = torch.stack([torch.rand(shape, generator=draw) for draw in draws])
    return -(-uniform.clamp_min(1e-20).log()).log()


def _network(config: MaskGitConfig, spec: GeneratorSpec) -> MaskGit:
    return MaskGit(config.model, spec)


KIND = GeneratorKind(
    config=MaskGitConfig, task=MaskGitTask, network=_network, draw=draw, sampler=MaskGitSampler
)
