"""`ifsq weights check` on files as their projects publish them, made here with random values."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from data_pipelines.errors import UserError
from ifsq_train.models.perceptual import Lpips
from ifsq_train.models.repa import SIZES, DinoTeacher
from launchers.first_steps.weights import WeightFile, examine_weights


def named(folder: Path) -> dict[str, WeightFile]:
    return {one.name: one for one in examine_weights(folder)}


def save_by_digest(tensors: dict[str, torch.Tensor], folder: Path, stem: str) -> Path:
    """As torch's hub names its files."""
    torch.save(tensors, folder / "x")
    digest = hashlib.sha256((folder / "x").read_bytes()).hexdigest()
    return (folder / "x").rename(folder / f"{stem}-{digest[:8]}.pth")


def test_lpips_in_the_two_files_that_are_published(tmp_path: Path) -> None:
    network = Lpips("alexnet")
    features = {k.removeprefix("backbone."): v for k, v in network.backbone.state_dict().items()}
    heads = {
        f"lin{k.split('.')[0]}.model.1.weight": v for k, v in network.heads.state_dict().items()
    }
    backbone = save_by_digest(features, tmp_path, "alexnet-owt")
    torch.save(heads, tmp_path / "alex.pth")
    found = named(tmp_path)
    assert "sha256 as in its name" in found[backbone.name].found
    assert "for alexnet (another file" in found["alex.pth"].found
    pair = found[f"{backbone.name} + alex.pth"]
    assert (pair.status, pair.use) == ("ok", "lpips of evaluation with lpips_backbone alexnet")
    torch.save({**heads, "lin4.model.1.weight": torch.zeros(1, 512, 1, 1)}, tmp_path / "alex.pth")
    assert "for vgg16" in named(tmp_path)["alex.pth"].found


def test_damage_and_strangers_are_named(tmp_path: Path) -> None:
    torch.save({"pos_embed": torch.zeros(1, 1370, 384)}, tmp_path / "dinov2_vits14_pretrain.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "inception-6726825d.pth").write_bytes(b"half of it")
    (tmp_path / "text.safetensors").write_text("no")
    found = named(tmp_path)
    assert found["dinov2_vits14_pretrain.pth"].status == "problem"
    assert found["other.pth"].status == "unknown"
    assert "not 6726825d: download it again" in found["inception-6726825d.pth"].found
    assert found["text.safetensors"].status == "problem"
    with pytest.raises(UserError, match="no such folder"):
        examine_weights(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no weight files"):
        examine_weights(tmp_path / "empty")


def test_a_dinov2_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_layers": 1, "dim": 32, "num_heads": 2}
    monkeypatch.setitem(SIZES, "S", small)
    teacher = DinoTeacher(num_layers=1, dim=32, num_heads=2, grid=(37, 37))
    torch.save({**teacher.state_dict(), "mask_token": torch.zeros(1, 32)}, tmp_path / "d.pth")
    (found,) = examine_weights(tmp_path)
    assert found.status == "ok"
    assert found.use.startswith("task.repa.teacher with size S")
