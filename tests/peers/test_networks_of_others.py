"""Frozen networks give the features of the packages they come from, with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ifsq_train.models.inception import FidInception, load_fid_inception
from ifsq_train.models.perceptual import load_lpips
from ifsq_train.models.repa import load_dino

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


def test_dinov2_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: make test-peers")
    torch.manual_seed(0)
    theirs = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "dinov2.pth")
    ours = load_dino(tmp_path / "dinov2.pth", size="S", grid=(37, 37))
    shown = images(1, 518)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    with torch.no_grad():
        features = theirs.forward_features(((shown + 1) / 2 - mean) / std)[:, 1:]
    torch.testing.assert_close(ours(shown), features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("net", "backbone"), [("vgg", "vgg16"), ("alex", "alexnet")])
def test_lpips_with_its_own_heads(tmp_path: Path, net: str, backbone: Any) -> None:
    lpips = pytest.importorskip("lpips", reason="lpips is not installed: make test-peers")
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    features = {
        "features." + name.split(".", 1)[1]: value
        for name, value in theirs.net.state_dict().items()
    }
    torch.save(features, tmp_path / "backbone.pth")
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    ours = load_lpips(tmp_path / "backbone.pth", heads, backbone=backbone)
    first, second = images(2, 64), images(4, 64)[2:]
    with torch.no_grad():
        torch.testing.assert_close(ours(first, second), theirs(first, second).flatten())


def test_inception_of_pytorch_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inception = pytest.importorskip(
        "pytorch_fid.inception", reason="pytorch-fid is not installed: make test-peers"
    )
    torch.manual_seed(0)
    state = {k: v for k, v in FidInception().state_dict().items() if v is not None}
    whole = {**state, "fc.weight": torch.randn(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(whole, tmp_path / "fid.pth")
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_args, **_kept: whole)
    theirs = inception.InceptionV3([3], normalize_input=True).eval()
    shown = images(2, 96)
    with torch.no_grad():
        features = theirs((shown + 1) / 2)[0].flatten(1)
        found = load_fid_inception(tmp_path / "fid.pth")(shown)
    torch.testing.assert_close(found, features, atol=1e-4, rtol=1e-3)
