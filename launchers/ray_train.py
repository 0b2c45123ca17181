"""Training under Ray Train: one worker per slot, restarted together when one is lost."""

from __future__ import annotations

import json
import logging
import math
import secrets
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.errors import UserError
from ifsq_train.config import LaunchConfig, TrainConfig, to_dict
from launchers.follow import follow_progress
from launchers.ray_cluster import ray_session

if TYPE_CHECKING:
    from ifsq_train.data import TrainData

logger = logging.getLogger(__name__)


class TrainingFailed(Exception):
    """A run ended without finishing; the message names the first rank that failed."""


class RayTrainContext:
    """RunContext of a Ray Train worker."""

    def __init__(self) -> None:
        import ray.train
        import ray.train.torch

        own = ray.train.get_context()
        self.rank = own.get_world_rank()
        self.world_size = own.get_world_size()
        self.local_rank = own.get_local_rank()
        self.device = ray.train.torch.get_device()
        self._report = ray.train.report

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
        trainer = _trainer(config, launch, launch_id)
        with follow_progress(folder, config):
            _fit(trainer, folder, launch_id)
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
    from ifsq_train.train import check_batch_split

    folder = Path(config.output).absolute()
    check_batch_split(config, launch.num_workers)
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


def _trainer(config: TrainConfig, launch: LaunchConfig, launch_id: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = Path(config.output).absolute()
    scaling = ScalingConfig(
        num_workers=launch.num_workers,
        use_gpu=launch.gpus_per_worker > 0,
        resources_per_worker={
            "CPU": launch.cpus_per_worker,
            **({"GPU": launch.gpus_per_worker} if launch.gpus_per_worker else {}),
        },
    )
    return TorchTrainer(
        _worker,
        train_loop_config={"recipe": to_dict(config), "launch_id": launch_id},
        scaling_config=scaling,
        torch_config=TorchConfig(backend="nccl" if launch.gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name=f"{config.name}-{launch_id}",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=launch.max_failures),
        ),
    )


def _fit(trainer: Any, folder: Path, launch_id: str) -> None:
    from ray.train import TrainingFailedError

    try:
        trainer.fit()
    except TrainingFailedError as error:
        failure = read_failure(folder, launch_id)
        if failure is None:
            raise TrainingFailed(f"training failed: {error}") from error
        if failure["user_error"]:
            raise UserError(failure["message"]) from error
        raise TrainingFailed(
            f"rank {failure['rank']} failed first: {failure['message']}\n{failure['traceback']}"
        ) from error


def _worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    from ifsq_train.log import log_to_folder
    from ifsq_train.recipe import validate_recipe
    from ifsq_train.train import run

    config = validate_recipe(settings["recipe"], source="recipe")
    assert isinstance(config, TrainConfig)
    folder = Path(config.output)
    earlier = read_failure(folder, settings["launch_id"])
    if earlier is not None and earlier["user_error"]:
        # A restart cannot mend what the user has to.
        raise UserError(earlier["message"])
    context = RayTrainContext()
    log_to_folder(folder, context.rank)
    try:
        run(config, context)
    except BaseException as error:
        _record_failure(folder, settings["launch_id"], context.rank, error)
        raise


def _failure_path(folder: Path, launch_id: str) -> Path:
    return folder / f"failure-{launch_id}.json"


def _record_failure(folder: Path, launch_id: str, rank: int, error: BaseException) -> None:
    """Keep the first error of a launch: its neighbours only time out afterwards."""
    failure = {
        "rank": rank,
        "user_error": isinstance(error, UserError),
        "message": f"{error}" if isinstance(error, UserError) else f"{error!r}",
        "traceback": "".join(traceback.format_exception(error)),
    }
    logger.error("rank %d failed", rank, exc_info=error)
    try:
        with _failure_path(folder, launch_id).open("x") as file:
            json.dump(failure, file)
    except FileExistsError:
        return


def read_failure(folder: Path, launch_id: str) -> dict[str, Any] | None:
    """The first failure of a launch, or None."""
    try:
        return json.loads(_failure_path(folder, launch_id).read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
