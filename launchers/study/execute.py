"""One stage of a study, by the launcher of its kind."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.documents import read_object
from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.local import below_home, write_atomically
from data_pipelines.tokens.reader import TokenDataset
from ifsq_train.config import (
    EvaluateConfig,
    LaunchConfig,
    PrecomputeConfig,
    SampleConfig,
    TrainConfig,
)
from ifsq_train.config.study import (
    CostStage,
    DistributionStage,
    ImagesStage,
    StudyConfig,
    ToyStage,
)
from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.study.costs import stage_estimate, token_facts
from ifsq_train.study.stage import Stage
from ifsq_train.study.store import OUTPUT, Store

SHARD_BYTES = 1 << 20
_CALIBRATION_STEPS = 20
_MAX_CURVE = 40
"""Points of a loss curve that are kept."""


def execute(
    stage: Stage,
    store: Store,
    stages: Mapping[str, Stage],
    study: StudyConfig,
    launch: LaunchConfig,
) -> None:
    """Run a stage and record it; what is finished already is found so.

    Args:
        stage: what to do; its inputs are done.
        store: where everything lies.
        stages: all of the study, by digest.
        study: for its budget.
        launch: workers of trainings.

    Raises:
        Exception: whatever the stage's own launcher raises.
    """
    began, cpu = time.monotonic(), _cpu_seconds()
    recipe = store.runnable(stage, stages)
    if isinstance(recipe, TrainConfig):
        numbers = _train(stage, recipe, stages, study, launch)
    else:
        run: Callable[[Any, Path, LaunchConfig], dict[str, Any]] = _RUNS[type(recipe)]
        numbers = run(recipe, store.folder(stage).absolute() / OUTPUT, launch)
    store.finish(stage, numbers, time.monotonic() - began, _cpu_seconds() - cpu)


def _train(
    stage: Stage,
    recipe: TrainConfig,
    stages: Mapping[str, Stage],
    study: StudyConfig,
    launch: LaunchConfig,
) -> dict[str, Any]:
    from ifsq_train.training.preflight import finished_result
    from launchers.local import train_locally

    assert isinstance(stage.recipe, TrainConfig)
    if study.budget.equal == "time" and study.budget.stage == stage.name:
        assert study.budget.amount is not None
        recipe = _within(recipe, study.budget.amount)
    result = finished_result(recipe)
    if result is None and _is_single(launch):
        result = train_locally(recipe)
    elif result is None:
        from launchers.on_ray.train import train_on_ray

        result = train_on_ray(recipe, launch)
    cost = stage_estimate(recipe, token_facts(stage.recipe, stages))
    return {
        "final": result["final"],
        "steps": result["steps"],
        "samples": result["samples_seen"],
        "flops_per_step": cost.flops_per_step,
        "flops": cost.flops_per_step * result["steps"],
        "parameters": cost.parameters,
        "curve": _curve(Path(recipe.output), cost.flops_per_step),
    }


def _curve(folder: Path, flops_per_step: float) -> list[dict[str, float]]:
    """Step, samples, FLOPs, useful seconds and loss at logged steps, evenly thinned out."""
    records = [r for r in read_jsonl(folder / "metrics.jsonl") if "step" in r and "loss" in r]
    every = max(1, -(-len(records) // _MAX_CURVE))
    kept = [r for place, r in enumerate(records) if (len(records) - 1 - place) % every == 0]
    return [
        {
            "step": r["step"],
            "samples": r["samples"],
            "flops": r["step"] * flops_per_step,
            "seconds": r["useful_seconds"],
            "loss": r["loss"],
        }
        for r in kept
    ]


def _within(recipe: TrainConfig, seconds: float) -> TrainConfig:
    """As many steps as fit into the time, measured once and remembered beside the run."""
    from launchers.local import train_locally

    folder = Path(recipe.output).with_name("calibration")
    path = folder / "steps.json"
    if not path.is_file():
        few = {"steps": _CALIBRATION_STEPS, "output": str(folder / "run"), "ema_decay": None}
        train_locally(recipe.model_copy(update=few))
        records = read_jsonl(folder / "run" / "metrics.jsonl")
        each = records[-1]["useful_seconds"] / _CALIBRATION_STEPS
        steps = {"steps": max(1, int(seconds / each))}
        write_atomically(path, json.dumps(steps).encode())
    found = read_object(path).get("steps")
    if type(found) is not int or found < 1:
        raise DataError(f"{path} is damaged; remove it, the time of a step is then measured again")
    return recipe.model_copy(update={"steps": found})


def _is_single(launch: LaunchConfig) -> bool:
    return launch.num_workers == 1 and not launch.gpus


def _precompute(recipe: PrecomputeConfig, output: Path, launch: LaunchConfig) -> dict[str, Any]:
    from ifsq_train.precompute.job import run_precompute_local
    from launchers.on_ray.precompute import precompute_on_ray

    if _is_single(launch):
        report = run_precompute_local(recipe)
    else:
        report = precompute_on_ray(
            recipe,
            num_actors=launch.num_workers,
            cpus_per_actor=launch.cpus_per_worker,
            gpus_per_actor=launch.gpus,
        )
    spec = TokenDataset.open(str(output)).spec
    return {
        "rows": report.rows,
        "grid": list(spec.grid),
        "codebook_sizes": list(spec.codebook_sizes),
        "digest": report.digest,
    }


def _sample(recipe: SampleConfig, output: Path, launch: LaunchConfig) -> dict[str, Any]:
    from ifsq_train.sampling.draw import draw_samples
    from launchers.on_ray.sample import sample_on_ray

    del output
    if _is_single(launch):
        return {"images": draw_samples(recipe)}
    count = sample_on_ray(
        recipe,
        num_actors=launch.num_workers,
        cpus_per_actor=launch.cpus_per_worker,
        gpus_per_actor=launch.gpus,
    )
    return {"images": count}


def _evaluate(recipe: EvaluateConfig, output: Path, launch: LaunchConfig) -> dict[str, Any]:
    from ifsq_train.evaluation.evaluate import evaluate

    del launch
    output.mkdir(parents=True, exist_ok=True)
    result = evaluate(recipe)
    metrics = {k: v for k, v in result["metrics"].items() if k != "digit_histograms"}
    networks = {key: network["name"] for key, network in result["networks"].items()}
    return {**metrics, "networks": networks}


def _images(recipe: ImagesStage, output: Path, launch: LaunchConfig) -> dict[str, Any]:
    from launchers.first_steps.digits import write_digits
    from launchers.stages import held_out, pack_images

    del launch
    source = below_home(recipe.source)
    if recipe.source == "digits":
        source = output.parent / "digits"
        write_digits(source)
    elif not source.is_dir():
        raise UserError(f"source: no folder '{source}'; give a folder of class folders, or digits")
    seen: dict[str, int] = {}

    def keep(name: str) -> bool:
        if held_out(name) != (recipe.part == "held_out"):
            return False
        label = name.partition("/")[0]
        seen[label] = seen.get(label, 0) + 1
        return recipe.per_class is None or seen[label] <= recipe.per_class

    manifest = pack_images(source, str(output), shard_bytes=SHARD_BYTES, seed=0, keep=keep)
    return {
        "images": manifest.num_samples,
        "classes": len(manifest.classes),
        "digest": manifest.digest,
    }


def _distribution(recipe: DistributionStage, output: Path, launch: LaunchConfig) -> dict[str, Any]:
    from ifsq_train.study.distributions import measure_distribution

    del output, launch
    return measure_distribution(recipe)


def _toy(recipe: ToyStage, output: Path, launch: LaunchConfig) -> dict[str, Any]:
    from ifsq_train.study.distributions import measure_toy

    del output, launch
    return measure_toy(recipe)


def _cost(recipe: CostStage, output: Path, launch: LaunchConfig) -> dict[str, Any]:
    from ifsq_train.study.latency import measure_cost

    del output, launch
    return measure_cost(recipe)


_RUNS: dict[type, Callable[[Any, Path, LaunchConfig], dict[str, Any]]] = {
    PrecomputeConfig: _precompute,
    SampleConfig: _sample,
    EvaluateConfig: _evaluate,
    ImagesStage: _images,
    DistributionStage: _distribution,
    ToyStage: _toy,
    CostStage: _cost,
}


def _cpu_seconds() -> float:
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usage)
