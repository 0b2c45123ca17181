"""LPIPS with recipe weights gives what the released networks give."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ifsq_train.models.perceptual import Backbone, Lpips, load_lpips
from tests.support.goldens import Golden, assert_relative


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "perceptual_inception")


def recipe(seed: int, backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The pack's stand-in weights: backbone under torchvision's names, heads."""
    network = Lpips(backbone)
    convolutions, heads = {}, {}
    layers = [(i, m) for i, m in enumerate(network.backbone.features) if isinstance(m, nn.Conv2d)]
    for number, (index, layer) in enumerate(layers):
        generator = torch.Generator().manual_seed(seed + number)
        shape = layer.weight.shape
        weight = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        convolutions[f"features.{index}.weight"] = weight
        bias = torch.randn(shape[0], generator=generator)
        convolutions[f"features.{index}.bias"] = 0.05 * bias
    for number, head in enumerate(network.heads):
        generator = torch.Generator().manual_seed(seed + 100 + number)
        assert isinstance(head, nn.Conv2d)
        heads[f"lin{number}.weight"] = torch.rand(head.weight.shape, generator=generator)
    return convolutions, heads


def test_vgg_distance_and_gradient(golden: Golden, tmp_path: Path) -> None:
    convolutions, heads = recipe(golden.config["vgg_seed"], "vgg16")
    save_file(convolutions | heads, tmp_path / "lpips.safetensors")
    network = load_lpips(tmp_path / "lpips.safetensors")
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert_relative(network(golden["x"], golden["y"]), golden["vgg.lpips"].flatten())
    taps = network.tap_distances(golden["x"], golden["y"])
    per_layer = torch.stack([tap.mean(dim=(1, 2, 3)) for tap in taps])
    assert_relative(per_layer, golden["vgg.per_layer"])
    # In float64: in fp32 one ReLU lies within rounding of zero, and its side, which depends on
    # the CPU's convolution kernels, moves the gradient by 4.5e-4.
    y = golden["y"].double().requires_grad_()
    network.double()(golden["x"].double(), y).sum().backward()
    assert y.grad is not None
    assert_relative(y.grad[..., :16, :16], golden["vgg.grad_y"])


def test_alexnet_map_from_the_published_file_forms(golden: Golden, tmp_path: Path) -> None:
    convolutions, heads = recipe(golden.config["alex_seed"], "alexnet")
    torch.save(convolutions | {"classifier.1.weight": torch.zeros(2)}, tmp_path / "alexnet.pth")
    published = {key.replace(".weight", ".model.1.weight"): v for key, v in heads.items()}
    torch.save(published, tmp_path / "heads.pth")
    network = load_lpips(
        tmp_path / "alexnet.pth", tmp_path / "heads.pth", backbone="alexnet", spatial=True
    )
    distances = network(golden["x"], golden["y"])
    assert distances.shape == (2, 1, 64, 64)
    assert_relative(distances[:, :, ::8, ::8], golden["alex.map_corner"])
    assert_relative(distances.mean(dim=(1, 2, 3)), golden["alex.map_mean"])
    assert_relative(distances.mean(), golden["alex.mean"])


def test_features_that_are_all_zero_have_a_finite_gradient() -> None:
    network = Lpips("alexnet").requires_grad_(False)
    for parameter in network.backbone.parameters():
        parameter.fill_(-1.0)
    images = torch.ones(1, 3, 64, 64, requires_grad=True)
    network(images, torch.ones(1, 3, 64, 64)).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_a_file_without_the_heads_is_refused(tmp_path: Path) -> None:
    convolutions, _ = recipe(0, "alexnet")
    save_file(convolutions, tmp_path / "only.safetensors")
    with pytest.raises(ValueError, match=r"only\.safetensors.*Missing.*heads\.0\.weight"):
        load_lpips(tmp_path / "only.safetensors", backbone="alexnet")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=name):
        load_lpips(tmp_path / name)
