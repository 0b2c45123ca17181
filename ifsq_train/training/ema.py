"""Exponential moving averages of weights, kept on the pieces each rank owns.

Nothing is communicated and nothing is kept twice: a rank averages exactly the fp32 master
pieces it would write to a checkpoint. Buffers (running statistics) are small and averaged
whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ifsq_train.checkpoint.averages import average_decay
from ifsq_train.checkpoint.format import AVERAGE, MASTER
from ifsq_train.checkpoint.reader import Checkpoint
from ifsq_train.strategy.base import Strategy
from ifsq_train.strategy.fragments import Fragment


class WeightAverage:
    """Average of one network: ``a <- d a + (1 - d) w`` after each of its updates.

    Args:
        strategy: holds the network.
        network: its name.
        decay: d, in [0, 1).
        warmup: whether d rises to `decay` over the first updates, see `average_decay`. The number
            of updates is that of the network's optimizer, so a resumed run goes on where it was.
    """

    def __init__(
        self, strategy: Strategy, network: str, decay: float, warmup: bool = False
    ) -> None:
        self._strategy, self._network = strategy, network
        self._decay, self._warmup = decay, warmup
        self._fragments = strategy.owned_fragments(network)
        self._weights = [fragment.states[MASTER] for fragment in self._fragments]
        self._averages = [weights.clone() for weights in self._weights]
        self._buffers = _float_buffers(strategy, network)
        self._buffer_averages = [buffer.clone() for buffer in self._buffers.values()]

    @torch.no_grad()
    def update(self) -> None:
        """One step of the average; fused over all tensors."""
        before = self._strategy.optimizer_steps(self._network) - 1
        weight = 1.0 - average_decay(self._decay, self._warmup, max(before, 0))
        torch._foreach_lerp_(self._averages, self._weights, weight)
        if self._buffers:
            current = list(self._buffers.values())
            torch._foreach_lerp_(self._buffer_averages, current, weight)

    def pieces(self) -> list[tuple[Fragment, Tensor]]:
        """Each owned piece with its average, fp32 1-D."""
        return list(zip(self._fragments, self._averages, strict=True))

    def buffers(self) -> dict[str, Tensor]:
        """Averaged buffers by name."""
        return dict(zip(self._buffers, self._buffer_averages, strict=True))

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over the saved averages."""
        for piece, average in zip(self._fragments, self._averages, strict=True):
            checkpoint.read_into(average, self._network, piece.name, AVERAGE, piece.start)
        saved_buffers = checkpoint.buffers(f"ema/{self._network}")
        for name, average in self.buffers().items():
            average.copy_(saved_buffers[name])


def _float_buffers(strategy: Strategy, network: str) -> dict[str, Tensor]:
    module = strategy.module(network)
    saved = module.state_dict(keep_vars=True)
    return {
        name: buffer
        for name, buffer in module.named_buffers()
        if name in saved and buffer.is_floating_point()
    }
