"""`ifsq weights check`: which published networks lie in a folder, whether they are whole, and which
key of a recipe they are for.

Nothing is downloaded. Files of torch's hub carry the first digits of their SHA-256 in their name;
for the linear heads of LPIPS the digests are those of the files in the `lpips` package 0.1.4;
DINOv2's project publishes none, so its files are judged by their tensors alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from data_pipelines.errors import UserError
from ifsq_train.models.inception import load_fid_inception
from ifsq_train.models.perceptual import Backbone, load_lpips
from ifsq_train.models.repa import SIZES, Size, load_dino
from ifsq_train.models.weight_files import read_weight_file

SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt")
_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8})\.(pth|pt)$")
_LPIPS_HEADS = (
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",  # vgg.pth
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",  # alex.pth
)
_BACKBONES: dict[tuple[int, ...], Backbone] = {(64, 3, 3, 3): "vgg16", (64, 3, 11, 11): "alexnet"}

Status = Literal["ok", "unknown", "problem"]


@dataclass(frozen=True)
class WeightFile:
    """One file of the folder.

    Attributes:
        name: of the file.
        status: ok; unknown (nothing here uses it); problem (damaged, or not what it is named).
        found: in words.
        use: which key of a recipe takes it; empty where none does.
        part: ``backbone`` or ``heads`` of an LPIPS network; empty for others.
        backbone: of that LPIPS network.
    """

    name: str
    status: Status
    found: str
    use: str = ""
    part: str = ""
    backbone: Backbone | None = None


def examine_weights(folder: Path) -> list[WeightFile]:
    """A line for every weight file of a folder, by name.

    Raises:
        UserError: no such folder, or no weight file in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds the weight files")
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not paths:
        raise UserError(f"{folder}: no weight files ({', '.join(SUFFIXES)}) in it")
    found = [_examine(path) for path in paths]
    return found + _lpips_pairs(folder, found)


def _examine(path: Path) -> WeightFile:
    name = path.name
    if not path.is_file():
        return WeightFile(name, "problem", "no regular file")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    named = _NAMED_DIGEST.search(name)
    if named and not digest.startswith(named[1]):
        return WeightFile(
            name, "problem", f"sha256 begins {digest[:8]}, not {named[1]}: download it again"
        )
    try:
        content = read_weight_file(path)
    except ValueError as error:
        return WeightFile(name, "problem", " ".join(str(error).split()))
    seen = "sha256 as in its name" if named else f"sha256 {digest[:16]}"
    try:
        return _recognised(path, content, digest, seen)
    except ValueError as error:
        return WeightFile(name, "problem", " ".join(str(error).split()))


def _recognised(path: Path, content: Mapping[str, Any], digest: str, seen: str) -> WeightFile:
    name = path.name
    if isinstance(positions := content.get("pos_embed"), Tensor):
        size: Size | None = next(
            (s for s, shape in SIZES.items() if shape["dim"] == positions.shape[-1]), None
        )
        if size is None:
            widths = ", ".join(f"{s} {shape['dim']}" for s, shape in SIZES.items())
            return WeightFile(
                name, "unknown", f"a transformer of width {positions.shape[-1]}; DINOv2: {widths}"
            )
        load_dino(path, size=size, grid=(16, 16))
        use = f"task.repa.teacher with size {size}, and teacher of precompute and evaluation"
        return WeightFile(name, "ok", f"DINOv2 {size}, whole ({seen})", use)
    if "Conv2d_1a_3x3.conv.weight" in content:
        load_fid_inception(path)
        return WeightFile(name, "ok", f"FID Inception, whole ({seen})", "inception of evaluation")
    if isinstance(first := content.get("features.0.weight"), Tensor):
        backbone = _BACKBONES.get(tuple(first.shape))
        if backbone is not None and "lin0.weight" in content:
            load_lpips(path, backbone=backbone)
            return WeightFile(name, "ok", f"LPIPS ({backbone}), whole ({seen})", _use(backbone))
        if backbone is not None:
            what = f"{backbone}, for LPIPS ({seen})"
            return WeightFile(name, "ok", what, part="backbone", backbone=backbone)
    if any(re.match(r"lin0(\.model\.1)?\.weight$", key) for key in content):
        known = "the lpips package's file" if digest in _LPIPS_HEADS else f"another file, {seen}"
        guess: Backbone = "vgg16" if _is_vgg(content) else "alexnet"
        what = f"linear heads of LPIPS for {guess} ({known})"
        return WeightFile(name, "ok", what, part="heads", backbone=guess)
    return WeightFile(name, "unknown", f"no network that recipes take ({seen})")


def _use(backbone: Backbone) -> str:
    use = f"lpips of evaluation with lpips_backbone {backbone}"
    return f"{use}, and task.perceptual.weights" if backbone == "vgg16" else use


def _is_vgg(content: Mapping[str, Any]) -> bool:
    """Heads of VGG16 end in 512 channels, those of AlexNet in 256."""
    last = content.get("lin4.model.1.weight", content.get("lin4.weight"))
    return isinstance(last, Tensor) and last.shape[1] == 512


def _lpips_pairs(folder: Path, found: list[WeightFile]) -> list[WeightFile]:
    """Backbones and heads that are one LPIPS network together."""
    pairs = []
    for backbone in (one for one in found if one.part == "backbone"):
        for heads in (one for one in found if one.part == "heads"):
            if backbone.backbone is None or heads.backbone != backbone.backbone:
                continue
            name = f"{backbone.name} + {heads.name}"
            use = _use(backbone.backbone)
            try:
                load_lpips(folder / backbone.name, folder / heads.name, backbone=backbone.backbone)
            except ValueError as error:
                pairs.append(WeightFile(name, "problem", " ".join(str(error).split())))
            else:
                pairs.append(WeightFile(name, "ok", f"LPIPS ({backbone.backbone}), whole", use))
    return pairs
