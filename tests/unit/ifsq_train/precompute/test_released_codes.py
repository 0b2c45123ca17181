"""The released layout of one .npy per image: out, in again, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.verify import verify_tokens
from ifsq_train.artifacts.trained import tokenizer_fingerprint
from ifsq_train.precompute.job import run_precompute_local
from launchers.cli.program import app
from tests.support.precompute_parts import NUM_IMAGES, NUM_VIEWS, configure, make_parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With a token dataset, and the same exported."""
    folder = tmp_path_factory.mktemp("released")
    parts = make_parts(folder)
    run_precompute_local(configure(parts, folder / "tokens"), device="cpu")
    ran = ifsq("export-codes", folder / "tokens", folder / "codes", folder / "labels")
    assert ran.exit_code == 0, ran.output
    return {**parts, "folder": folder}


def ifsq(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def imported(parts: dict[str, Any], output: Path, **paths: Path) -> Any:
    folder = parts["folder"]
    codes, labels = paths.get("codes", folder / "codes"), paths.get("labels", folder / "labels")
    size = ("--image-size", 16, "--samples-per-shard", 8)
    return ifsq("import-codes", codes, labels, output, "--tokenizer", parts["tokenizer"], *size)


def test_files_are_those_of_the_released_scripts(parts: dict[str, Any]) -> None:
    dataset = TokenDataset.open(parts["folder"] / "tokens")
    codes = np.load(parts["folder"] / "codes" / "20.npy")
    label = np.load(parts["folder"] / "labels" / "20.npy")
    assert (codes.shape, codes.dtype) == ((1, NUM_VIEWS, 64), np.int64)
    assert np.array_equal(codes[0, 1], dataset.read(np.array([20]), np.array([1])).tokens[0])
    assert label.tolist() == [dataset.labels[20]]


def test_codes_come_back_with_their_tokenizer_and_latents(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    ran = imported(parts, tmp_path / "tokens")
    assert ran.exit_code == 0, ran.output
    assert verify_tokens(tmp_path / "tokens").ok
    ours = TokenDataset.open(parts["folder"] / "tokens")
    theirs = TokenDataset.open(tmp_path / "tokens", tokenizer_fingerprint(parts["tokenizer"]))
    ids = np.arange(NUM_IMAGES)
    for views in (np.zeros_like(ids), np.ones_like(ids)):
        assert np.array_equal(ours.read(ids, views).tokens, theirs.read(ids, views).tokens)
        assert np.allclose(ours.latents(ids, views), theirs.latents(ids, views), atol=1e-6)
    assert np.array_equal(ours.labels, theirs.labels)


def test_gap_in_the_numbers_is_named(parts: dict[str, Any], tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    codes.mkdir()
    for i in (0, 1, 3):
        (codes / f"{i}.npy").write_bytes((parts["folder"] / "codes" / f"{i}.npy").read_bytes())
    ran = imported(parts, tmp_path / "tokens", codes=codes)
    assert isinstance(ran.exception, UserError)
    assert "has 3 .npy files, but not 2.npy" in str(ran.exception)


def test_codes_of_another_shape_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    codes.mkdir()
    np.save(codes / "0.npy", np.zeros((1, 2, 100), np.int64))
    ran = imported(parts, tmp_path / "tokens", codes=codes)
    assert isinstance(ran.exception, UserError)
    assert "has shape (1, 2, 100), this tokenizer's codes have (1, views, 64)" in str(ran.exception)
