"""Running a study: what is left to do, in this process or on Ray; what has failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.storage.local import write_atomically
from ifsq_train.config import (
    EvaluateConfig,
    LaunchConfig,
    PrecomputeConfig,
    SampleConfig,
    StudyConfig,
    TrainConfig,
)
from ifsq_train.distributed.interruption import Interrupted
from ifsq_train.study.expand import Expansion
from ifsq_train.study.outputs import claim_results, claim_store, remove_stages
from ifsq_train.study.stage import Stage
from ifsq_train.study.status import RUNNING, running_note
from ifsq_train.study.store import Store, read_record, record_bytes
from launchers.on_ray.graph import Node, Outcome
from launchers.study.execute import execute


@dataclass(frozen=True)
class RunOptions:
    """The machine a study gets.

    Attributes:
        store: folder of all stages.
        results: folder that gets a copy of every record; records found there count as done.
        launcher: ``local`` does one stage after another in this process, ``ray`` many at once.
        address: Ray cluster to join.
        launch: workers of each training.
        cpus: CPU slots of every other stage.
        overwrite: remove what the study's stages left before, and run them anew.
        base: folder that relative paths of recipes are below; this process's if not given.
    """

    store: Path
    results: Path | None = None
    launcher: str = "ray"
    address: str | None = None
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    cpus: float = 1
    overwrite: bool = False
    base: Path | None = None


@dataclass
class Summary:
    """What a run did.

    Attributes:
        done: stages finished now.
        reused: stages found finished.
        failed: error by stage folder.
        blocked: stages that were not tried, because an input failed.
        seconds: wall time.
    """

    done: int = 0
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    blocked: int = 0
    seconds: float = 0.0


def run_study(expansion: Expansion, options: RunOptions) -> Summary:
    """Do everything that is not done yet; failures do not stop what does not depend on them.

    Raises:
        UserError: store or results are somebody else's folder, another driver works in the store,
            or no cluster answers.
        Interrupted: SIGTERM.
    """
    store = Store(options.store.absolute(), options.base or Path.cwd(), expansion.config.name)
    began = time.monotonic()
    claim_store(store.root)
    if options.results is not None:
        claim_results(options.results)
    with store.locked():
        if options.overwrite:
            removed = remove_stages(expansion, store, options.results)
            _say(f"--overwrite: removed {removed} stages of {expansion.config.name}")
        left = stages_left(expansion, store, options.results)
        summary = Summary(reused=len(expansion.stages) - len(left))
        outcomes = _outcomes(expansion, left, store, options)
        for number, outcome in enumerate(outcomes, start=1):
            stage = expansion.stages[outcome.key]
            _account(summary, stage, outcome, store)
            _say(f"[{number}/{len(left)}] {_line(stage, outcome, store)}")
            _copy_record(stage, store, options.results)
        for stage in expansion.stages.values():
            _copy_record(stage, store, options.results)
    summary.seconds = time.monotonic() - began
    return summary


def stages_left(expansion: Expansion, store: Store, results: Path | None) -> list[Stage]:
    """Stages without a record, and those whose output such a stage needs and that is not there."""
    needed: set[str] = set()
    for stage in reversed(expansion.stages.values()):
        known = store.record(stage) is not None
        wanted = stage.digest in needed
        if known or (not wanted and _committed(stage, results) is not None):
            needed.discard(stage.digest)
            continue
        needed.add(stage.digest)
        needed.update(stage.inputs)
    return [stage for digest, stage in expansion.stages.items() if digest in needed]


def _committed(stage: Stage, results: Path | None) -> dict[str, Any] | None:
    return None if results is None else read_record(results / f"{stage.folder}.json", stage.digest)


def _outcomes(
    expansion: Expansion, left: list[Stage], store: Store, options: RunOptions
) -> Iterator[Outcome]:
    if not left:
        return
    if options.launcher == "local":
        yield from _one_by_one(expansion, left, store, options.launch)
        return
    from launchers.on_ray.graph import run_graph

    chosen = {stage.digest for stage in left}
    yield from run_graph(
        [_node(stage, chosen, options) for stage in left],
        run_stage,
        {stage.digest: (stage.digest,) for stage in left},
        (store, expansion.stages, expansion.config, options.launch),
        address=options.address,
    )


def _node(stage: Stage, chosen: set[str], options: RunOptions) -> Node:
    inputs = tuple(digest for digest in stage.inputs if digest in chosen)
    launch = options.launch
    single = launch.num_workers == 1 and not launch.gpus
    if single and isinstance(stage.recipe, TrainConfig):
        return Node(stage.digest, inputs, cpus=launch.cpus_per_worker)
    if isinstance(stage.recipe, EvaluateConfig):
        return Node(stage.digest, inputs, cpus=options.cpus, gpus=min(1, launch.gpus))
    if single or not isinstance(stage.recipe, TrainConfig | PrecomputeConfig | SampleConfig):
        return Node(stage.digest, inputs, cpus=options.cpus)
    # The task only waits for workers or actors, which take the slots.
    return Node(
        stage.digest,
        inputs,
        cpus=0,
        more_cpus=launch.num_workers * launch.cpus_per_worker,
        more_gpus=launch.num_workers * launch.gpus,
    )


def run_stage(
    shared: tuple[Store, dict[str, Stage], StudyConfig, LaunchConfig], digest: str
) -> None:
    """One stage, wherever it runs; says in the store that it is running and how it failed."""
    store, stages, study, launch = shared
    stage = stages[digest]
    folder = store.folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RUNNING, running_note())
    try:
        execute(stage, store, stages, study, launch)
    except Interrupted:
        raise
    except Exception as error:
        store.fail(stage, f"{type(error).__name__}: {error}")
        raise
    finally:
        (folder / RUNNING).unlink(missing_ok=True)


def _one_by_one(
    expansion: Expansion, left: list[Stage], store: Store, launch: LaunchConfig
) -> Iterator[Outcome]:
    failed: set[str] = set()
    shared = (store, expansion.stages, expansion.config, launch)
    for stage in left:
        if failed.intersection(stage.inputs):
            failed.add(stage.digest)
            yield Outcome(stage.digest, "an input failed", blocked=True)
            continue
        try:
            run_stage(shared, stage.digest)
        except Interrupted:
            raise
        except Exception as error:
            failed.add(stage.digest)
            yield Outcome(stage.digest, f"{type(error).__name__}: {error}")
        else:
            yield Outcome(stage.digest)


def _account(summary: Summary, stage: Stage, outcome: Outcome, store: Store) -> None:
    if outcome.blocked:
        summary.blocked += 1
    elif outcome.error is not None:
        summary.failed[stage.folder] = outcome.error
        if store.failure(stage) is None:
            store.fail(stage, outcome.error)
    else:
        summary.done += 1


def _copy_record(stage: Stage, store: Store, results: Path | None) -> None:
    if results is None:
        return
    record, path = store.record(stage), results / f"{stage.folder}.json"
    if record is not None and not path.is_file():
        results.mkdir(parents=True, exist_ok=True)
        write_atomically(path, record_bytes(record))


def _line(stage: Stage, outcome: Outcome, store: Store) -> str:
    title = f"{stage.name} of {stage.variant}" if stage.variant else stage.name
    if outcome.blocked:
        return f"{title}: left out, an input failed"
    if outcome.error is not None:
        return f"{title}: FAILED: {outcome.error.splitlines()[0]}"
    record = store.record(stage)
    seconds = f" in {record['seconds']:.1f} s" if record else ""
    return f"{title}: done{seconds}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
