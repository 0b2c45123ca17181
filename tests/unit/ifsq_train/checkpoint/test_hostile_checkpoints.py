"""Whatever is wrong with a checkpoint, it is skipped for the one before it, or gives its values."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ifsq_train.checkpoint.format import CheckpointError, Piece, seal, step_folder
from ifsq_train.checkpoint.reader import Checkpoint, newest_checkpoint
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.train_state import TrainState
from ifsq_train.checkpoint.writer import CheckpointWriter
from tests.unit.data_pipelines.test_hostile_documents import mutated, replaced, survey

FILES = ("checkpoint.json", "rank-00000.json", "rank-00000.safetensors", "shared.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2."""
    writer = CheckpointWriter(
        tmp_path, rank=0, world_size=1, attempt="a", retention=Retention(keep_last=9)
    )
    for step in (1, 2):
        pieces = [
            Piece("net", name, state, (3, 4), 0, torch.arange(12.0) + step)
            for name in ("w", "v")
            for state in ("master", "exp_avg")
        ]
        state = TrainState("plan", step, 8 * step, {"loss": float("nan")}).to_dict()
        header = {"recipe": {"kind": "train"}, "task": {}, "train_state": state}
        writer.save(step, pieces, {"live/net/mean": torch.ones(2)}, header)
    writer.close()
    return tmp_path


def contents(checkpoint: Checkpoint) -> tuple[Any, ...]:
    weights = checkpoint.weights("net")
    return (
        checkpoint.step,
        [(name, weights[name].tolist()) for name in sorted(weights)],
        checkpoint.buffers("live/net")["mean"].tolist(),
        checkpoint.header.get("train_state", {}).get("step"),
    )


@pytest.mark.parametrize("name", FILES)
def test_mutated_files(folder: Path, name: str):
    path = step_folder(folder, 2) / name
    written = path.read_bytes()
    whole = contents(Checkpoint(step_folder(folder, 2)))
    older = contents(Checkpoint(step_folder(folder, 1)))

    def one(rng: random.Random) -> str:
        path.write_bytes(mutated(rng, written))
        found = newest_checkpoint(folder)
        assert found is not None
        assert contents(found) in (whole, older)
        return "skipped" if found.step == 1 else "as written"

    assert survey(150, one)["skipped"] > 75


def test_resealed_markers(folder: Path):
    path = step_folder(folder, 2) / "checkpoint.json"
    marker = json.loads(path.read_text())["checkpoint"]

    def one(rng: random.Random) -> str:
        changed = replaced(rng, marker)
        path.write_bytes(seal(changed))
        found = newest_checkpoint(folder)
        assert found is not None
        contents(found)
        return "skipped" if found.step == 1 else "read"

    assert survey(500, one)["skipped"] > 200


def test_resealed_indices(folder: Path):
    """The index says other things than the tensors hold, and every checksum is right."""
    target = step_folder(folder, 2)
    index = json.loads((target / "index.json").read_text())
    marker = json.loads((target / "checkpoint.json").read_text())["checkpoint"]

    def one(rng: random.Random) -> str:
        import hashlib

        text = json.dumps(replaced(rng, index)).encode()
        (target / "index.json").write_bytes(text)
        digest = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        files = marker["files"] | {"index.json": digest}
        (target / "checkpoint.json").write_bytes(seal(marker | {"files": files}))
        found = newest_checkpoint(folder)
        assert found is not None
        contents(found)
        return "skipped" if found.step == 1 else "read"

    outcomes = survey(500, one)
    assert outcomes["skipped"] + outcomes["refused"] > 250


def test_overlapping_pieces_are_refused(folder: Path):
    """They would leave elements that no piece holds, and still add up to the right number."""
    import hashlib

    target = step_folder(folder, 2)
    index = json.loads((target / "index.json").read_text())
    pieces = index["pieces"]["rank-00000"]
    pieces[0] |= {"start": 0, "length": 6}
    pieces.append(dict(pieces[0]))
    text = json.dumps(index).encode()
    (target / "index.json").write_bytes(text)
    marker = json.loads((target / "checkpoint.json").read_text())["checkpoint"]
    marker["files"]["index.json"] = {
        "bytes": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
    }
    (target / "checkpoint.json").write_bytes(seal(marker))
    with pytest.raises(CheckpointError, match="overlap"):
        Checkpoint(target)


def test_a_renamed_checkpoint_is_not_another_step(folder: Path):
    shutil.copytree(step_folder(folder, 1), step_folder(folder, 7))
    with pytest.raises(CheckpointError, match="holds step 1"):
        Checkpoint(step_folder(folder, 7))
