"""Sampling on a pool of Ray actors: batches are handed out as actors become free.

Actors publish what they draw; the driver joins it at the end. An actor that dies is replaced and
its batch given to another. Any number of actors gives the same samples.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from data_pipelines.errors import UserError
from data_pipelines.storage.open import Storage, open_storage
from data_pipelines.work_items import WorkItem
from ifsq_train.config import SampleConfig
from ifsq_train.config.load import packed_recipe, unpacked
from ifsq_train.config.paths import with_absolute_paths
from ifsq_train.sampling.draw import OnBatch, Sampler
from ifsq_train.sampling.job import SampleJob, SampleSpec, publish_part
from launchers.on_ray.actor_pool import ActorPool, PoolWords
from launchers.on_ray.cluster import ray_session

SamplerPool = ActorPool[SampleSpec, WorkItem, int]
SAMPLER_WORDS = PoolWords[SampleSpec, WorkItem](
    actor="sampler",
    item=lambda item: f"samples {item.first_sample} to {item.first_sample + item.num_samples - 1}",
    remedy="give actors more memory, lower batch_size or look into Ray's logs",
    differences=SampleSpec.differences,
)


def sample_on_ray(
    config: SampleConfig,
    *,
    num_actors: int,
    cpus_per_actor: float = 1,
    gpus_per_actor: float = 0,
    address: str | None = None,
    on_batch: OnBatch | None = None,
    overwrite: bool = False,
) -> int:
    """Draw all images a recipe asks for, or what is left of them; returns their number.

    Args:
        config: the recipe; its folders must be reachable from every node of the cluster.
        num_actors: samplers; fewer are started where fewer batches are left.
        cpus_per_actor: CPU slots of an actor.
        gpus_per_actor: 0 samples on the CPU.
        address: Ray cluster to join; None starts one on this machine.
        on_batch: called in this process after every batch.
        overwrite: remove samples that were drawn to the folder before.

    Raises:
        UserError: something in the recipe, or actors keep dying.
    """
    if num_actors < 1:
        raise UserError(f"num_actors={num_actors} is not allowed; use 1 or more")
    config = with_absolute_paths(config)
    device = "cuda" if gpus_per_actor else "cpu"
    spec = Sampler(config, torch.device("cpu")).spec  # the user's mistakes come to light here
    spec = SampleSpec({**spec.facts, "device": device}, spec.labels)
    job = SampleJob(open_storage(config.output), spec, config)
    job.claim(overwrite)
    if job.is_finished():
        return len(spec.labels)
    left = job.begin()
    num_actors = max(1, min(num_actors, len(left)))
    with ray_session(address, min_cpus=math.ceil(num_actors * cpus_per_actor)) as ray:
        actor_class = ray.remote(SamplerActor).options(
            num_cpus=cpus_per_actor, num_gpus=gpus_per_actor, max_restarts=0, max_task_retries=0
        )
        recipe = packed_recipe(config)
        pool: SamplerPool = ActorPool(
            ray, lambda: actor_class.remote(recipe, device), num_actors, SAMPLER_WORDS
        )
        try:
            for number, _ in enumerate(pool.make(left), start=1):
                if on_batch is not None:
                    on_batch(job.samples_done(len(left) - number), len(spec.labels))
        finally:
            pool.close()
    job.finish()
    return len(spec.labels)


class SamplerActor:
    """What runs in an actor: both networks, opened by the first call so that its errors arrive."""

    def __init__(self, recipe: dict[str, Any], device: str) -> None:
        self._config = unpacked(recipe, SampleConfig)
        self._device = torch.device(device)
        self._sampler: Sampler | None = None
        self._storage: Storage | None = None

    def open(self) -> SampleSpec:
        """Load the networks; what they draw."""
        self._sampler = Sampler(self._config, self._device)
        self._storage = open_storage(self._config.output)
        return self._sampler.spec

    def make(self, item: WorkItem) -> int:
        """Draw and publish; returns the item's index."""
        assert self._sampler is not None
        assert self._storage is not None
        publish_part(self._storage, item, self._sampler.draw(item))
        return item.index
