"""Searching a study's value: the trainings' inputs first, then the trainings themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.errors import UserError
from ifsq_train.config import LaunchConfig, StudyConfig, TrainConfig
from ifsq_train.distributed.context import InProcessContext, chosen_device
from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.study.expand import Expansion
from ifsq_train.study.searches import Search, Trial, plan_search
from ifsq_train.study.stage import Stage
from ifsq_train.study.store import Store
from launchers.on_ray.cluster import ray_session
from launchers.on_ray.search import Halving, Tell, try_all
from launchers.study.run import RunOptions, run_study


def search_study(study: StudyConfig, options: RunOptions) -> tuple[Search, dict[str, Trial]]:
    """Try every value of a study's search.

    Trainings lie in the study's store; one that was stopped or killed goes on from its last rung
    when the search is run again.

    Args:
        study: with a search.
        options: store, cluster and slots; each training gets one worker.

    Returns:
        What was tried, and by digest of the training how it came out.

    Raises:
        UserError: no search or a faulty one, inputs that fail, or a store in use.
    """
    search = plan_search(study)
    store = Store(options.store.absolute(), options.base or Path.cwd(), study.name)
    launch = options.launch
    with ray_session(options.address, min_cpus=max(1, int(launch.cpus_per_worker + 0.999))):
        _run_inputs(study, search, options)
        trials: dict[str, Trial] = {}
        with store.locked():
            for by_value in search.trainings.values():
                trials |= try_all(
                    list(by_value.values()),
                    try_one,
                    (store, search.stages, search.config.metric, launch),
                    Halving(search.config.first_steps, search.steps, search.config.reduction),
                    cpus=launch.cpus_per_worker,
                    gpus=launch.gpus,
                )
    return search, trials


def _run_inputs(study: StudyConfig, search: Search, options: RunOptions) -> None:
    """What the trainings read, by the study's own way of running stages."""
    summary = run_study(Expansion(study, (), search.inputs), options)
    if summary.failed:
        name, error = next(iter(summary.failed.items()))
        raise UserError(
            f"{study.name}: what the search reads failed: {name}: {error.splitlines()[0]}"
        )


@dataclass
class _TellingContext(InProcessContext):
    """One worker whose checkpoints are rungs."""

    at_checkpoint: Callable[[], None] = field(default=lambda: None)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Called after every checkpoint; its step is in the log, not in the metrics."""
        del metrics
        self.at_checkpoint()


def try_one(
    shared: tuple[Store, Mapping[str, Stage], str, LaunchConfig], digest: str, tell: Tell
) -> None:
    """One training, which tells its loss at every rung; those it reached before come first."""
    from ifsq_train.train import run
    from ifsq_train.training.preflight import preflight

    store, stages, metric, launch = shared
    recipe = store.runnable(stages[digest], stages)
    assert isinstance(recipe, TrainConfig)
    told = 0

    def tell_new() -> None:
        nonlocal told
        for record in read_jsonl(Path(recipe.output) / "metrics.jsonl"):
            if metric in record and int(record["step"]) > told:
                told = int(record["step"])
                tell(told, float(record[metric]))

    finished = preflight(recipe, launch)
    tell_new()
    if finished is None:
        device = chosen_device(launch.gpus_per_worker)
        run(recipe, _TellingContext(device=device, at_checkpoint=tell_new))
    if not told:
        raise UserError(f"search.metric: the training logs no '{metric}'; `loss` is always there")
