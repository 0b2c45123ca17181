"""What a training loop's reports become."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from data_pipelines.errors import UserError
from ifsq_train.checkpoint.train_state import TrainState
from ifsq_train.config import TrainConfig
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.metrics.prometheus import PORT_VARIABLE, endpoint_port
from ifsq_train.metrics.training import TrainingMetrics

BATCH = 16
Opener = Callable[..., TrainingMetrics]


def recipe(folder: Path) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "kind": "train",
            "name": "demo",
            "output": str(folder),
            "steps": 100,
            "data": {"kind": "tokens", "url": "tokens", "global_batch_size": BATCH},
            "task": {
                "kind": "autoregressive",
                "model": {"num_layers": 1, "num_heads": 1, "dim": 8},
            },
            "optim": {"generator": {"lr": 1e-3}},
        }
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Opener]:
    opened: list[TrainingMetrics] = []

    def opener(first_step: int = 0, **place: Any) -> TrainingMetrics:
        context = InProcessContext(**place)
        opened.append(
            TrainingMetrics(recipe(tmp_path), context, tmp_path, first_step, {"grid": [4, 4]})
        )
        return opened[-1]

    yield opener
    for metrics in opened:
        metrics.close()


def at(step: int) -> TrainState:
    return TrainState("digest", step, step * BATCH)


def scrape(folder: Path) -> dict[tuple[str, ...], float]:
    groups = json.loads((folder / "metrics_endpoint.json").read_text())
    with urllib.request.urlopen(f"http://{groups[0]['targets'][0]}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_logged_step_is_a_line_of_the_log(start: Opener, tmp_path: Path) -> None:
    start().step(at(10), {"loss": 0.5, "lr/generator": 1e-3}, 0.25, 0.05)
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert line.pop("samples_per_second") > 0
    assert abs(line.pop("wall_time") - time.time()) < 600
    assert 0 <= line.pop("goodput_ratio") <= 1
    assert line.pop("useful_seconds") >= 0
    assert line == {
        "step": 10,
        "samples": 160,
        "loss": 0.5,
        "lr/generator": 1e-3,
        "step_seconds": 0.25,
        "data_wait_seconds": 0.05,
        "data_wait_ratio": 0.2,
    }


def test_a_logged_step_is_exported(start: Opener, tmp_path: Path) -> None:
    metrics = start()
    for _ in range(3):
        metrics.waited(0.5)
    metrics.step(at(10), {"loss": 0.5, "grad_norm/generator": 2.0, "lr/generator": 1e-3}, 0.2, 0.5)
    metrics.step(at(30), {"loss": 0.25, "digit_entropy/3": 1.5}, 0.2, 0.0)
    metrics.checkpoint(30, 0.75)
    for _ in range(2):
        metrics.passes({"forward": 1.5, "backward": 3.0})
    found = scrape(tmp_path)
    assert found["ifsq_training_pass_seconds_total", "forward", "0"] == 3.0
    assert found["ifsq_training_pass_seconds_total", "backward", "0"] == 6.0
    assert found["ifsq_training_loss", "loss"] == 0.25
    assert found["ifsq_training_gradient_norm", "generator"] == 2.0
    assert found["ifsq_training_learning_rate", "generator"] == 1e-3
    assert found["ifsq_tokenizer_digit_entropy", "3"] == 1.5
    assert found["ifsq_training_step",] == 30
    assert found["ifsq_training_planned_steps",] == 100
    assert found["ifsq_training_steps_total",] == 30
    assert found["ifsq_training_samples_total",] == 30 * BATCH
    assert found["ifsq_training_tokens_total",] == 30 * BATCH * 16
    assert found["ifsq_data_batch_wait_seconds_count",] == 3
    assert found["ifsq_training_run_info", "fp32", "deepspeed-1", "autoregressive"] == 1
    assert found["ifsq_storage_free_bytes",] <= found["ifsq_storage_size_bytes",]
    assert found["ifsq_training_step_seconds_count",] == 2
    assert found["ifsq_training_data_wait_seconds_total", "0"] == 1.5
    assert found["ifsq_training_checkpoint_seconds_sum",] == 0.75
    assert abs(found["ifsq_training_checkpoint_last_success_timestamp_seconds",] - time.time()) < 60
    assert found["ifsq_training_world_size",] == 1
    assert found["ifsq_training_restarts_total",] == 0


def test_a_gauge_that_was_never_set_is_absent(start: Opener, tmp_path: Path) -> None:
    start()
    found = {name for name, *_ in scrape(tmp_path)}
    assert "ifsq_tokenizer_code_entropy" not in found
    assert "ifsq_training_checkpoint_last_success_timestamp_seconds" not in found


def test_the_rate_is_over_all_steps_since_the_last_logged_one(
    start: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    metrics = start()
    for step in (10, 20):
        now[0] += 4.0
        metrics.step(at(step), {"loss": 1.0}, 0.1, 0.0)
    rates = [line["samples_per_second"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert rates == [10 * BATCH / 4.0] * 2


def test_a_resumed_run_counts_only_its_own_steps(start: Opener, tmp_path: Path) -> None:
    start().step(at(20), {"loss": 1.0}, 0.1, 0.0)
    resumed = start(10)
    assert read_jsonl(tmp_path / "metrics.jsonl") == []
    resumed.step(at(15), {"loss": 1.0}, 0.1, 0.0)
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert (line["step"], line["samples"]) == (15, 15 * BATCH)


def test_restarts_are_counted_over_the_life_of_the_folder(start: Opener, tmp_path: Path) -> None:
    for first_step in (0, 10, 20):
        metrics = start(first_step, world_size=2)
        found = scrape(tmp_path)
        metrics.close()
        assert found["ifsq_training_restarts_total",] == first_step / 10
    assert [line["first_step"] for line in read_jsonl(tmp_path / "starts.jsonl")] == [0, 10, 20]


def test_goodput_counts_neither_waiting_nor_checkpoints_nor_lost_steps(
    start: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, wall = [100.0], [5000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: wall[0])

    def passes(seconds: float) -> None:
        now[0] += seconds
        wall[0] += seconds

    metrics = start()
    passes(10)  # of these 3 waiting and 1 saving: 6 useful
    metrics.waited(3.0)
    metrics.checkpoint(10, 1.0)
    metrics.step(at(10), {"loss": 1.0}, 1.0, 0.0)
    passes(10)  # lost: not in the checkpoint
    metrics.step(at(20), {"loss": 1.0}, 1.0, 0.0)
    metrics.close()
    passes(5)  # down
    again = start(10)
    passes(10)
    again.step(at(20), {"loss": 1.0}, 1.0, 0.0)
    line = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert line["useful_seconds"] == pytest.approx(16.0)
    assert line["goodput_ratio"] == pytest.approx(16.0 / 35.0)


def test_a_hang_is_not_useful(
    start: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    metrics = start()
    for step, seconds in ((10, 1.0), (20, 1.0), (30, 500.0), (40, 1.0)):
        now[0] += seconds
        metrics.step(at(step), {"loss": 1.0}, 1.0, 0.0)
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["useful_seconds"] == pytest.approx(6.0)


def test_a_training_exports_nothing_of_precompute(start: Opener, tmp_path: Path) -> None:
    start()
    assert not [name for name, *_ in scrape(tmp_path) if name.startswith("ifsq_precompute")]


def test_waiting_in_a_queue_counts_against_goodput(
    start: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IFSQ_SUBMITTED", str(time.time() - 1000))
    start().step(at(10), {"loss": 1.0}, 1.0, 0.0)
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert 0 <= line["goodput_ratio"] < 0.1


def test_other_ranks_leave_the_files_to_rank_0(start: Opener, tmp_path: Path) -> None:
    other = start(rank=1, local_rank=1, world_size=2)
    other.step(at(10), {"loss": 9.0}, 0.1, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_the_endpoint_can_be_turned_off(
    start: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PORT_VARIABLE, "off")
    start().step(at(1), {"loss": 9.0}, 0.1, 0.0)
    assert not (tmp_path / "metrics_endpoint.json").exists()


@pytest.mark.parametrize("text", ["http", "-1", "65536", ""])
def test_a_port_that_is_none_is_a_user_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(PORT_VARIABLE, text)
    with pytest.raises(UserError, match=f"{PORT_VARIABLE}='{text}' is not a port"):
        endpoint_port()
