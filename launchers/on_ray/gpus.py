"""Which device the workers of a run train on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from data_pipelines.errors import UserError
from ifsq_train.config import LaunchConfig

logger = logging.getLogger(__name__)


def settle_gpus(
    launch: LaunchConfig, resources: Mapping[str, float], *, local: bool
) -> LaunchConfig:
    """The launch with a number of GPUs per worker in place of `auto`; logs what is not obvious.

    Args:
        launch: as asked for.
        resources: of the whole Ray cluster, by Ray's names.
        local: the cluster is this machine only; others may grow.

    Raises:
        UserError: fewer GPUs than the workers need.
    """
    found, asked = int(resources.get("GPU", 0)), launch.gpus_per_worker
    fewest = launch.min_workers or launch.num_workers
    if asked == "auto":
        if 0 < found < fewest:
            raise UserError(
                f"--gpus-per-worker auto: found {found} GPU(s) for {fewest} workers; use"
                f" --workers {found}, or --gpus-per-worker 0 to train on the CPU"
            )
        asked = 1 if found else 0
        logger.info("gpus_per_worker=auto: %d GPU(s) found, %d per worker", found, asked)
    elif asked == 0 and found:
        logger.warning(
            "training on the CPU: %d GPU(s) are here, none was asked for;"
            " --gpus-per-worker auto takes them",
            found,
        )
    elif local and asked * fewest > found:
        raise UserError(
            f"--gpus-per-worker {asked}: {fewest} worker(s) need {asked * fewest} GPU(s), this"
            f" machine has {found}; ask for fewer, or for 0 to train on the CPU"
        )
    return launch.model_copy(update={"gpus_per_worker": asked})
