"""A pool of Ray actors that decode images for the trainers, on whatever machines have the CPUs.

A batch is a pure function of (step, rank, world size), so the actors keep no state: any of them can
make any batch, and one that is lost is replaced and its batches are made again, to the same bits.
A trainer asks for a bounded number of batches ahead; what it has not asked for is not made, so a
slow trainer holds the pool back and the object store stays small.

Off unless asked for (`LoadingConfig.decode_actors`): moving pixels between processes and machines
costs more than decoding beside the trainer, where that has CPUs enough.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import UserError
from data_pipelines.images.source import PixelBatch
from data_pipelines.order.plan import DataPlan
from ifsq_train.config import ImageDataConfig
from ifsq_train.config.load import packed_recipe, unpacked
from ifsq_train.data.base import DataFacts
from ifsq_train.data.batch import Batch
from ifsq_train.data.images import ImageTrainData, open_images
from launchers.on_ray.actor_pool import ITEMS_PER_ACTOR, ActorPool, PoolWords

_ANY_NUMBER = 1 << 62


@dataclass(frozen=True)
class Share:
    """Which batch: the share of a rank in a global batch."""

    step: int
    rank: int
    world_size: int


DECODER_WORDS = PoolWords[None, Share](
    actor="decode actor", item=lambda share: f"the images of batch {share.step}"
)


class DecodeActor:
    """What runs in an actor. The data is opened by the first call, so that its errors arrive."""

    def __init__(self, data: dict[str, Any], seed: int, threads: int) -> None:
        self._config = unpacked(data, ImageDataConfig)
        self._seed, self._threads = seed, threads
        self._data: ImageTrainData | None = None

    def open(self) -> None:
        """Open the data; the trainer counts bad samples, for all actors that work for it."""
        self._data = open_images(
            self._config,
            seed=self._seed,
            budget=ErrorBudget(_ANY_NUMBER),
            device=torch.device("cpu"),
            threads=self._threads,
        )

    def make(self, share: Share) -> PixelBatch:
        """Decode a share; pixels come as a numpy array, which Ray moves without a copy."""
        assert self._data is not None
        batch = self._data.load_pixels(share.step, share.rank, share.world_size)
        moved: Any = batch.pixels.numpy()
        return replace(batch, pixels=moved)


class DecodePool:
    """Decode actors of one trainer, with the batches they are making.

    Args:
        ray: an initialised Ray.
        start_actor: starts a `DecodeActor`.
        num_actors: how many.
    """

    def __init__(self, ray: Any, start_actor: Callable[[], Any], num_actors: int) -> None:
        self._pool: ActorPool[None, Share, PixelBatch] = ActorPool(
            ray, start_actor, num_actors, DECODER_WORDS
        )
        self._asked: set[Share] = set()
        """Asked for and not finished yet."""
        self._ready: dict[Share, PixelBatch] = {}
        self._taking = threading.Lock()

    @property
    def restarts(self) -> int:
        """Actors replaced so far."""
        return self._pool.restarts

    @property
    def size(self) -> int:
        """Number of actors."""
        return self._pool.size

    @property
    def batches_ahead(self) -> int:
        """Batches asked for at a time: the bound on what exists."""
        return ITEMS_PER_ACTOR * self._pool.size

    def take(self, share: Share) -> PixelBatch:
        """The batch; those of the next steps are asked for, those far from it are forgotten.

        Raises:
            UserError: of the data, or actors keep dying.
        """
        with self._taking:
            self._ask_ahead_of(share)
            while share not in self._ready:
                for made, batch in self._pool.finished():
                    self._asked.discard(made)
                    self._ready[made] = batch
            batch = self._ready.pop(share)
        # Ray's arrays are read-only and go away with the reference.
        return replace(batch, pixels=torch.from_numpy(np.array(batch.pixels)))

    def close(self) -> None:
        """End all actors."""
        self._pool.close()

    def _ask_ahead_of(self, share: Share) -> None:
        # Threads may take neighbouring steps in any order; anything further off is not wanted.
        near = range(share.step - self.batches_ahead, share.step + self.batches_ahead)

        def unwanted(other: Share) -> bool:
            return other.step not in near or replace(other, step=share.step) != share

        self._asked -= self._pool.forget(unwanted)
        self._ready = {known: b for known, b in self._ready.items() if not unwanted(known)}
        wanted = [replace(share, step=share.step + i) for i in range(self.batches_ahead)]
        new = [w for w in wanted if w not in self._asked and w not in self._ready]
        self._asked.update(new)
        self._pool.ask(new)


@dataclass
class PooledImages:
    """TrainData whose batches a pool decodes: bit for bit those of `data`."""

    data: ImageTrainData
    """Opened here for its order and its description; decodes nothing."""
    pool: DecodePool
    budget: ErrorBudget

    @property
    def plan(self) -> DataPlan:
        """The order of samples, the same on every rank."""
        return self.data.plan

    @property
    def facts(self) -> DataFacts:
        """Image size, for building the task."""
        return self.data.facts

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """Images of the batch, decoded by the pool; DataError when too many samples are bad."""
        pixels = self.pool.take(Share(step, rank, world_size))
        for bad in pixels.bad:
            self.budget.record(bad)
        return self.data.to_batch(pixels, rank, world_size)

    def describe(self) -> dict[str, Any]:
        """Identity of the dataset, stored in checkpoints."""
        return self.data.describe() | {"decode_actors": self.pool.size}


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
    recipe, threads = packed_recipe(config), max(1, int(cpus_per_actor))
    pool = DecodePool(ray, lambda: actor_class.remote(recipe, seed, threads), num_actors)
    return PooledImages(data, pool, budget)
