"""What 1,024 workers ask of each other and of the storage, by counting it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ifsq_train.checkpoint import reader
from ifsq_train.checkpoint.format import MARKER, CheckpointError, Piece, step_folder
from ifsq_train.checkpoint.reader import Checkpoint
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter, _digest
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.training import saved_state

RANKS, EACH = 1024, 4


def piece(rank: int) -> Piece:
    values = torch.arange(EACH, dtype=torch.float32) + rank * EACH
    return Piece("net", "w", "master", (RANKS * EACH,), rank * EACH, values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 1,024 ranks: rank 0 writes its own and publishes, as in a run."""
    place = tmp_path_factory.mktemp("run")
    target = step_folder(place, 7)
    target.mkdir()
    for rank in range(1, RANKS):
        own, name = piece(rank), f"rank-{rank:05d}"
        save_file({own.key: own.values}, target / f"{name}.safetensors")
        digest = _digest((target / f"{name}.safetensors").read_bytes())
        sidecar = {"attempt": "a", "pieces": [own.record()], **digest}
        (target / f"{name}.json").write_text(json.dumps(sidecar))
    writer = CheckpointWriter(place, rank=0, world_size=RANKS, attempt="a", retention=Retention(1))
    writer.save(7, [piece(0)], {"live/net/mean": torch.ones(3)}, {"optimizer_steps": {}})
    writer.close()
    return place


class _Opened:
    """What Python opens; a hook cannot be taken away again, so there is one for the process."""

    names: Counter[str] | None = None
    hooked = False

    @classmethod
    def note(cls, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and cls.names is not None and isinstance(args[0], str | Path):
            cls.names[Path(args[0]).name] += 1


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Files opened inside, by name, those of the safetensors library too."""
    if not _Opened.hooked:
        sys.addaudithook(_Opened.note)
        _Opened.hooked = True
    found, plain = Counter[str](), reader.safe_open

    def counting(path: Path, kind: str) -> Any:
        found[path.name] += 1
        return plain(path, kind)

    monkeypatch.setattr(reader, "safe_open", counting)
    _Opened.names = found
    try:
        yield found
    finally:
        _Opened.names = None


@pytest.mark.parametrize("rank", [0, 1, 700, 1023])
def test_a_rank_that_resumes_opens_a_few_files(
    folder: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(monkeypatch) as found:
        checkpoint = Checkpoint(step_folder(folder, 7), verify=False)
        checkpoint.verify(rank, RANKS)
        values = torch.empty(EACH)
        checkpoint.read_into(values, "net", "w", "master", rank * EACH)
        checkpoint.buffers("live/net")
    assert torch.equal(values, piece(rank).values)
    assert found.total() <= 8, found


def test_all_ranks_together_verify_every_file_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(step_folder(folder, 7), verify=False)
    read: Counter[str] = Counter()
    monkeypatch.setattr(reader, "verify_files", lambda _folder, files: read.update(list(files)))
    for rank in range(RANKS):
        checkpoint.verify(rank, RANKS)
    assert read == Counter(dict.fromkeys(checkpoint.header["files"], 1))
    assert read.total() == 2 * RANKS + 2


def test_a_damaged_share_sends_all_ranks_to_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank finds it: this one's share is whole."""
    for step in (1, 2):
        writer = CheckpointWriter(
            tmp_path, rank=0, world_size=1, attempt="a", retention=Retention(2)
        )
        writer.save(step, [Piece("net", "w", "master", (4,), 0, torch.ones(4))], {}, {})
        writer.close()
    answers = iter([True, False])
    monkeypatch.setattr(saved_state, "any_rank", lambda own: own or next(answers))
    found = saved_state._agreed_checkpoint(tmp_path, InProcessContext())
    assert found is not None
    assert found.step == 1


def test_checkpoints_without_an_index_are_read(folder: Path, tmp_path: Path) -> None:
    """Earlier releases wrote none."""
    from ifsq_train.checkpoint.format import seal, unseal

    target = tmp_path / "step-00000007"
    target.mkdir()
    for path in step_folder(folder, 7).iterdir():
        (target / path.name).hardlink_to(path)
    marker = unseal((target / MARKER).read_bytes(), target / MARKER)
    del marker["files"]["index.json"]
    (target / MARKER).unlink()
    (target / MARKER).write_bytes(seal(marker))
    (target / "index.json").unlink()
    old = Checkpoint(target, verify=False)
    assert torch.equal(old.read("net", "w", "master", 5, 3), torch.tensor([5.0, 6.0, 7.0]))


def test_a_damaged_index_is_seen_by_every_rank(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "step-00000007"
    target.mkdir()
    for path in step_folder(folder, 7).iterdir():
        (target / path.name).hardlink_to(path)
    text = (target / "index.json").read_bytes()
    (target / "index.json").unlink()
    (target / "index.json").write_bytes(text.replace(b'"start": 8,', b'"start": 9,'))
    with pytest.raises(CheckpointError, match=r"index\.json: contents do not match"):
        Checkpoint(target, verify=False)
