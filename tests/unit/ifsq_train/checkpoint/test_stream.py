"""Streamed files are those of the library, and what the storage changed is seen."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_pipelines.storage.local import write_atomically
from ifsq_train.checkpoint import stream
from ifsq_train.checkpoint.stream import Hashed, file_parts, read_back

TENSORS = {
    "net/w/master@0": torch.randn(7),
    "a": torch.arange(3),
    "scalar": torch.tensor(2.0),
    "half": torch.randn(3, 2).bfloat16(),
    "flag": torch.zeros(3, dtype=torch.bool),
    "none": torch.zeros(0),
    'quote"ü': torch.ones(2, dtype=torch.float64),
    "small": torch.ones(1, dtype=torch.float16),
    "bytes": torch.ones(5, dtype=torch.uint8),
}


@pytest.mark.parametrize("tensors", [TENSORS, {}])
def test_the_bytes_are_those_of_safetensors(tensors: dict[str, torch.Tensor]) -> None:
    assert b"".join(file_parts(tensors)) == safetensors.torch.save(tensors)


def test_the_digest_is_of_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setattr(stream, "CHUNK_BYTES", 5)
    data = Hashed(file_parts(TENSORS))
    write_atomically(tmp_path / "x", data)
    written = (tmp_path / "x").read_bytes()
    assert written == safetensors.torch.save(TENSORS)
    assert data.digest == {
        "bytes": len(written),
        "sha256": hashlib.sha256(written).hexdigest(),
    }


@pytest.mark.parametrize("damage", ["flip", "cut", "grow"])
def test_other_bytes_than_written_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 8)
    parts, path = file_parts(TENSORS), tmp_path / "x"
    whole = bytearray(b"".join(parts))
    path.write_bytes(whole)
    read_back(path, parts)
    if damage == "flip":
        whole[-3] ^= 1
    path.write_bytes({"flip": whole, "cut": whole[:-1], "grow": whole + b"x"}[damage])
    with pytest.raises(OSError, match="not what was written"):
        read_back(path, parts)
