"""Random numbers that belong to a sample, not to a process.

Everything random in a step is a pure function of (run seed, step, stream name, position in
the global batch). No generator state is ever saved: resuming needs the step number only, and
the numbers a sample sees do not depend on how many workers share the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any mix of integers and names; equal on every platform."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def on_device(draws: Tensor, device: torch.device) -> Tensor:
    """Draws of the CPU on a device; a GPU fetches them itself from page-locked memory, so that the
    host does not wait for what is queued there."""
    if device.type == "cuda" and torch.cuda.is_available():
        draws = draws.pin_memory()
    return draws.to(device, non_blocking=True)


@dataclass(frozen=True)
class BatchRandom:
    """Random draws for the samples at `positions` of the global batch of one step.

    Args:
        seed: the run's seed.
        step: optimizer step.
        positions: int64 [B], positions of these samples in the global batch.
        rank: only for `seed_layers`, whose draws cannot be tied to samples.
        micro_batch: as `rank`.
        ahead: draws for these samples that were made before, by name.
    """

    seed: int
    step: int
    positions: np.ndarray
    rank: int = 0
    micro_batch: int = 0
    ahead: Mapping[str, Tensor] = field(default_factory=dict)

    def drawn(self, name: str, make: Callable[[BatchRandom], Tensor]) -> Tensor:
        """What was drawn ahead under a name, on the batch's device, or `make` of this, on the CPU.

        Args:
            name: of the draw.
            make: gives the same numbers whenever it is called.
        """
        return self.ahead[name] if name in self.ahead else make(self)

    def uniform(self, stream: str, shape: Sequence[int] = ()) -> Tensor:
        """float32 [B, *shape] in [0, 1) on the CPU; `stream` keeps different uses apart."""
        draws = [generator.random(shape, np.float32) for generator in self._generators(stream)]
        return torch.from_numpy(np.stack(draws)) if draws else torch.empty(0, *shape)

    def normal(self, stream: str, shape: Sequence[int] = ()) -> Tensor:
        """float32 [B, *shape], standard normal, on the CPU."""
        draws = [
            generator.standard_normal(shape, np.float32) for generator in self._generators(stream)
        ]
        return torch.from_numpy(np.stack(draws)) if draws else torch.empty(0, *shape)

    def seed_layers(self, stream: str) -> None:
        """Seed torch's global generators for dropout inside layers.

        These draws are tied to (step, rank, micro-batch): exact on resume at the same world
        size, different at another one (docs/resuming.md lists this).
        """
        torch.manual_seed(
            derive_seed(self.seed, "layers", stream, self.step, self.rank, self.micro_batch)
        )

    def _generators(self, stream: str) -> list[np.random.Generator]:
        # Philox is a counter-based generator: the key is the (seed, step, stream) and the
        # counter block the position, so each sample has its own independent stream.
        key = derive_seed(self.seed, "batch", stream, self.step)
        return [
            np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(position)]))
            for position in self.positions
        ]
