"""Checkpoints in the released code's form load under our names."""

from pathlib import Path

import pytest
import torch

from ifsq_train.artifacts.networks import build_tokenizer
from ifsq_train.config import TokenizerTaskConfig, TrainConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.models.autoencoder import AttentionBlock, Tokenizer
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.quantizers import FSQ, NormalizedVQ
from ifsq_train.models.released import (
    load_llamagen_tokenizer,
    load_released_generator,
    load_released_tokenizer,
)
from tests.support.goldens import Golden


def tokenizer() -> Tokenizer:
    return Tokenizer(
        FSQ([17] * 4, track_statistics=True),
        channel_multipliers=(1, 2, 1),
        base_channels=32,
        num_res_blocks=1,
    ).eval()


@pytest.mark.parametrize("averaged", [True, False])
def test_tokenizer_checkpoint(golden_dir: Path, tmp_path: Path, averaged: bool) -> None:
    golden = Golden(golden_dir, "tokenizer")
    weights = golden.under("sd.")
    average = {f"module.{name}": value for name, value in weights.items()}
    average["module.quantize._levels"] = torch.full((4,), 17.0)
    nothing = {name: torch.zeros_like(value) for name, value in weights.items()}
    content = {
        "current_step": 1,
        "state_dict": {"gen_model": nothing if averaged else weights, "dics_model": {}},
        "ema_state_dict": average if averaged else nothing,
    }
    torch.save(content, tmp_path / "checkpoint-1.ckpt")
    network = tokenizer()
    load_released_tokenizer(network, tmp_path / "checkpoint-1.ckpt", averaged=averaged)
    assert torch.equal(network.encode(golden["x"]).indices, golden["idx"])


def test_generator_checkpoint(tmp_path: Path) -> None:
    def build() -> LlamaGen:
        return LlamaGen(
            num_layers=1, num_heads=2, dim=16, codebook_sizes=[7], grid=(2, 2), num_classes=3
        )

    first, second = build(), build()
    torch.save({"model": {}, "ema": first.state_dict(), "opt": {}}, tmp_path / "0000001.pt")
    load_released_generator(second, tmp_path / "0000001.pt")
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


def test_other_architectures_and_files_are_refused(tmp_path: Path) -> None:
    torch.save(
        {"ema_state_dict": {"module.encoder.conv_in.weight": torch.zeros(1)}}, tmp_path / "a"
    )
    with pytest.raises(ValueError, match=r"/a: .*size mismatch"):
        load_released_tokenizer(tokenizer(), tmp_path / "a")
    torch.save({"notes": "x", "steps": 3}, tmp_path / "c")
    with pytest.raises(ValueError, match=r"no weights in it, only: notes, steps"):
        load_released_tokenizer(tokenizer(), tmp_path / "c", averaged=False)
    torch.save([1, 2], tmp_path / "b")
    with pytest.raises(ValueError, match="holds a list"):
        load_released_generator(tokenizer(), tmp_path / "b")


def llamagen_vq(multipliers=(1, 1, 2), base: int = 32, blocks: int = 2, z: int = 64) -> Tokenizer:
    return Tokenizer(
        NormalizedVQ(64, 8),
        channel_multipliers=multipliers,
        base_channels=base,
        num_res_blocks=blocks,
        z_channels=z,
        attention=True,
        double_z=False,
    ).eval()


def names_of_llamagen(name: str, levels: int) -> str:
    """As the public checkpoints spell it; the decoder's levels in order of use."""
    parts = name.split(".")
    if parts[1] == "down":
        parts[1] = "conv_blocks"
    elif parts[1] == "up":
        parts[1:3] = ["conv_blocks", str(levels - 1 - int(parts[2]))]
    words = {"block": "res", "mid_block": "mid"}
    return ".".join(words.get(part, part) for part in parts)


@pytest.mark.parametrize("place", ["ema", "model"])
def test_llamagen_vq_checkpoint(tmp_path: Path, place: str) -> None:
    torch.manual_seed(0)
    first, second = llamagen_vq(), llamagen_vq()
    content = {names_of_llamagen(name, 3): value for name, value in first.state_dict().items()}
    assert "decoder.conv_blocks.0.attn.2.proj_out.weight" in content
    assert "encoder.mid.1.q.bias" in content
    content["quantize.codebook_used"] = torch.zeros(65536)
    torch.save({place: content}, tmp_path / "vq.pt")
    load_released_tokenizer(second, tmp_path / "vq.pt")
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(first(images)[0], second(images)[0])


def test_llamagen_vq_of_another_shape_is_refused(tmp_path: Path) -> None:
    content = {names_of_llamagen(k, 3): v for k, v in llamagen_vq().state_dict().items()}
    torch.save({"model": content}, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match="size mismatch"):
        load_llamagen_tokenizer(llamagen_vq(base=64), tmp_path / "vq.pt")


@pytest.mark.parametrize(("multipliers", "millions"), [((1, 1, 2, 2, 4), 72), ((1, 2, 2, 4), 70)])
def test_llamagen_vq_sizes(multipliers: tuple[int, ...], millions: int) -> None:
    """The published sizes of VQ-16 and VQ-8."""
    config = load_recipe(f"released/llamagen-vq-{2 ** (len(multipliers) - 1)}")
    assert isinstance(config, TrainConfig)
    assert isinstance(config.task, TokenizerTaskConfig)
    with torch.device("meta"):
        network = build_tokenizer(config.task.model)
        same = llamagen_vq(multipliers, 128, 2, 256)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    expected = {name: value.shape for name, value in same.state_dict().items()}
    assert shapes == expected | {"quantize.embedding.weight": torch.Size([16384, 8])}
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_attention_is_softmax_over_positions() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(32, 8).double()
    x = torch.randn(2, 32, 3, 5, dtype=torch.float64)
    h = block.norm(x)
    q, k, v = (part(h).reshape(2, 32, 15) for part in (block.q, block.k, block.v))
    shares = torch.softmax(torch.bmm(q.transpose(1, 2), k) * 32**-0.5, dim=2)
    mixed = torch.bmm(v, shares.transpose(1, 2)).reshape(2, 32, 3, 5)
    assert torch.allclose(block(x), x + block.proj_out(mixed), atol=1e-12)
