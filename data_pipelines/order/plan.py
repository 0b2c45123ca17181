"""The data order as a pure function of (dataset, global batch size, seed, step).

Nothing is remembered: `batch_ids(step)` computes global batch `step` from integers, the same ids
in the same order for any number of ranks, so resuming needs one number and a changed world size
changes nothing. The order is made so that reads stay nearly sequential:

1. An epoch permutes the shards by hash and concatenates them (rotated by a hashed amount, so that
   even a single-shard dataset drops different samples each epoch) into positions [0, T).
2. The positions are cut into C lanes of T // C contiguous positions.
3. Within a lane, blocks of W positions (boundaries staggered per lane) are shuffled by a keyed
   bijection.
4. Every global batch takes the next B / C samples of every lane, lane after lane.

A rank's contiguous share of a batch therefore touches few lanes, and a lane reads its shards one
after the other with at most a window in flight. Datasets not much larger than a window get one
lane, that is, a uniform shuffle of everything.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.hashing import hash_u64, permute

PLAN_VERSION = 1
MAX_LANES = 64
DEFAULT_SHUFFLE_WINDOW = 16_384

_DOMAIN_SHARDS, _DOMAIN_ROTATION, _DOMAIN_BLOCKS = 1, 2, 3


class DataPlan(Protocol):
    """An order of samples as a pure function of the step: of one dataset, or of a mixture."""

    @property
    def global_batch_size(self) -> int:
        """Samples per step over all ranks."""
        ...

    @property
    def num_samples(self) -> int:
        """Different samples there are."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Global batches until every sample was drawn once, on average."""
        ...

    @property
    def digest(self) -> str:
        """Identity of the order: changes with anything that changes a batch."""
        ...

    def epoch(self, step: int) -> int:
        """How often, on average, every sample was drawn before global batch `step`."""
        ...

    def rank_ids(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Sample ids of a rank's share of global batch `step`."""
        ...

    def rank_epochs(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """How often each of these samples was drawn before, int64 [B]; decides its view."""
        ...


def rank_slots(global_batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last (exclusive) place of a rank's share in a global batch.

    Shares are contiguous and differ by one where the world size does not divide the batch.
    """
    if not 0 <= rank < world_size:
        raise UserError(f"rank={rank} is not allowed; use 0 to {world_size - 1}")
    return rank * global_batch_size // world_size, (rank + 1) * global_batch_size // world_size


def choose_num_lanes(num_samples: int, global_batch_size: int, shuffle_window: int) -> int:
    """Largest divisor of the batch size up to 64 that leaves every lane a whole window."""
    most = min(MAX_LANES, max(1, num_samples // shuffle_window))
    return max(lanes for lanes in range(1, most + 1) if global_batch_size % lanes == 0)


@dataclass(frozen=True)
class _EpochLayout:
    """Where an epoch's positions come from; O(shards)."""

    rotation: int
    position_ends: NDArray[np.int64]
    """Ends of the permuted shards on the line of positions, [num_shards]."""
    id_minus_position: NDArray[np.int64]
    """Sample id minus position, constant within a shard, [num_shards]."""


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """Which samples make up global batch k. See the module text for the construction.

    Args:
        manifest_digest: digest of the dataset the ids belong to; only enters `digest`.
        shard_sizes: samples per shard, int64 [num_shards], in manifest order. Sample ids number
            the samples of the shards in that order.
        global_batch_size: B, samples per step over all ranks.
        seed: decides the order together with everything above.
        shuffle_window: W, samples within which a lane is shuffled.
        num_lanes: C, must divide B; None chooses it from the dataset size.

    Raises:
        UserError: fewer samples than one batch, lanes that do not divide the batch, a size < 1.
    """

    manifest_digest: str
    shard_sizes: Sequence[int] | NDArray[np.int64]
    global_batch_size: int
    seed: int
    shuffle_window: int = DEFAULT_SHUFFLE_WINDOW
    num_lanes: int | None = None
    num_samples: int = field(init=False)
    steps_per_epoch: int = field(init=False)
    lanes: int = field(init=False)
    digest: str = field(init=False)
    _layouts: dict[int, _EpochLayout] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = np.array(self.shard_sizes, dtype=np.int64)
        sizes.setflags(write=False)
        for name in ("global_batch_size", "shuffle_window"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is not allowed; use 1 or more")
        total = int(sizes.sum())
        if total < self.global_batch_size:
            raise UserError(
                f"the dataset has {total} samples, fewer than global_batch_size="
                f"{self.global_batch_size}; use a batch of at most {total} or more data"
            )
        lanes = self.num_lanes
        if lanes is None:
            lanes = choose_num_lanes(total, self.global_batch_size, self.shuffle_window)
        if lanes < 1 or self.global_batch_size % lanes:
            raise UserError(
                f"num_lanes={lanes} does not divide global_batch_size={self.global_batch_size}; "
                f"use a divisor of it, or leave num_lanes out"
            )
        steps = (total // lanes) // (self.global_batch_size // lanes)
        for name, value in (
            ("shard_sizes", sizes),
            ("num_samples", total),
            ("lanes", lanes),
            ("steps_per_epoch", steps),
            ("digest", self._compute_digest(sizes, lanes)),
            ("_layouts", {}),
        ):
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplePlan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def epoch(self, step: int) -> int:
        """Epoch that global batch `step` belongs to, from 0."""
        return step // self.steps_per_epoch

    def batch_ids(self, step: int) -> NDArray[np.int64]:
        """Sample ids of global batch `step`, int64 [B]."""
        return self.rank_ids(step, 0, 1)

    def rank_ids(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """The contiguous slice `[rank*B//R, (rank+1)*B//R)` of `batch_ids(step)`.

        Where `world_size` R does not divide B the slices differ by one in length, so losses must
        be weighted by true counts; with more ranks than samples some slices are empty.
        """
        if step < 0:
            raise UserError(f"step={step} is not allowed; use 0 or more")
        first, last = rank_slots(self.global_batch_size, rank, world_size)
        return self.drawn(step * self.global_batch_size + np.arange(first, last, dtype=np.int64))

    def rank_epochs(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Epoch of each of `rank_ids`, int64: all the same."""
        first, last = rank_slots(self.global_batch_size, rank, world_size)
        return np.full(last - first, self.epoch(step), dtype=np.int64)

    def drawn(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of the samples drawn as number 0, 1, ... of the endless order, int64 like `numbers`.

        Number `step * B + slot` is slot `slot` of global batch `step`.
        """
        per_lane = self.global_batch_size // self.lanes
        lane_length = self.num_samples // self.lanes
        step, slot = np.divmod(numbers, self.global_batch_size)
        epochs, batch_in_epoch = np.divmod(step, self.steps_per_epoch)
        lane, place = np.divmod(slot, per_lane)
        in_lane = batch_in_epoch * per_lane + place
        ids = np.empty_like(numbers)
        for epoch in np.unique(epochs).tolist():
            at = np.flatnonzero(epochs == epoch)
            position = self._shuffle_in_lane(epoch, lane[at], in_lane[at])
            ids[at] = self._ids_at(epoch, lane[at] * lane_length + position)
        return ids

    def drawn_epochs(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Epochs that the samples of `drawn(numbers)` belong to, int64."""
        return numbers // (self.global_batch_size * self.steps_per_epoch)

    def _shuffle_in_lane(
        self, epoch: int, lane: NDArray[np.int64], position: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        window = self.shuffle_window
        lane_length = self.num_samples // self.lanes
        # Staggered so that the lanes do not all finish a block, and change shards, at once.
        stagger = lane * window // self.lanes
        block = (position + stagger) // window
        start = np.maximum(block * window - stagger, 0)
        size = np.minimum((block + 1) * window - stagger, lane_length) - start
        key = hash_u64(self.seed, _DOMAIN_BLOCKS, epoch, lane, block)
        return start + permute(position - start, size, key)

    def _ids_at(self, epoch: int, position: NDArray[np.int64]) -> NDArray[np.int64]:
        layout = self._layout(epoch)
        position = (position + layout.rotation) % self.num_samples
        shard = np.searchsorted(layout.position_ends, position, side="right")
        return position + layout.id_minus_position[shard]

    def _layout(self, epoch: int) -> _EpochLayout:
        layout = self._layouts.get(epoch)
        if layout is None:
            layout = self._compute_layout(epoch)
            # Prefetching crosses an epoch boundary; two entries are enough.
            for old in [e for e in self._layouts if abs(e - epoch) > 1]:
                self._layouts.pop(old, None)
            self._layouts[epoch] = layout
        return layout

    def _compute_layout(self, epoch: int) -> _EpochLayout:
        sizes = np.asarray(self.shard_sizes)
        shards = np.arange(len(sizes), dtype=np.int64)
        order = np.argsort(hash_u64(self.seed, _DOMAIN_SHARDS, epoch, shards), kind="stable")
        ends = np.cumsum(sizes[order])
        first_ids = (np.cumsum(sizes) - sizes)[order]
        rotation = int(hash_u64(self.seed, _DOMAIN_ROTATION, epoch)) % self.num_samples
        return _EpochLayout(rotation, ends, first_ids - (ends - sizes[order]))

    def _compute_digest(self, sizes: NDArray[np.int64], lanes: int) -> str:
        facts = {
            "version": PLAN_VERSION,
            "manifest_digest": self.manifest_digest,
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "shuffle_window": self.shuffle_window,
            "lanes": lanes,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(sizes.astype("<i8").tobytes())
        return digest.hexdigest()
