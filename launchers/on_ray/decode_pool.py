"""A pool of Ray actors that decode images for the trainers, on whatever machines have the CPUs.

A batch is a pure function of (step, rank, world size), so the actors keep no state: any of them can
make any batch, and one that is lost is replaced and its batches are made again, to the same bits.
A trainer asks for a bounded number of batches ahead; what it has not asked for is not made, so a
slow trainer holds the pool back and the object store stays small.

Off unless asked for (`LaunchConfig.decode_actors`): moving pixels between processes and machines
costs more than decoding beside the trainer, where that has CPUs enough.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import UserError
from data_pipelines.images.source import PixelBatch
from data_pipelines.order.plan import DataPlan
from ifsq_train.config import ImageDataConfig, to_dict
from ifsq_train.data.base import DataFacts
from ifsq_train.data.batch import Batch
from ifsq_train.data.images import ImageTrainData, open_images

logger = logging.getLogger(__name__)

MAX_DEATHS_PER_BATCH = 5
"""A batch that is lost with its actor this often is to blame itself."""
_BATCHES_PER_ACTOR = 2
"""One being decoded, one decoded or waiting: keeps every actor busy."""
_ANY_NUMBER = 1 << 62


@dataclass(frozen=True)
class Share:
    """Which batch: the share of a rank in a global batch."""

    step: int
    rank: int
    world_size: int


class DecodeActor:
    """What runs in an actor. The data is opened by the first call, so that its errors arrive."""

    def __init__(self, data: dict[str, Any], seed: int, threads: int) -> None:
        self._config = ImageDataConfig.model_validate(data | {"decode_threads": threads})
        self._seed = seed
        self._data: ImageTrainData | None = None

    def make(self, share: Share) -> PixelBatch:
        """Decode a share; pixels come as a numpy array, which Ray moves without a copy."""
        if self._data is None:
            # The trainer keeps count of bad samples, for all actors that work for it.
            self._data = open_images(
                self._config, seed=self._seed, budget=ErrorBudget(_ANY_NUMBER),
                device=torch.device("cpu"),
            )  # fmt: skip
        batch = self._data.load_pixels(share.step, share.rank, share.world_size)
        moved: Any = batch.pixels.numpy()
        return replace(batch, pixels=moved)


class DecodePool:
    """Decode actors of one trainer, with the batches they are making.

    Attributes:
        restarts: actors replaced so far.
    """

    def __init__(self, ray: Any, start_actor: Callable[[], Any], num_actors: int) -> None:
        self.restarts = 0
        self._ray, self._start_actor = ray, start_actor
        self._actors = [start_actor() for _ in range(num_actors)]
        self._calls: dict[Share, tuple[int, Any]] = {}
        """Actor (its place) and result of every batch asked for and not taken yet."""
        self._deaths = Counter[Share]()
        self._taking = threading.Lock()

    @property
    def batches_ahead(self) -> int:
        """Batches asked for at a time: the bound on what exists."""
        return _BATCHES_PER_ACTOR * len(self._actors)

    def take(self, share: Share) -> PixelBatch:
        """The batch; those of the next steps are asked for, those far from it are forgotten.

        Raises:
            UserError: of the data, or actors keep dying.
        """
        with self._taking:
            return self._take(share)

    def _take(self, share: Share) -> PixelBatch:
        wanted = [replace(share, step=share.step + i) for i in range(self.batches_ahead)]
        # Threads may take neighbouring steps in any order; anything further off is not wanted.
        near = range(share.step - self.batches_ahead, share.step + self.batches_ahead)
        same = {known for known in self._calls if replace(known, step=share.step) == share}
        self._calls = {k: c for k, c in self._calls.items() if k in same and k.step in near}
        for ahead in wanted:
            if ahead not in self._calls:
                self._ask(ahead)
        while True:
            place, call = self._calls[share]
            batch = self._result(share, place, call)
            if batch is not None:
                del self._calls[share]
                # Ray's arrays are read-only and go away with the reference.
                return replace(batch, pixels=torch.from_numpy(np.array(batch.pixels)))

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _ask(self, share: Share) -> None:
        busy = Counter(place for place, _ in self._calls.values())
        place = min(range(len(self._actors)), key=lambda number: busy[number])
        self._calls[share] = (place, self._actors[place].make.remote(share))

    def _result(self, share: Share, place: int, call: Any) -> PixelBatch | None:
        """The batch, or None if it was lost and is being made again."""
        from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

        try:
            return self._ray.get(call)
        except (RayActorError, ObjectLostError, OutOfMemoryError) as error:
            self._deaths[share] += 1
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if self._deaths[share] >= MAX_DEATHS_PER_BATCH:
                raise UserError(
                    f"batch {share.step} was lost with its decode actor {MAX_DEATHS_PER_BATCH}"
                    f" times (the last: {reason}); give actors more memory or look into Ray's logs"
                ) from None
            logger.warning("a decode actor was lost (%s) and is replaced", reason)
            self._replace(place)
            return None
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise type(error.cause)(str(error.cause)) from None
            raise

    def _replace(self, place: int) -> None:
        """A new actor, which is asked for everything the lost one owed."""
        self._ray.kill(self._actors[place])  # it may only be unreachable
        self._actors[place] = self._start_actor()
        self.restarts += 1
        for share, (of, _) in list(self._calls.items()):
            if of == place:
                self._calls[share] = (place, self._actors[place].make.remote(share))


@dataclass
class PooledImages:
    """TrainData whose batches a pool decodes: bit for bit those of `data`."""

    data: ImageTrainData
    """Opened here for its order and its description; decodes nothing."""
    pool: DecodePool
    budget: ErrorBudget

    @property
    def plan(self) -> DataPlan:
        """See TrainData.plan."""
        return self.data.plan

    @property
    def facts(self) -> DataFacts:
        """See TrainData.facts."""
        return self.data.facts

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """See TrainData.load. Raises DataError when the budget of bad samples is exhausted."""
        pixels = self.pool.take(Share(step, rank, world_size))
        for bad in pixels.bad:
            self.budget.record(bad)
        return self.data.to_batch(pixels, rank, world_size)

    def describe(self) -> dict[str, Any]:
        """See TrainData.describe."""
        return self.data.describe() | {"decode_actors": self.pool.batches_ahead // 2}


def pooled_images(
    ray: Any,
    config: ImageDataConfig,
    *,
    seed: int,
    budget: ErrorBudget,
    num_actors: int,
    cpus_per_actor: float = 1,
) -> PooledImages:
    """The images of a recipe, decoded by actors of their own.

    Args:
        ray: an initialised Ray.
        budget: of this trainer; the actors only report what they meet.
        num_actors: actors for this trainer, spread over the cluster.
        cpus_per_actor: CPU slots of each, which also is its number of decoding threads.

    Raises:
        UserError: see `open_images`; no actors.
    """
    if num_actors < 1:
        raise UserError(f"decode_actors={num_actors} is not allowed; use 1 or more")
    # Without a GPU, whatever this process has: the actors' decoder is the one on record.
    config = config.model_copy(
        update={"decoder": "cpu" if config.decoder == "auto" else config.decoder}
    )
    data = open_images(config, seed=seed, budget=budget, device=torch.device("cpu"))
    actor_class = ray.remote(DecodeActor).options(
        num_cpus=cpus_per_actor, scheduling_strategy="SPREAD", max_restarts=0
    )
    recipe, threads = to_dict(config), max(1, int(cpus_per_actor))
    pool = DecodePool(ray, lambda: actor_class.remote(recipe, seed, threads), num_actors)
    return PooledImages(data, pool, budget)
