"""Training under Ray Train: one worker per slot, restarted together when one is lost."""

from __future__ import annotations

import json
import logging
import math
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.errors import UserError
from ifsq_train.config import LaunchConfig, TrainConfig, to_dict
from ifsq_train.failure import FailureLog
from ifsq_train.interruption import Interrupted, Interruption
from launchers.follow import follow_progress
from launchers.ray_cluster import ray_session
from launchers.ray_failure import explain
from launchers.ray_reservation import take_over_reservation

if TYPE_CHECKING:
    from ifsq_train.data import TrainData

logger = logging.getLogger(__name__)

RESIZE_CHECK_SECONDS = 10.0
"""How often Ray looks whether an elastic run could be larger."""
CAPACITY_POLL_SECONDS = 1.0
STOP_POLL_SECONDS = 0.5


class RayTrainContext:
    """RunContext of a Ray Train worker.

    Args:
        launch_id: names the launch.
        stop_file: exists when the driver was asked to stop.
    """

    def __init__(self, launch_id: str, stop_file: Path) -> None:
        import ray.train
        import ray.train.torch
        from ray.train.v2._internal.execution.context import get_train_context

        own = ray.train.get_context()
        self.rank = own.get_world_rank()
        self.world_size = own.get_world_size()
        self.local_rank = own.get_local_rank()
        self.device = ray.train.torch.get_device()
        self.launch_id = launch_id
        # The public get_preemption_info is a barrier, too slow to be asked at every step.
        self._preemption = get_train_context().preemption_context
        self._report = ray.train.report
        self._stop_file, self._stop_looked, self._stopping = stop_file, 0.0, False
        self._capacity: CapacityWatch | None = None

    def watch_capacity(self, launch: LaunchConfig) -> None:
        """Elastic runs: save when the group is about to grow."""
        if launch.elastic and self.rank == 0 and self.world_size < launch.num_workers:
            self._capacity = CapacityWatch(launch, self.world_size)

    def interruption(self) -> Interruption:
        """The driver's wish to stop, a node that is being drained, room to grow."""
        now = time.monotonic()
        if now - self._stop_looked > STOP_POLL_SECONDS:
            self._stop_looked = now
            self._stopping = self._stop_file.exists()
        if self._stopping:
            return Interruption.STOP
        if self._preemption.preemption_info is not None:
            return Interruption.PREEMPTED
        if self._capacity is not None and self._capacity.take_notice():
            return Interruption.SAVE
        return Interruption.NONE

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None = None) -> None:
        """Tell Ray the run is alive; the checkpoint itself stays in the run folder."""
        del checkpoint
        self._report(dict(metrics))

    def restore_from(self) -> Path | None:
        """None: the run folder's newest intact checkpoint is the truth, not Ray's pointer,
        which can be behind it."""
        return None

    def serve(self, data: TrainData, config: TrainConfig) -> TrainData:
        """Decoded by actors of this worker's own, where the recipe asks for some."""
        if config.data.kind != "images" or not config.data.decode_actors:
            return data
        import ray

        from ifsq_train.data import image_budget
        from launchers.ray_data import pooled_images

        return pooled_images(
            ray,
            config.data,
            seed=config.seed,
            budget=image_budget(config.data, Path(config.output).absolute(), self.rank),
            num_actors=config.data.decode_actors,
            cpus_per_actor=config.data.decode_threads,
        )


class CapacityWatch:
    """Notices, once, that the cluster has room for more workers than there are.

    Ray then replaces the whole group at its next look, without warning; a checkpoint made now
    saves the steps since the last one.
    """

    def __init__(self, launch: LaunchConfig, world_size: int) -> None:
        self._launch, self._world_size = launch, world_size
        self._room = threading.Event()
        self._told = False
        threading.Thread(target=self._poll, name="capacity", daemon=True).start()

    def take_notice(self) -> bool:
        """True once, when there is room."""
        if self._told or not self._room.is_set():
            return False
        self._told = True
        return True

    def _poll(self) -> None:
        import ray

        while not self._room.is_set():
            time.sleep(CAPACITY_POLL_SECONDS)
            if possible_workers(ray.nodes(), self._launch) > self._world_size:
                self._room.set()


def possible_workers(nodes: list[dict[str, Any]], launch: LaunchConfig) -> int:
    """Workers that fit on the living nodes, at most `launch.num_workers`."""
    needed = worker_resources(launch)
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    fitting = (
        min(int(resources.get(key, 0.0) // amount) for key, amount in needed.items())
        for resources in alive
    )
    return min(sum(fitting), launch.num_workers)


def worker_resources(launch: LaunchConfig) -> dict[str, float]:
    """What one worker takes of a node."""
    resources: dict[str, float] = {"CPU": launch.cpus_per_worker}
    if launch.gpus_per_worker:
        resources["GPU"] = launch.gpus_per_worker
    return resources


def train_on_ray(
    config: TrainConfig, launch: LaunchConfig, on_ready: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Run a training recipe on Ray and wait for it.

    Args:
        config: the recipe.
        launch: shape of the worker group.
        on_ready: called once Ray is up.

    Returns:
        The run's result as rank 0 wrote it.

    Raises:
        UserError: something in the recipe or its data.
        TrainingFailed: the workers failed more often than allowed.
        Interrupted: SIGTERM; the state was saved.
    """
    folder = Path(config.output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    preflight(config, launch)
    finished = finished_result(config)
    if finished is not None:
        return finished
    launch_id = secrets.token_hex(8)
    slots = math.ceil(launch.num_workers * (launch.cpus_per_worker + _decode_cpus(config)))
    with ray_session(launch.address, min_cpus=slots):
        if on_ready is not None:
            on_ready()
        with follow_progress(folder, config):
            _fit(config, launch, launch_id)
    return json.loads((folder / "result.json").read_bytes())


def _decode_cpus(config: TrainConfig) -> int:
    """CPU slots of the actors that decode for one worker."""
    data = config.data
    return data.decode_actors * data.decode_threads if data.kind == "images" else 0


def preflight(config: TrainConfig, launch: LaunchConfig) -> None:
    """Find the user's mistakes before a cluster is asked for anything.

    Raises:
        UserError: dataset missing or damaged, batch not divisible, foreign tokens, ...
    """
    import torch

    from ifsq_train.data import extras_for, open_train_data
    from ifsq_train.saved_state import check_resumable
    from ifsq_train.sharing import check_even_split, check_shares

    folder = Path(config.output).absolute()
    check = check_shares if launch.elastic else check_even_split
    check(config, launch.num_workers)
    data = open_train_data(
        config.data,
        seed=config.seed,
        run_folder=folder,
        rank=0,
        device=torch.device("cpu"),
        extras=extras_for(config.task),
    )
    check_resumable(folder, data.plan.digest, config.steps)


def finished_result(config: TrainConfig) -> dict[str, Any] | None:
    """The result of this very recipe, if its run is complete; nothing needs to be started then."""
    from ifsq_train.checkpoint import newest_checkpoint

    folder = Path(config.output).absolute()
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None or checkpoint.step != config.steps:
        return None
    if checkpoint.header["recipe"] != to_dict(config):
        return None
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if result.get("steps") == config.steps else None


def _trainer(config: TrainConfig, launch: LaunchConfig, name: str, launch_id: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = Path(config.output).absolute()
    fewest, most = launch.min_workers, launch.num_workers
    scaling = ScalingConfig(
        num_workers=most if fewest is None else (fewest, most),
        use_gpu=launch.gpus_per_worker > 0,
        resources_per_worker=worker_resources(launch),
        elastic_resize_monitor_interval_s=RESIZE_CHECK_SECONDS,
    )
    settings = {"recipe": to_dict(config), "launch": to_dict(launch), "launch_id": launch_id}
    return TorchTrainer(
        _worker,
        train_loop_config=settings,
        scaling_config=scaling,
        torch_config=TorchConfig(backend="nccl" if launch.gpus_per_worker else "gloo"),
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
    """SIGTERM to this process asks the workers to save and end; Ray would just leave them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop_file.touch())
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
            from ifsq_train.checkpoint import list_steps

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


def _worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    from ifsq_train.log import log_to_folder
    from ifsq_train.recipe import validate_recipe
    from ifsq_train.train import run

    config = validate_recipe(settings["recipe"], source="recipe")
    assert isinstance(config, TrainConfig)
    folder, launch_id = Path(config.output), settings["launch_id"]
    earlier = FailureLog(folder, launch_id).unmendable()
    if earlier is not None:
        # A restart cannot mend what the user has to.
        raise UserError(earlier.message)
    context = RayTrainContext(launch_id, _stop_file(folder, launch_id))
    context.watch_capacity(LaunchConfig.model_validate(settings["launch"]))
    log_to_folder(folder, context.rank)
    try:
        run(config, context)
    except Interrupted as interrupted:
        # A worker that returns ends the run; one that raises is started again elsewhere.
        if interrupted.reason != Interruption.STOP:
            raise
    except Exception:
        logger.exception("rank %d failed", context.rank)
        raise
