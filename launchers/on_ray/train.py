"""Training under Ray Train: one worker per slot, restarted together when one is lost."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ifsq_train.config import LaunchConfig, TrainConfig, to_dict
from ifsq_train.config.load import packed_recipe
from ifsq_train.config.paths import with_absolute_paths
from ifsq_train.data.base import TrainData
from ifsq_train.distributed.collectives import COLLECTIVE_SECONDS
from ifsq_train.distributed.interruption import Interrupted, Interruption
from ifsq_train.training.failure import FailureLog
from ifsq_train.training.preflight import preflight
from launchers.monitoring.progress_line import follow_progress
from launchers.on_ray.cluster import ray_session
from launchers.on_ray.context import RESIZE_CHECK_SECONDS, RayTrainContext, worker_resources
from launchers.on_ray.failure import explain
from launchers.on_ray.gpus import settle_gpus
from launchers.on_ray.network_check import check_network
from launchers.on_ray.reservation import take_over_reservation

logger = logging.getLogger(__name__)

REPEATED_SECONDS = 5.0
"""Within them, a SIGTERM is the one before, as a launcher and a whole process group get it."""


def train_on_ray(
    config: TrainConfig,
    launch: LaunchConfig,
    on_ready: Callable[[], None] | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run a training recipe on Ray and wait for it.

    Args:
        config: the recipe.
        launch: shape of the worker group.
        on_ready: called once Ray is up.
        overwrite: remove the run that is in the folder.

    Returns:
        The run's result as rank 0 wrote it.

    Raises:
        UserError: something in the recipe or its data.
        TrainingFailed: the workers failed more often than allowed.
        Interrupted: SIGTERM; the state was saved.
    """
    config = with_absolute_paths(config)
    folder = Path(config.output)
    finished = preflight(config, launch, overwrite=overwrite)
    if finished is not None:
        return finished
    launch_id = secrets.token_hex(8)
    slots = math.ceil(launch.num_workers * (launch.cpus_per_worker + _decode_cpus(launch)))
    with ray_session(launch.address, min_cpus=slots) as ray:
        if on_ready is not None:
            on_ready()
        local = launch.address is None and "RAY_ADDRESS" not in os.environ
        launch = settle_gpus(launch, ray.cluster_resources(), local=local)
        logger.info("starting %s", _group(launch))
        with follow_progress(folder, config):
            _fit(config, launch, launch_id)
    return json.loads((folder / "result.json").read_bytes())


def _group(launch: LaunchConfig) -> str:
    """The workers as a person says it: "2 workers on the CPU", "8 workers with 1 GPU each"."""
    workers = f"{launch.num_workers} worker" + ("s" if launch.num_workers > 1 else "")
    if launch.min_workers is not None:
        workers = f"{launch.min_workers} to {workers}"
    return f"{workers} with {launch.gpus:g} GPU each" if launch.gpus else f"{workers} on the CPU"


def _decode_cpus(launch: LaunchConfig) -> int:
    """CPU slots of the actors that decode for one worker."""
    return launch.loading.decode_actors * launch.decode_threads


def _trainer(config: TrainConfig, launch: LaunchConfig, name: str, launch_id: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from launchers.on_ray.loopback_store import LoopbackTorchConfig

    folder = Path(config.output).absolute()
    fewest, most = launch.min_workers, launch.num_workers
    scaling = ScalingConfig(
        num_workers=most if fewest is None else (fewest, most),
        use_gpu=launch.gpus > 0,
        resources_per_worker=worker_resources(launch),
        elastic_resize_monitor_interval_s=RESIZE_CHECK_SECONDS,
    )
    local = launch.address is None and "RAY_ADDRESS" not in os.environ
    kind = LoopbackTorchConfig if local else TorchConfig
    settings = {"recipe": packed_recipe(config), "launch": to_dict(launch), "launch_id": launch_id}
    return TorchTrainer(
        _worker,
        train_loop_config=settings,
        scaling_config=scaling,
        torch_config=kind(backend="nccl" if launch.gpus else "gloo", timeout_s=COLLECTIVE_SECONDS),
        run_config=RunConfig(
            name=f"{config.name}-{name}",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=launch.max_failures),
        ),
    )


def _stop_file(folder: Path, launch_id: str) -> Path:
    return folder / f".stop-{launch_id}"


@contextmanager
def _passing_on_sigterm(stop_file: Path) -> Iterator[None]:
    """SIGTERM to this process asks the workers to save and end; Ray would just leave them.

    Another one, not just the same from two senders, ends it at once: with no node left there are no
    workers to hear the first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked: float | None = None

    def ask(number: int, _frame: object) -> None:
        nonlocal asked
        if asked is not None and time.monotonic() - asked > REPEATED_SECONDS:
            stop_file.unlink(missing_ok=True)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked = time.monotonic() if asked is None else asked
        stop_file.touch()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        stop_file.unlink(missing_ok=True)


def _fit(config: TrainConfig, launch: LaunchConfig, launch_id: str) -> None:
    """Train to the end. Ray restarts workers that fail; where Ray's own controller does (a node
    that comes back while a group is built is enough), a new one goes on from the checkpoint."""
    from ray.train import ControllerError, TrainingFailedError

    folder = Path(config.output).absolute()
    stop_file = _stop_file(folder, launch_id)
    with _passing_on_sigterm(stop_file), _giving_back_sigint():
        for attempt in range(launch.max_failures + 1):
            trainer = _trainer(config, launch, f"{launch_id}-{attempt}", launch_id)
            take_over_reservation(folder, trainer)
            try:
                trainer.fit()
                break
            except TrainingFailedError as error:
                final = attempt == launch.max_failures or stop_file.exists()
                if final or not isinstance(error, ControllerError):
                    raise explain(folder, launch_id, error) from error
                logger.warning("Ray's controller failed, starting again: %s", error)
        if stop_file.exists():
            from ifsq_train.checkpoint.format import list_steps

            step = max(list_steps(folder / "checkpoints"), default=0)
            raise Interrupted(step, Interruption.STOP)


@contextmanager
def _giving_back_sigint() -> Iterator[None]:
    """Ray Train takes over Ctrl-C and keeps it after the run; afterwards it is as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _decoded_by_actors(
    data: TrainData, config: TrainConfig, launch: LaunchConfig, rank: int
) -> TrainData:
    """The same batches, decoded by actors of this worker's own where the launch asks for some."""
    check_network()  # here, as a refusal is recorded for the driver from inside the run
    if config.data.kind != "images" or not launch.loading.decode_actors:
        return data
    import ray

    from ifsq_train.data.images import image_budget
    from launchers.on_ray.decode_pool import pooled_images

    return pooled_images(
        ray,
        config.data,
        seed=config.seed,
        budget=image_budget(config.data, Path(config.output).absolute(), rank),
        num_actors=launch.loading.decode_actors,
        cpus_per_actor=launch.decode_threads,
    )


def _worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    from ifsq_train.config.load import unpacked
    from ifsq_train.log import log_to_folder
    from ifsq_train.train import run

    config = unpacked(settings["recipe"], TrainConfig)
    folder, launch_id = Path(config.output), settings["launch_id"]
    earlier = FailureLog(folder, launch_id).unmendable()
    if earlier is not None:
        # A restart cannot mend what the user has to.
        raise earlier.as_user_error()
    launch = LaunchConfig.model_validate(settings["launch"])
    stop_file = _stop_file(folder, launch_id)
    context = RayTrainContext(launch_id, stop_file, use_gpu=launch.gpus > 0)
    context.watch_capacity(launch)
    log_to_folder(folder, context.rank)
    try:
        serve = partial(_decoded_by_actors, launch=launch, rank=context.rank)
        settled = {"decode_threads": launch.decode_threads}
        loading = launch.loading.model_copy(update=settled)
        run(config, context, serve, loading, launch.allow_changes)
    except Interrupted as interrupted:
        # A worker that returns ends the run; one that raises is started again elsewhere.
        if interrupted.reason != Interruption.STOP:
            raise
    except Exception:
        logger.exception("rank %d failed", context.rank)
        raise
