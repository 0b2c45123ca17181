"""Trying many trainings and stopping the worse ones early, by Ray Tune's ASHA."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.storage.scratch import scratch_folder
from ifsq_train.study.searches import Trial
from launchers.on_ray.cluster import ray_session

Tell = Callable[[int, float], None]
"""Called by a trial with the steps done and the loss after them; does not return where the trial
is stopped."""
_STEP, _LOSS, _KEY = "step", "loss", "key"
# Read by Ray Tune: Ctrl-C is the command's to handle, paths are absolute, and what failed is
# returned, not printed.
_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Halving:
    """When trials are stopped.

    Attributes:
        first: steps up to the first rung.
        longest: steps of a whole trial.
        reduction: one in so many goes on from a rung.
    """

    first: int
    longest: int
    reduction: int


def try_all(
    keys: Sequence[str],
    work: Callable[[Any, str, Tell], None],
    shared: Any,
    halving: Halving,
    *,
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
) -> dict[str, Trial]:
    """Run ``work(shared, key, tell)`` for every key, as many at once as there is room for.

    Args:
        keys: one trial each.
        work: must be importable.
        shared: given to every trial, sent to each node of the cluster once.
        halving: which trials are stopped.
        cpus, gpus: slots of one trial.
        address: Ray cluster to join; None starts one on this machine.

    Returns:
        How each ended, by key. A trial that fails stops no other.

    Raises:
        UserError: no cluster answers at the address.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with (
        ray_session(address, min_cpus=max(1, int(cpus + 0.999))),
        scratch_folder() as at,
    ):
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        one = tune.with_parameters(_trial, work=work, shared=shared)
        tuner = tune.Tuner(
            tune.with_resources(one, {"cpu": cpus, "gpu": gpus}),
            param_space={_KEY: tune.grid_search(list(keys))},
            tune_config=tune.TuneConfig(
                metric=_LOSS,
                mode="min",
                scheduler=ASHAScheduler(
                    time_attr=_STEP,
                    max_t=halving.longest,
                    grace_period=halving.first,
                    reduction_factor=halving.reduction,
                ),
            ),
            run_config=tune.RunConfig(storage_path=str(at), verbose=0),
        )
        grid = tuner.fit()
        return dict(_end(grid[place]) for place in range(len(grid)))


def _trial(config: dict[str, Any], work: Callable[..., None], shared: Any) -> None:
    from ray import tune

    def tell(steps: int, loss: float) -> None:
        tune.report({_STEP: steps, _LOSS: loss})

    work(shared, config[_KEY], tell)


def _end(result: Any) -> tuple[str, Trial]:
    """Key and end of a trial."""
    from ray.exceptions import RayTaskError

    last, error = result.metrics or {}, result.error
    if error is not None:
        cause = error.cause if isinstance(error, RayTaskError) else error
        error = f"{type(cause).__name__}: {cause}".strip()
    return result.config[_KEY], Trial(int(last.get(_STEP, 0)), last.get(_LOSS), error)
