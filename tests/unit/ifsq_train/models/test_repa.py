"""The teacher: DINOv2's arithmetic, its grids, and that nothing is ever learned through it."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ifsq_train.models import repa
from ifsq_train.models.repa import DinoTeacher, load_dino, resample_positions


def tiny(grid: tuple[int, int] = (3, 3)) -> DinoTeacher:
    torch.manual_seed(0)
    teacher = DinoTeacher(num_layers=2, dim=32, num_heads=4, grid=grid)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return teacher.eval()


def reference(teacher: DinoTeacher, x: Tensor) -> Tensor:
    """The same blocks from torch's own encoder layer; layer scales folded into its weights."""
    for block in teacher.blocks:
        layer = nn.TransformerEncoderLayer(
            32, 4, 128, 0.0, F.gelu, layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        own = {name: value.detach() for name, value in block.named_parameters()}
        scale1, scale2 = own["ls1.gamma"], own["ls2.gamma"]
        weights = {
            "self_attn.in_proj_weight": own["attn.qkv.weight"],
            "self_attn.in_proj_bias": own["attn.qkv.bias"],
            "self_attn.out_proj.weight": own["attn.proj.weight"] * scale1[:, None],
            "self_attn.out_proj.bias": own["attn.proj.bias"] * scale1,
            "linear1.weight": own["mlp.fc1.weight"],
            "linear1.bias": own["mlp.fc1.bias"],
            "linear2.weight": own["mlp.fc2.weight"] * scale2[:, None],
            "linear2.bias": own["mlp.fc2.bias"] * scale2,
        }
        norms = {f"norm{i}.{k}": own[f"norm{i}.{k}"] for i in (1, 2) for k in ("weight", "bias")}
        layer.load_state_dict(weights | norms)
        x = layer.eval()(x)
    return teacher.norm(x)[:, 1:]


def test_blocks_equal_those_of_torch() -> None:
    teacher = tiny()
    images = torch.rand(2, 3, 42, 42, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        normed = ((images + 1) / 2 - teacher.mean) / teacher.std
        tokens = torch.cat([teacher.cls_token.expand(2, -1, -1), teacher.patch_embed(normed)], 1)
        expected = reference(teacher, tokens + teacher.pos_embed)
    assert torch.allclose(teacher(images), expected, atol=1e-5)


def test_registers_are_attended_to_but_not_given(tmp_path: Path, monkeypatch) -> None:
    """The ``_reg4`` backbones: four more tokens between class token and patches, no positions."""
    monkeypatch.setitem(repa.SIZES, "S", {"num_layers": 2, "dim": 32, "num_heads": 4})
    teacher, registers = tiny((37, 37)), torch.randn(1, 4, 32)
    save_file(teacher.state_dict() | {"register_tokens": registers}, tmp_path / "reg.safetensors")
    loaded = load_dino(tmp_path / "reg.safetensors", size="S", grid=(37, 37))
    images = torch.rand(1, 3, 37, 37) * 2 - 1
    assert loaded(images).shape == (1, 37 * 37, 32)
    with torch.no_grad():
        x = torch.nn.functional.interpolate(
            ((images + 1) / 2 - loaded.mean) / loaded.std, (518, 518), mode="bicubic"
        )
        patches = loaded.patch_embed(x) + loaded.pos_embed[:, 1:]
        first = loaded.cls_token + loaded.pos_embed[:, :1]
        expected = reference(loaded, torch.cat([first, registers, patches], 1))[:, 4:]
    assert torch.allclose(loaded(images), expected, atol=1e-5)
    assert not torch.allclose(loaded(images), teacher(images), atol=1e-3)


def test_any_image_size_gives_the_grid_of_the_tokens() -> None:
    features = tiny((4, 4))(torch.zeros(2, 3, 64, 64))
    assert features.shape == (2, 16, 32)


def test_no_graph_is_built() -> None:
    images = torch.zeros(1, 3, 42, 42, requires_grad=True)
    assert not tiny()(images).requires_grad


def test_positions_of_the_same_grid_stay_and_others_are_averaged() -> None:
    table = torch.randn(1, 1 + 36, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resample_positions(table, (6, 6)), table)
    smaller = resample_positions(table, (2, 2))
    assert smaller.shape == (1, 5, 8)
    assert torch.equal(smaller[:, 0], table[:, 0])
    constant = torch.ones(1, 1 + 36, 8)
    assert torch.allclose(resample_positions(constant, (4, 3)), torch.ones(1, 13, 8))


def test_positions_lie_at_the_centres_of_their_patches() -> None:
    """A ramp of 16 made 8: position i is the mean of 2 i and 2 i + 1, away from the edges."""
    ramp = torch.arange(16.0).expand(16, 16).reshape(1, 256, 1)
    smaller = resample_positions(torch.cat([torch.zeros(1, 1, 1), ramp], 1), (8, 8))
    found = smaller[0, 1:, 0].view(8, 8)[:, 2:6]
    torch.testing.assert_close(found, torch.tensor([4.5, 6.5, 8.5, 10.5]).expand(8, 4))


def test_file_is_loaded_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(repa.SIZES, "S", {"num_layers": 2, "dim": 32, "num_heads": 4})
    weights = tiny((37, 37)).state_dict()
    save_file(weights | {"mask_token": torch.zeros(1, 32)}, tmp_path / "dino.safetensors")
    teacher = load_dino(tmp_path / "dino.safetensors", size="S", grid=(3, 3))
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(teacher.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])  # pyright: ignore


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"head.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: not a DINOv2 backbone"):
        load_dino(tmp_path / "x.safetensors", size="B", grid=(16, 16))
    save_file({"pos_embed": torch.zeros(1, 1370, 384)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match=r"y\.safetensors.*Missing"):
        load_dino(tmp_path / "y.safetensors", size="B", grid=(16, 16))


def test_parameter_count_of_the_base_model() -> None:
    """The published file has 86,580,480 with its unused mask token of 768."""
    with torch.device("meta"):
        teacher = DinoTeacher(**repa.SIZES["B"], grid=(37, 37))
    assert sum(p.numel() for p in teacher.parameters()) == 86_580_480 - 768
