"""Stored results say what decided their numbers and read back as written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_pipelines.errors import DataError
from ifsq_train.evaluation.representation import cknna
from ifsq_train.evaluation.result import (
    EvaluationResult,
    FeatureNetwork,
    Reference,
    network_digest,
    read_result,
)


def result() -> EvaluationResult:
    return EvaluationResult(
        kind="reconstruction",
        metrics={"psnr_db": 30.5, "code_entropy_bits": [3.0]},
        num_samples=12,
        reference=Reference("ab" * 32, 50),
        preprocessing={"view": "adm_center", "image_size": 32},
        subject={"tokenizer": "cd" * 32, "step": 100},
        networks={"frechet": FeatureNetwork("tokenizer-encoder", "ef" * 32)},
    )


def test_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "evaluation.json"
    result().write(path)
    assert read_result(path) == result()
    assert "torch" in result().versions


def test_infinite_numbers_stay_valid_json(tmp_path: Path) -> None:
    stored = replace(result(), metrics={"psnr_db": float("inf")}).to_dict()
    assert json.loads(json.dumps(stored, allow_nan=False))["metrics"]["psnr_db"] is None


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("nan")]])
def test_what_is_not_a_number_is_never_stored(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match="psnr_db is not a number"):
        replace(result(), metrics={"l1": 0.5, "psnr_db": value}).write(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 9, "networks": {}}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json"):
        read_result(tmp_path / "x.json")


def test_a_file_without_a_required_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    result().write(path)
    stored = json.loads(path.read_text())
    del stored["kind"]
    path.write_text(json.dumps(stored))
    with pytest.raises(DataError, match=r"without \['kind'\]"):
        read_result(path)


def test_network_digest_follows_weights_and_description() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    digest = network_digest(network, {"name": "a"})
    assert network_digest(network, {"name": "a"}) == digest
    assert network_digest(network, {"name": "b"}) != digest
    network[1].running_mean.add_(1)  # pyright: ignore
    assert network_digest(network, {"name": "a"}) != digest


def test_cknna_refuses_too_few_rows() -> None:
    with pytest.raises(ValueError, match="at least 4 rows"):
        cknna(torch.zeros(3, 2), torch.zeros(3, 2), neighbors=1)
    with pytest.raises(ValueError, match="use 1 to 4"):
        cknna(torch.zeros(5, 2), torch.zeros(5, 2), neighbors=5)
