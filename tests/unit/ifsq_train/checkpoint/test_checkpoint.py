"""Checkpoints: complete or not there, readable in any pieces, damage always seen."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from ifsq_train.checkpoint.format import CheckpointError, Piece, list_steps, step_folder
from ifsq_train.checkpoint.reader import Checkpoint, newest_checkpoint, open_checkpoint
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter

VALUES = torch.arange(24, dtype=torch.float32)


def write(folder: Path, step: int, world_size: int = 2, keep_last: int = 9) -> None:
    """A checkpoint of one [4, 6] parameter, split unevenly between the ranks."""
    bounds = [0, 10, 24] if world_size == 2 else [0, 24]
    writers = [
        CheckpointWriter(
            folder,
            rank=r,
            world_size=world_size,
            attempt=f"a{step}",
            retention=Retention(keep_last),
        )
        for r in range(world_size)
    ]
    for rank, writer in enumerate(writers):
        low, high = bounds[rank], bounds[rank + 1]
        pieces = [
            Piece("net", "w", state, (4, 6), low, VALUES[low:high] * scale + step)
            for state, scale in (("master", 1.0), ("exp_avg", 2.0))
        ]
        writer.save(step, pieces, {"live/net/mean": torch.ones(3)}, {"note": "x"})
    for writer in writers:
        writer.close()


def test_reads_across_pieces(tmp_path: Path) -> None:
    write(tmp_path, 5)
    saved = Checkpoint(step_folder(tmp_path, 5))
    assert torch.equal(saved.read("net", "w", "master", 7, 9), VALUES[7:16] + 5)
    assert torch.equal(saved.weights("net")["w"], VALUES.reshape(4, 6) + 5)
    assert torch.equal(saved.buffers("live/net")["mean"], torch.ones(3))
    assert saved.header["note"] == "x"


def test_saved_state_is_the_state_at_the_call(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, rank=0, world_size=1, attempt="a", retention=Retention(1))
    values = VALUES.clone()
    writer.save(1, [Piece("net", "w", "master", (24,), 0, values)], {}, {})
    values.zero_()
    writer.close()
    assert torch.equal(Checkpoint(step_folder(tmp_path, 1)).weights("net")["w"], VALUES)


def test_without_marker_it_does_not_exist(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (step_folder(tmp_path, 5) / "checkpoint.json").unlink()
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"half-written checkpoint"):
        open_checkpoint(step_folder(tmp_path, 5))


def test_missing_elements_are_named(tmp_path: Path) -> None:
    write(tmp_path, 5)
    saved = Checkpoint(step_folder(tmp_path, 5))
    with pytest.raises(CheckpointError, match=r"net\.w \(master\) has 24 of the 30"):
        saved.read("net", "w", "master", 0, 30)


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep_last=2)
    assert list_steps(tmp_path) == [3, 4]


def test_files_of_a_killed_attempt_are_not_published(tmp_path: Path) -> None:
    """Rank 1's file of an earlier attempt stands there; rank 0 waits for the new one."""
    write(tmp_path, 5)
    target = step_folder(tmp_path, 5)
    (target / "checkpoint.json").unlink()
    old = json.loads((target / "rank-00001.json").read_text())
    write(tmp_path, 5)
    new = json.loads((target / "rank-00001.json").read_text())
    assert old["sha256"] == new["sha256"]
    writer = CheckpointWriter(
        tmp_path, rank=0, world_size=2, attempt="other", retention=Retention(9)
    )
    writer.save(5, [Piece("net", "w", "master", (24,), 0, VALUES)], {}, {})
    deadline = time.monotonic() + 60
    while list_steps(tmp_path):  # hidden by the writer's thread before it touches anything
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    assert list_steps(tmp_path) == [], "published with the file of another attempt"
    late = CheckpointWriter(tmp_path, rank=1, world_size=2, attempt="other", retention=Retention(9))
    late.save(5, [Piece("net", "w", "exp_avg", (24,), 0, VALUES)], {}, {})
    writer.close()
    late.close()
    assert Checkpoint(target).step == 5


def damage(path: Path, how: str, rng: random.Random, other: Path) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncate":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif how == "delete":
        path.unlink()
    elif how == "swap":
        shutil.copyfile(other, path)
    else:
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncate", "delete", "swap", "flip"])
def test_damage_is_seen_and_the_one_before_is_used(tmp_path: Path, how: str) -> None:
    clean = tmp_path / "clean"
    write(clean, 5)
    write(clean, 6)
    rng = random.Random(how)
    names = sorted(path.name for path in step_folder(clean, 6).iterdir())
    assert len(names) == 7
    rounds = {"truncate": 8, "flip": 30}.get(how, 1)
    for name in names:
        for _ in range(rounds):
            shutil.rmtree(tmp_path / "c", ignore_errors=True)
            shutil.copytree(clean, tmp_path / "c")
            target = step_folder(tmp_path / "c", 6) / name
            other = step_folder(tmp_path / "c", 5) / name
            if how == "swap" and other.read_bytes() == target.read_bytes():
                continue
            damage(target, how, rng, other)
            found = newest_checkpoint(tmp_path / "c")
            assert found is not None
            assert found.step == 5, f"{how} of {name} went unseen"


def test_no_checkpoint_anywhere_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        open_checkpoint(tmp_path)


def flip_a_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_damaged_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    """Two flipped bits in the newest two: step 10, done again from the start, stays."""
    for step in (20, 30):
        write(tmp_path, step, world_size=1)
        flip_a_bit(step_folder(tmp_path, step) / "rank-00000.safetensors", -3)
    write(tmp_path, 10, world_size=1, keep_last=2)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10
    assert list_steps(tmp_path) == [10, 20, 30]


def test_damaged_checkpoints_go_once_enough_good_ones_are_newer(tmp_path: Path) -> None:
    write(tmp_path, 10, world_size=1)
    flip_a_bit(step_folder(tmp_path, 10) / "rank-00000.json", 5)
    for step in (20, 30, 40):
        write(tmp_path, step, world_size=1, keep_last=2)
    assert list_steps(tmp_path) == [30, 40]


def test_what_killed_saves_left_is_cleared_away(tmp_path: Path) -> None:
    half = step_folder(tmp_path, 3)
    half.mkdir(parents=True)
    (half / ".rank-00000.safetensors.123.tmp").write_bytes(b"half")
    ours = step_folder(tmp_path, 5)
    ours.mkdir()
    (ours / ".rank-00000.safetensors.123.tmp").write_bytes(b"half")
    (ours / "rank-00007.json").write_bytes(b"{}")
    write(tmp_path, 5, world_size=1)
    assert not half.exists()
    assert {path.name for path in ours.iterdir()} == {
        "rank-00000.safetensors", "rank-00000.json", "shared.safetensors", "index.json",
        "checkpoint.json",
    }  # fmt: skip
