"""Which device the workers get: the CPU unless GPUs were asked for, and never all the first GPU."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from data_pipelines.errors import UserError
from ifsq_train.config import LaunchConfig
from ifsq_train.distributed.context import chosen_device
from launchers.cli.options import gpu_count
from launchers.on_ray.context import worker_resources
from launchers.on_ray.gpus import settle_gpus

EIGHT = {"CPU": 64.0, "GPU": 8.0}


def settled(found: dict[str, float], *, local: bool = True, **launch: Any) -> LaunchConfig:
    return settle_gpus(LaunchConfig.model_validate(launch), found, local=local)


@pytest.mark.parametrize(
    ("found", "asked", "workers", "expected"),
    [
        (EIGHT, "auto", 8, 1),
        (EIGHT, "auto", 1, 1),
        ({"CPU": 2.0}, "auto", 4, 0),
        (EIGHT, 0, 8, 0),
        (EIGHT, 2, 4, 2),
    ],
)
def test_gpus_of_a_worker(found: dict[str, float], asked: Any, workers: int, expected: int) -> None:
    launch = settled(found, num_workers=workers, gpus_per_worker=asked)
    assert launch.gpus == expected
    assert worker_resources(launch).get("GPU", 0) == expected


def test_gpus_left_alone_are_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        settled(EIGHT, num_workers=2)
    assert "training on the CPU: 8 GPU(s) are here" in caplog.text
    caplog.clear()
    settled({"CPU": 2.0}, num_workers=2)
    assert caplog.text == ""


def test_too_few_gpus_are_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match="use --workers 8"):
        settled(EIGHT, num_workers=9, gpus_per_worker="auto")
    with pytest.raises(UserError, match=r"need 9 GPU\(s\), this machine has 8"):
        settled(EIGHT, num_workers=9, gpus_per_worker=1)
    # A cluster may grow, and an elastic run takes what there is.
    assert settled(EIGHT, local=False, num_workers=9, gpus_per_worker=1).gpus == 1
    assert settled(EIGHT, num_workers=16, min_workers=8, gpus_per_worker="auto").gpus == 1


def test_words_for_a_number_of_gpus() -> None:
    assert (gpu_count("auto"), gpu_count("0"), gpu_count("2")) == ("auto", 0, 2)
    for text in ("-1", "many", "", "1.5"):
        with pytest.raises(UserError, match="number from 0 on, or auto"):
            gpu_count(text)


def test_one_worker_in_this_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device(0).type == chosen_device("auto").type == "cpu"
    with pytest.raises(UserError, match=r"this machine has 0 GPU\(s\)"):
        chosen_device(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert chosen_device(0).type == "cpu"
    assert "2 GPU(s) are here" in caplog.text
