"""What Ray reserves for a training, given back when the driver that asked for it was killed.

Ray keeps a requester's reservation for three minutes after it last asked. A driver that ends by
itself gives it back; after one that was killed, the same command would wait that long for slots
that nobody uses.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from data_pipelines.storage.local import write_atomically

logger = logging.getLogger(__name__)

_FILE = ".ray-requester"
_ACTOR = "AutoscalingCoordinator"
_TIMEOUT_SECONDS = 10.0


def take_over_reservation(folder: Path, trainer: Any) -> None:
    """Give back what an earlier driver of this run folder had reserved, and note this one.

    Args:
        folder: of the run.
        trainer: about to be started on the Ray that is joined.
    """
    noted = folder / _FILE
    if noted.exists():
        _give_back(noted.read_text())
    write_atomically(noted, f"train-{trainer.train_run_context.run_id}".encode())


def _give_back(requester: str) -> None:
    import ray
    from ray.exceptions import RayError

    try:
        coordinator = ray.get_actor(_ACTOR, namespace=_ACTOR)
    except ValueError:
        return  # another cluster, or a new one
    try:
        ray.get(coordinator.cancel_request.remote(requester), timeout=_TIMEOUT_SECONDS)
    except RayError as error:
        logger.warning("the earlier driver's reservation stays until Ray drops it: %s", error)
