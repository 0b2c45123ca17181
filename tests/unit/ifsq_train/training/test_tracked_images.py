"""Pictures and trackers change no number of a run, whatever becomes of them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.images.packing.pack import pack_folder
from ifsq_train.checkpoint.reader import open_checkpoint
from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.plugins.files import forget_files, load_files
from ifsq_train.plugins.registry import forgotten_afterwards
from ifsq_train.precompute.job import run_precompute_local
from tests.plugins.runs import VIEW, recipe, tokenizer_task, train
from tests.support.precompute_parts import configure, make_parts, write_images

IDEA = '''
import subprocess
import numpy as np
from typing import Literal
from ifsq_train.config import Config
from ifsq_train.plugins import TrackerKind

class KeepsConfig(Config):
    """Keeps images and histograms; sends numbers to a process, which is killed at a step."""
    kind: Literal["keeps"]
    killed_at: int = 0

class Keeps:
    def __init__(self, config, run):
        self.folder, self.killed_at = run.folder, config.killed_at
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    def resume(self, step): ...
    def scalars(self, step, values):
        if step == self.killed_at:
            self.process.kill()
            self.process.wait()
        self.process.stdin.write(f"{step} {values}".encode())
        self.process.stdin.flush()
    def images(self, step, name, images):
        np.save(self.folder / f"{name}-{step}.npy", images)
    def histogram(self, step, name, counts, edges):
        np.save(self.folder / f"{name.replace('/', '-')}-{step}.npy", counts)
    def close(self):
        self.process.communicate()

KEEPS = TrackerKind(config=KeepsConfig, open=Keeps)
'''


@pytest.fixture
def keeps(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "idea.py").write_text(IDEA)
    with forgotten_afterwards():
        load_files([tmp_path / "idea.py"])
        yield
    forget_files()


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def same_weights(one: Path, other: Path, network: str) -> bool:
    first, second = (open_checkpoint(p).weights(network, "master") for p in (one, other))
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_reconstructions_and_levels(keeps: None, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    pack_folder(tmp_path / "images", tmp_path / "dataset", shard_bytes=20_000)
    data = {"kind": "images", "url": str(tmp_path / "dataset"), "view": VIEW}
    task = tokenizer_task({"kind": "ifsq", "levels": [5, 3]})
    values = recipe(tmp_path / "plain", data, task, "autoencoder")
    train(values)
    shown: dict[str, Any] = {"track_images": {"every_steps": 2, "count": 3}}
    tracked = {**values, "output": str(tmp_path / "tracked"), **shown}
    train({**tracked, "trackers": [{"kind": "keeps"}]})
    assert losses(tmp_path / "tracked") == losses(tmp_path / "plain")
    assert same_weights(tmp_path / "tracked", tmp_path / "plain", "autoencoder")
    early, late = (np.load(tmp_path / f"tracked/reconstructions-{n}.npy") for n in (2, 4))
    assert early.shape == (3, 8, 16, 3)
    assert np.array_equal(early[:, :, :8], late[:, :, :8])
    counts = np.load(tmp_path / "tracked" / "levels-1-4.npy")
    assert (len(counts), counts.sum()) == (3, 3 * 4 * 4)


def test_samples_and_a_tracker_whose_process_is_killed(
    keeps: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = make_parts(tmp_path, levels=5)
    run_precompute_local(configure(parts, tmp_path / "tokens"), device="cpu")
    data = {"kind": "tokens", "url": str(tmp_path / "tokens")}
    model = {"size": "custom", "num_layers": 1, "num_heads": 2, "dim": 16, "num_classes": 3}
    task = {"kind": "autoregressive", "model": {**model, "token_dropout": 0.5}}
    values = recipe(tmp_path / "plain", data, task, "generator")
    train(values)
    shown: dict[str, Any] = {"track_images": {"every_steps": 1, "count": 2}}
    named = {**data, "tokenizer": parts["tokenizer"], "global_batch_size": 4}
    tracked = {**values, **shown, "output": str(tmp_path / "tracked"), "data": named}
    train({**tracked, "trackers": [{"kind": "keeps", "killed_at": 3}]})
    assert losses(tmp_path / "tracked") == losses(tmp_path / "plain")
    assert same_weights(tmp_path / "tracked", tmp_path / "plain", "generator")
    assert np.load(tmp_path / "tracked" / "samples-2.npy").shape == (2, 16, 16, 3)
    assert not (tmp_path / "tracked" / "samples-4.npy").exists()
    assert "tracker keeps failed and is left out" in caplog.text
    # Without a tokenizer there is a line in the log and nothing else.
    lone = {**tracked, "data": values["data"], "output": str(tmp_path / "lone")}
    train({**lone, "trackers": [{"kind": "keeps"}]}, steps=1)
    assert "set data.tokenizer" in caplog.text


def test_tensorboard_has_every_number_of_the_report_and_the_pictures(tmp_path: Path) -> None:
    reading = "tensorboard.backend.event_processing.event_accumulator"
    accumulator: Any = importlib.import_module(reading)
    write_images(tmp_path / "images")
    pack_folder(tmp_path / "images", tmp_path / "dataset", shard_bytes=20_000)
    data = {"kind": "images", "url": str(tmp_path / "dataset"), "view": VIEW}
    task = tokenizer_task({"kind": "ifsq", "levels": [5, 3]})
    values = recipe(tmp_path / "run", data, task, "autoencoder")
    shown = {"track_images": {"every_steps": 2, "count": 2}}
    train({**values, **shown, "trackers": [{"kind": "tensorboard"}]})
    everything = {"scalars": 0, "images": 0, "histograms": 0}
    found = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"), everything)
    found.Reload()
    # What report pages draw are the numbers of this file.
    for record in read_jsonl(tmp_path / "run" / "metrics.jsonl"):
        numbers = {
            name: value
            for name, value in record.items()
            if name not in ("step", "wall_time") and isinstance(value, int | float)
        }
        assert len(numbers) > 3
        for name, value in numbers.items():
            by_step = {event.step: event.value for event in found.Scalars(name)}
            assert by_step[record["step"]] == pytest.approx(value, rel=1e-6), name
    assert {event.step for event in found.Images("reconstructions")} == {2, 4}
    assert {event.step for event in found.Histograms("levels/1")} == {2, 4}
