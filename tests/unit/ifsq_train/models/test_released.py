"""Checkpoints in the released code's form load under our names."""

from pathlib import Path

import pytest
import torch
from goldens import Golden

from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.quantizers import FSQ
from ifsq_train.models.released import load_released_generator, load_released_tokenizer


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
    with pytest.raises(ValueError, match=r"no 'state_dict\.gen_model'"):
        load_released_tokenizer(tokenizer(), tmp_path / "a", averaged=False)
    torch.save([1, 2], tmp_path / "b")
    with pytest.raises(ValueError, match="holds a list"):
        load_released_generator(tokenizer(), tmp_path / "b")
