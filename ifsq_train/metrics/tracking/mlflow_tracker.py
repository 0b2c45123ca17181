"""MLflow. Server and credentials are MLFLOW_ variables, which only its own library reads."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifsq_train.config.trackers import MlflowConfig
from ifsq_train.metrics.tracker import TrackedRun
from ifsq_train.metrics.tracking.run_id import keep_id

_MOST_PARAMETERS, _LONGEST = 100, 500
"""Per request, and characters of a parameter's value, that every server takes."""


class MlflowTracker:
    """See `metrics.tracker.Tracker`. Steps that a restart repeats are logged again; MLflow shows
    the newest value of a step."""

    def __init__(self, config: MlflowConfig, run: TrackedRun) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        own = (run.folder / "mlruns").absolute().as_uri()
        uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or own
        if uri == own:  # MLflow asks for this before it keeps runs in a folder
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(config.experiment)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(config.experiment)
        )
        self._id = keep_id(
            run.folder,
            "mlflow",
            lambda: self._client.create_run(experiment, run_name=run.name).info.run_id,
        )
        self._client.set_terminated(self._id, status="RUNNING")
        if not self._client.get_run(self._id).data.params:
            parameters = [self._entities.Param(key, value) for key, value in _flat(run.recipe)]
            for first in range(0, len(parameters), _MOST_PARAMETERS):
                part = parameters[first : first + _MOST_PARAMETERS]
                self._client.log_batch(self._id, params=part)

    def resume(self, step: int) -> None:
        """Nothing: see above."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One metric per name."""
        now, metric = int(1000 * time.time()), self._entities.Metric
        metrics = [metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def images(self, step: int, name: str, images: NDArray[np.uint8]) -> None:
        """All of them side by side, as one image of the step."""
        self._client.log_image(self._id, np.concatenate(list(images), axis=1), key=name, step=step)

    def histogram(
        self, step: int, name: str, counts: NDArray[np.int64], edges: NDArray[np.float64]
    ) -> None:
        """A JSON file of the step."""
        values = {"step": step, "counts": counts.tolist(), "edges": edges.tolist()}
        self._client.log_dict(self._id, values, f"histograms/{name}/{step:09d}.json")

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and texts of a recipe."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)[:_LONGEST]


open_tracker = MlflowTracker
