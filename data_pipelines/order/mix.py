"""Several datasets drawn from with fixed weights: exact, and a pure function like SamplePlan.

The endless sequence of draws repeats a pattern of W places, W the sum of the integer weights, in
which dataset d has exactly w_d places, spread evenly. So draw number n belongs to a dataset, and is
the m-th draw from it, by arithmetic alone; which sample that is, the dataset's own SamplePlan says.
Every dataset is shuffled and exhausted on its own: one with a small weight finishes its epoch
later than one with a large weight, and none ever repeats a sample before all others were drawn
(but for the few an epoch leaves out, see SamplePlan).
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.hashing import hash_u64
from data_pipelines.order.plan import DEFAULT_SHUFFLE_WINDOW, MAX_LANES, SamplePlan, rank_slots

MIX_VERSION = 1
MAX_PATTERN = 1_000_000
_DOMAIN_MEMBER_SEED = 4


@dataclass(frozen=True)
class MixMember:
    """A dataset of a mixture: its identity, samples per shard, and weight above 0.

    Weights are relative. They are taken as written in decimal: 0.3 is three tenths.
    """

    manifest_digest: str
    shard_sizes: Sequence[int] | NDArray[np.int64]
    weight: float


@dataclass(frozen=True, eq=False)
class MixPlan:
    """Which samples of which datasets make up global batch k; the interface is SamplePlan's.

    Sample ids number the samples of all members, one dataset after the other; `split_ids` tells
    them apart.

    Args:
        members: the datasets, in an order that matters.
        global_batch_size: B, samples per step over all ranks and datasets.
        seed: decides the order together with everything else here.
        shuffle_window: samples within which each lane of each dataset is shuffled.

    Raises:
        UserError: no datasets, an empty one, a weight that is not above 0, or weights whose
            whole-number ratio has a sum above a million.
    """

    members: Sequence[MixMember]
    global_batch_size: int
    seed: int
    shuffle_window: int = DEFAULT_SHUFFLE_WINDOW
    plans: tuple[SamplePlan, ...] = field(init=False)
    weights: tuple[int, ...] = field(init=False)
    """Whole numbers in the ratio of the members' weights, without a common divisor."""
    num_samples: int = field(init=False)
    steps_per_epoch: int = field(init=False)
    digest: str = field(init=False)
    _first_ids: NDArray[np.int64] = field(init=False, repr=False)
    _pattern: NDArray[np.int64] = field(init=False, repr=False)
    """Which dataset each place of the pattern belongs to, [W]."""
    _drawn_before: NDArray[np.int64] = field(init=False, repr=False)
    """Earlier places of the same dataset in the pattern, [W]."""

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise UserError(
                f"global_batch_size={self.global_batch_size} is not allowed; use 1 or more"
            )
        weights = _whole_weights([member.weight for member in self.members])
        plans = tuple(self._plan(number, weights) for number in range(len(weights)))
        sizes = np.array([plan.num_samples for plan in plans], dtype=np.int64)
        pattern, drawn_before = _spread_evenly(weights)
        for name, value in (
            ("weights", weights),
            ("plans", plans),
            ("num_samples", int(sizes.sum())),
            ("steps_per_epoch", max(1, int(sizes.sum()) // self.global_batch_size)),
            ("_first_ids", np.cumsum(sizes) - sizes),
            ("_pattern", pattern),
            ("_drawn_before", drawn_before),
        ):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "digest", self._compute_digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MixPlan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def epoch(self, step: int) -> int:
        """Samples drawn before global batch `step` over samples there are, rounded down."""
        return step // self.steps_per_epoch

    def batch_ids(self, step: int) -> NDArray[np.int64]:
        """Sample ids of global batch `step`, int64 [B]."""
        return self.rank_ids(step, 0, 1)

    def rank_ids(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """The contiguous slice `[rank*B//R, (rank+1)*B//R)` of `batch_ids(step)`."""
        dataset, number = self._draws(step, rank, world_size)
        ids = np.empty_like(number)
        for member in np.unique(dataset).tolist():
            at = np.flatnonzero(dataset == member)
            ids[at] = self._first_ids[member] + self.plans[member].drawn(number[at])
        return ids

    def rank_epochs(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Epoch, within its own dataset, of each of `rank_ids`, int64."""
        dataset, number = self._draws(step, rank, world_size)
        epochs = np.empty_like(number)
        for member in np.unique(dataset).tolist():
            at = np.flatnonzero(dataset == member)
            epochs[at] = self.plans[member].drawn_epochs(number[at])
        return epochs

    def split_ids(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids to (number of the dataset, id within that dataset), each int64 [B]."""
        dataset = np.searchsorted(self._first_ids, ids, side="right") - 1
        return dataset, ids - self._first_ids[dataset]

    def _draws(
        self, step: int, rank: int, world_size: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset of each slot, and how often it was drawn from before."""
        if step < 0:
            raise UserError(f"step={step} is not allowed; use 0 or more")
        first, last = rank_slots(self.global_batch_size, rank, world_size)
        draws = step * self.global_batch_size + np.arange(first, last, dtype=np.int64)
        repetition, place = np.divmod(draws, len(self._pattern))
        dataset = self._pattern[place]
        weights = np.array(self.weights, dtype=np.int64)
        return dataset, repetition * weights[dataset] + self._drawn_before[place]

    def _plan(self, number: int, weights: Sequence[int]) -> SamplePlan:
        member = self.members[number]
        total = int(np.sum(member.shard_sizes))
        if total < 1:
            raise UserError(f"dataset {number} of the mixture is empty; leave it out")
        share = self.global_batch_size * weights[number] / sum(weights)
        # Lanes must divide the member's own batch; near the true share a rank keeps to its lanes.
        most = min(MAX_LANES, max(1, math.floor(share)), total)
        lanes = 1 << (most.bit_length() - 1)
        batch = min(max(1, round(share / lanes)), total // lanes) * lanes
        seed = int(hash_u64(self.seed, _DOMAIN_MEMBER_SEED, number))
        return SamplePlan(
            member.manifest_digest, member.shard_sizes, batch, seed, self.shuffle_window
        )

    def _compute_digest(self) -> str:
        facts = {
            "version": MIX_VERSION,
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "weights": self.weights,
            "members": [plan.digest for plan in self.plans],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    if not weights:
        raise UserError("the mixture has no datasets; name at least one")
    for weight in weights:
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"mixture weight {weight} is not allowed; use a number above 0")
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(part.denominator for part in exact))
    whole = [int(part * scale) for part in exact]
    divisor = math.gcd(*whole)
    whole = [part // divisor for part in whole]
    if sum(whole) > MAX_PATTERN:
        raise UserError(
            f"mixture weights {', '.join(map(str, weights))} are in the ratio"
            f" {':'.join(map(str, whole))}, whose sum is above {MAX_PATTERN}; round them"
        )
    return tuple(whole)


def _spread_evenly(weights: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Datasets of the places of one pattern, and the earlier places of the same dataset, [W]."""
    dataset = np.repeat(np.arange(len(weights), dtype=np.int64), weights)
    within = np.concatenate([np.arange(weight, dtype=np.int64) for weight in weights])
    # The j-th of w draws is due at (2j + 1) / 2w of the pattern: one correctly rounded division,
    # so the order is the same on every machine; the sort is stable.
    due = (2 * within + 1) / (2 * np.array(weights, dtype=np.int64)[dataset])
    order = np.argsort(due, kind="stable")
    return dataset[order], within[order]
