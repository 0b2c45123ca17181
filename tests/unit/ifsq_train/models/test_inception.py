"""FID-Inception with recipe weights gives what the released network gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ifsq_train.models.inception import ConvUnit, FidInception, load_fid_inception
from tests.support.goldens import Golden, assert_relative


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "perceptual_inception")


def recipe(seed: int) -> dict[str, Tensor]:
    """The pack's stand-in weights, unit by unit in the order of their names."""
    with torch.device("meta"):
        network = FidInception()
    units = sorted(name for name, part in network.named_modules() if isinstance(part, ConvUnit))
    assert len(units) == 94
    tensors: dict[str, Tensor] = {}
    for number, name in enumerate(units):
        generator = torch.Generator().manual_seed(seed + number)
        shape = network.get_parameter(f"{name}.conv.weight").shape
        weight = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        tensors[f"{name}.conv.weight"] = weight
        for key, offset, scale in (("weight", 1, 0.1), ("bias", 0, 0.1), ("running_mean", 0, 0.1)):
            draw = torch.randn(shape[0], generator=generator)
            tensors[f"{name}.bn.{key}"] = offset + scale * draw
        variance = 0.5 + torch.rand(shape[0], generator=generator)
        tensors[f"{name}.bn.running_var"] = variance
    return tensors


def test_features_and_inner_maps(golden: Golden, tmp_path: Path) -> None:
    weights = recipe(golden.config["inception_seed"])
    save_file(weights | {"fc.weight": torch.zeros(1)}, tmp_path / "inception.safetensors")
    network = load_fid_inception(tmp_path / "inception.safetensors")
    with torch.no_grad():
        stages = network.stages(golden["x"])
        assert_relative(network(golden["x"]), golden["inception.pool3"])
    for number, stage in enumerate(stages[:3]):
        assert_relative(stage.mean(dim=(2, 3)), golden[f"inception.block{number}_mean"])


def test_autocast_does_not_reach_the_features() -> None:
    torch.manual_seed(0)
    network = FidInception().eval()
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network(images), expected)
    assert expected.dtype == torch.float32


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"resnet.*missing \['Conv2d_1a.*unexpected \['conv1"):
        load_fid_inception(tmp_path / "resnet.safetensors")
