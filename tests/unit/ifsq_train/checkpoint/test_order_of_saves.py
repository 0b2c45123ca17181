"""A checkpoint that is interrupted anywhere costs itself only; who may write, and what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from data_pipelines.errors import UserError
from ifsq_train.checkpoint import writer as checkpoint_writer
from ifsq_train.checkpoint.fence import Fence, FencedOff
from ifsq_train.checkpoint.format import INDEX, MARKER, Piece, list_steps, seal, step_folder
from ifsq_train.checkpoint.intact import IntactCheckpoints
from ifsq_train.checkpoint.reader import Checkpoint, CheckpointError, newest_checkpoint
from ifsq_train.checkpoint.retention import SCORES, Retention
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.config import CheckpointConfig

VALUES = torch.arange(24, dtype=torch.float32)


def save(folder: Path, step: int, scale: float = 1.0, **options: object) -> None:
    settings = {"rank": 0, "world_size": 1, "attempt": "a", "retention": Retention(2)} | options
    writer = CheckpointWriter(folder, **settings)  # type: ignore[arg-type]
    try:
        writer.save(step, [Piece("net", "w", "master", (4, 6), 0, VALUES * scale)], {}, {})
        writer.settle()
    finally:
        writer.abort()


def test_the_marker_is_written_last_and_every_prefix_leaves_the_older_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written, fails = checkpoint_writer.write_atomically, [], {"at": 99}

    def write(path: Path, data: bytes) -> None:
        if len(written) == fails["at"]:
            raise OSError(28, "No space left on device", str(path))
        written.append(path.name)
        real(path, data)

    monkeypatch.setattr(checkpoint_writer, "write_atomically", write)
    save(tmp_path, 1)
    first = ["rank-00000.safetensors", "rank-00000.json", "shared.safetensors"]
    assert written == [*first, INDEX, MARKER]
    for number in range(len(written)):
        fails["at"] = number
        written.clear()
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2, 2.0, max_failed_saves=0)
        found = newest_checkpoint(tmp_path)
        assert found is not None
        assert found.step == 1
        assert torch.equal(found.weights("net")["w"], VALUES.view(4, 6))
        shutil.rmtree(step_folder(tmp_path, 2), ignore_errors=True)


@pytest.mark.parametrize(
    "name", ["rank-00000.safetensors", "rank-00000.json", "shared.safetensors"]
)
def test_a_file_that_reads_back_otherwise_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Storage that took the bytes and gives others: the older checkpoint stays the newest."""
    real = checkpoint_writer.write_atomically

    def write(path: Path, data: bytes) -> None:
        real(path, data)
        if path.name == name and path.parent == step_folder(tmp_path, 2):
            kept = path.read_bytes()
            path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))

    monkeypatch.setattr(checkpoint_writer, "write_atomically", write)
    save(tmp_path, 1)
    with pytest.raises(OSError, match=f"{name}: read back after writing, it is not what was"):
        save(tmp_path, 2, max_failed_saves=0)
    assert list_steps(tmp_path) == [1]


def test_rewriting_a_step_hides_it_before_its_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def refuse(path: Path, data: bytes) -> None:
        assert not (step_folder(tmp_path, 2) / MARKER).exists()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint_writer, "write_atomically", refuse)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, 2.0, max_failed_saves=0)
    assert list_steps(tmp_path) == [1]


def test_an_older_start_changes_no_file_of_the_newer(tmp_path: Path) -> None:
    """Also where both save the same step: the older one's data must not get there."""
    older, newer = Fence(tmp_path, "older"), Fence(tmp_path, "newer")
    tmp_path.mkdir(exist_ok=True)
    older.take()
    newer.take()
    save(tmp_path, 5, 1.0, attempt="newer", fence=newer)
    before = {p.name: p.read_bytes() for p in step_folder(tmp_path, 5).iterdir()}
    with pytest.raises(FencedOff):
        save(tmp_path, 5, 2.0, attempt="older", fence=older)
    assert {p.name: p.read_bytes() for p in step_folder(tmp_path, 5).iterdir()} == before


def test_a_start_that_takes_over_while_the_older_writes_keeps_it_from_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = Fence(tmp_path, "older"), Fence(tmp_path, "newer")
    older.take()
    real = checkpoint_writer.write_atomically

    def write(path: Path, data: bytes) -> None:
        real(path, data)
        if path.name == "shared.safetensors":
            newer.take()

    monkeypatch.setattr(checkpoint_writer, "write_atomically", write)
    with pytest.raises(FencedOff):
        save(tmp_path, 5, attempt="older", fence=older)
    assert list_steps(tmp_path) == []


def test_a_deleted_checkpoint_loses_its_marker_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the middle of deleting leaves a folder that readers pass over."""
    for step in (1, 2):
        save(tmp_path, step)

    def killed(path: Path, **options: object) -> None:
        assert not (path / MARKER).exists()

    monkeypatch.setattr(shutil, "rmtree", killed)
    save(tmp_path, 3)
    assert (step_folder(tmp_path, 1) / "rank-00000.safetensors").exists()
    assert list_steps(tmp_path) == [2, 3]


@pytest.mark.parametrize(("mode", "best"), [("min", 20), ("max", 30)])
def test_the_recipe_s_best_is_kept(tmp_path: Path, mode: str, best: int) -> None:
    config = CheckpointConfig.model_validate(
        {"keep_last": 1, "keep_best": {"metric": "psnr", "mode": mode, "count": 1}}
    )
    retention = Retention.of(config)
    scores = {10: 2.0, 20: 1.0, 30: 3.0, 40: 2.5}
    assert retention.kept([10, 20, 30, 40], scores) == {best, 40}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_no_score(tmp_path: Path, value: float) -> None:
    retention = Retention(1, metric="loss", keep_best=1)
    save(tmp_path, 1)
    retention.apply(tmp_path, 1, {"loss": 2.0}, IntactCheckpoints())
    save(tmp_path, 2)
    retention.apply(tmp_path, 2, {"loss": value}, IntactCheckpoints())
    assert json.loads((tmp_path / SCORES).read_text()) == {"1": 2.0}
    assert list_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_is_refused(tmp_path: Path, version: object) -> None:
    save(tmp_path, 1)
    marker = step_folder(tmp_path, 1) / MARKER
    header = Checkpoint(step_folder(tmp_path, 1)).header
    marker.write_bytes(seal({**header, "format": version}))
    with pytest.raises(CheckpointError, match=r"format .*, this program reads 1"):
        Checkpoint(step_folder(tmp_path, 1))


class OnePiece:
    """An engine whose network has one parameter of a shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._module = torch.nn.Module()
        self._module.w = torch.nn.Parameter(torch.zeros(shape))

    def loadable_fragments(self, _name: str) -> list:
        from ifsq_train.strategy.fragments import Fragment

        weight = self._module.w
        assert isinstance(weight, torch.nn.Parameter)
        flat = weight.data.view(-1)
        return [Fragment("w", tuple(weight.shape), 0, {"master": flat})]

    def module(self, _name: str) -> torch.nn.Module:
        return self._module

    def finish_loading(self, _name: str, _steps: int) -> None:
        pass


def test_a_transposed_weight_is_refused(tmp_path: Path) -> None:
    """It has as many values, so nothing but its shape tells."""
    from ifsq_train.training.saved_state import load_network

    save(tmp_path, 1)
    checkpoint = Checkpoint(step_folder(tmp_path, 1))
    load_network(checkpoint, OnePiece((4, 6)), "net", 1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"net\.w has shape \(4, 6\).*\(6, 4\)"):
        load_network(checkpoint, OnePiece((6, 4)), "net", 1)  # type: ignore[arg-type]


def test_buffers_are_taken_over(tmp_path: Path) -> None:
    """Running statistics and counters are as they were saved, not as a new network has them."""
    from ifsq_train.training.saved_state import load_network

    engine = OnePiece((4, 6))
    for name, value in (("mean", torch.zeros(3)), ("count", torch.tensor(0))):
        engine.module("net").register_buffer(name, value)
    writer = CheckpointWriter(tmp_path, rank=0, world_size=1, attempt="a", retention=Retention(1))
    saved = {"live/net/mean": torch.tensor([1.0, 2.0, 3.0]), "live/net/count": torch.tensor(7)}
    writer.save(1, [Piece("net", "w", "master", (4, 6), 0, VALUES)], saved, {})
    writer.close()
    load_network(Checkpoint(step_folder(tmp_path, 1)), engine, "net", 1)  # type: ignore[arg-type]
    for name, value in engine.module("net").named_buffers():
        assert torch.equal(value, saved[f"live/net/{name}"])


def test_what_is_not_kept_leaves_no_file(tmp_path: Path) -> None:
    """Its bytes are why it is deleted; nor does an older save that was never finished stay."""
    unfinished = step_folder(tmp_path, 1)
    unfinished.mkdir(parents=True)
    (unfinished / "rank-00000.safetensors").write_bytes(b"half")
    for step in (2, 3, 4):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        step_folder(tmp_path, step).name for step in (3, 4)
    ]


def test_a_newer_save_that_is_not_finished_is_left_alone(tmp_path: Path) -> None:
    """Somebody may be writing it."""
    newer = step_folder(tmp_path, 9)
    newer.mkdir(parents=True)
    (newer / "rank-00000.safetensors").write_bytes(b"half")
    save(tmp_path, 5)
    assert (newer / "rank-00000.safetensors").exists()


@pytest.mark.parametrize("change", [{"world_size": "many"}, {"step": -1}, {"files": []}])
def test_a_marker_of_another_shape_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    save(tmp_path, 1)
    marker = step_folder(tmp_path, 1) / MARKER
    marker.write_bytes(seal({**Checkpoint(step_folder(tmp_path, 1)).header, **change}))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        Checkpoint(step_folder(tmp_path, 1))
