"""Shipped trackers with their real libraries, on this machine only.

TensorBoard comes with `make install`; the others skip where their library is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import UserError
from ifsq_train.config.trackers import AimConfig, MlflowConfig, TensorBoardConfig, WandbConfig
from ifsq_train.metrics.tracker import TrackedRun
from ifsq_train.metrics.trackers import Trackers
from ifsq_train.metrics.tracking import shipped_tracker

IMAGES = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
COUNTS, EDGES = np.array([3, 0, 5]), np.arange(4) - 0.5


def needs(library: str) -> Any:
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed: make test-peers")


def run_twice(folder: Path, config: Any) -> None:
    """Three steps, then a start that goes on from step 2 with other values."""
    run = TrackedRun("small", folder, {"seed": 0, "data": {"url": "digits"}})
    opens = shipped_tracker(config.kind)
    for first, value in ((0, 1.0), (2, 5.0)):
        tracker = opens(config, run)
        tracker.resume(first)
        for step in range(first + 1, 4):
            tracker.scalars(step, {"loss": value + step, "lr/generator": 1e-3})
        tracker.images(3, "reconstructions", IMAGES)
        tracker.histogram(3, "levels/0", COUNTS, EDGES)
        tracker.close()


def test_tensorboard(tmp_path: Path) -> None:
    reading = "tensorboard.backend.event_processing.event_accumulator"
    accumulator: Any = importlib.import_module(reading)
    run_twice(tmp_path, TensorBoardConfig(kind="tensorboard"))
    found = accumulator.EventAccumulator(
        str(tmp_path / "tensorboard"), {"images": 0, "histograms": 0}
    )
    found.Reload()
    losses = {event.step: event.value for event in found.Scalars("loss")}
    assert losses == {1: 2.0, 2: 3.0, 3: 8.0}
    assert len(found.Scalars("loss")) == 3
    (histogram,) = found.Histograms("levels/0")
    assert histogram.histogram_value.bucket == [3.0, 0.0, 5.0]
    assert {event.step for event in found.Images("reconstructions")} == {3}


@needs("wandb")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_twice(tmp_path, WandbConfig(kind="wandb", project="p"))
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    run_id = json.loads((tmp_path / "tracker-wandb.json").read_text())["id"]
    assert len(folders) == 2
    assert all(folder.name.endswith(run_id) for folder in folders)
    assert all(list(folder.glob("*.wandb")) for folder in folders)
    images = list(folders[1].rglob("*.png"))
    assert len(images) == 2


@needs("mlflow")
def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = importlib.import_module("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_twice(tmp_path, MlflowConfig(kind="mlflow"))
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("ifsq").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 8.0
    assert run.data.params == {"seed": "0", "data.url": "digits"}
    losses = {
        metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")
    }
    assert losses[3] == 8.0
    names = [file.path for file in client.list_artifacts(run.info.run_id, "histograms/levels/0")]
    assert names == ["histograms/levels/0/000000003.json"]
    assert client.list_artifacts(run.info.run_id, "images")


@needs("aim")
def test_aim_in_a_folder(tmp_path: Path) -> None:
    aim: Any = importlib.import_module("aim")
    run_twice(tmp_path, AimConfig(kind="aim"))
    run_hash = json.loads((tmp_path / "tracker-aim.json").read_text())["id"]
    assert aim.Repo.from_path(str(tmp_path / "aim")).list_all_runs() == [run_hash]
    run = aim.Run(run_hash, repo=str(tmp_path / "aim"))
    assert (run.name, run["recipe"]["seed"]) == ("small", 0)
    metrics = {metric.name: metric.data.numpy() for metric in run.metrics()}
    steps, (values, *_) = metrics["loss"]
    assert dict(zip(steps.tolist(), values.tolist(), strict=True)) == {1: 2.0, 2: 3.0, 3: 8.0}
    run.close()


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    configs = [MlflowConfig(kind="mlflow")]
    with pytest.raises(UserError, match=r"needs the package mlflow-skinny.*pip install"):
        Trackers(configs, TrackedRun("small", tmp_path, {}))
