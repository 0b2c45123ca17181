"""What is compiled where, and formulas a compiler is given in place of torch's own kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ifsq_train.config import StrategyConfig
from ifsq_train.models import token_head
from ifsq_train.models.autoencoder import ImageNorm, Tokenizer
from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.quantizers import FSQ
from ifsq_train.models.token_head import TokenHead
from ifsq_train.training.kernels import choose_kernels, compile_networks

SMALL: dict[str, Any] = {"num_layers": 3, "num_heads": 2, "dim": 32}


class OneNetwork:
    """As much of a task as is needed."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self._network}


def compiled_parts(network: nn.Module, device: str, **strategy: Any) -> list[str]:
    """Names of the compiled modules; the network itself is the empty name."""
    config = StrategyConfig.model_validate(strategy)
    task: Any = OneNetwork(network)
    compile_networks(config, task, device)
    return [name for name, part in network.named_modules() if part._compiled_call_impl is not None]


def small(kind: str) -> nn.Module:
    if kind == "llamagen":
        return LlamaGen(
            **SMALL, codebook_sizes=[64], grid=(4, 4), projection_dims=[8], projection_depth=2
        )
    if kind == "dit":
        return DiT(**SMALL, latent_channels=4, grid=(4, 4))
    shape: dict[str, Any] = {"channel_multipliers": [1, 2], "base_channels": 32}
    return Tokenizer(FSQ([5, 5]), num_res_blocks=1, **shape)


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        ("llamagen", ["layers.0", "layers.1", "layers.2"]),
        ("dit", ["blocks.0", "blocks.1", "blocks.2"]),
        (
            "tokenizer",
            [
                "encoder.down.0.block.0",
                "encoder.down.1.block.0",
                "encoder.mid_block.0",
                "decoder.mid_block.0",
                "decoder.up.0.block.0",
                "decoder.up.0.block.1",
                "decoder.up.1.block.0",
                "decoder.up.1.block.1",
            ],
        ),
    ],
)
def test_blocks_are_compiled_on_gpus_and_nothing_on_cpus(kind: str, blocks: list[str]) -> None:
    assert compiled_parts(small(kind), "cuda") == blocks
    assert compiled_parts(small(kind), "cpu") == []
    assert compiled_parts(small(kind), "cuda", compile=False) == []
    assert compiled_parts(small(kind), "cpu", compile=True) == [""]


def test_stage_3_is_not_compiled() -> None:
    assert compiled_parts(small("dit"), "cuda", kind="deepspeed", zero_stage=3) == []
    with pytest.raises(ValueError, match="does not work with zero_stage 3"):
        StrategyConfig(kind="deepspeed", zero_stage=3, compile=True)


def test_the_compiled_loss_is_chosen_with_the_blocks() -> None:
    network = small("llamagen")
    assert isinstance(network.output, TokenHead)
    compiled_parts(network, "cpu")
    assert not network.output.compiled
    compiled_parts(network, "cuda")
    assert network.output.compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_written_out_norm_is_torchs_and_keeps_the_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = ImageNorm(4, 16, eps=1e-6)
    with torch.no_grad():
        norm.weight.add_(torch.randn(16))
        norm.bias.add_(torch.randn(16))
    x = (torch.randn(3, 16, 6, 5) * 3 + 7).to(dtype).contiguous(memory_format=torch.channels_last)
    found = norm.written_out(x)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    tolerance = 2e-5 if dtype == torch.float32 else 4e-2
    assert torch.allclose(found.float(), norm(x.float()), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_a_compiler_is_given_is_the_eager_one(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and both gradients, over several parts."""
    monkeypatch.setattr(token_head, "MAX_LOGIT_BYTES", 300 * 4 * 5)
    torch.manual_seed(0)
    head = TokenHead(16, 300)
    x, targets = torch.randn(13, 16), torch.randint(300, (13,))
    found = []
    for compiled in (False, True):
        head.compiled = compiled
        monkeypatch.setattr(token_head, "_compiled", lambda: token_head._visit)
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = head(leaf, targets)
        (3.0 * loss).backward()
        assert leaf.grad is not None
        assert head.weight.grad is not None
        found.append((loss.detach(), leaf.grad, head.weight.grad.clone()))
        head.weight.grad = None
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    for eager, compiled in zip(*found, strict=True):
        assert torch.allclose(eager, compiled, rtol=tolerance, atol=tolerance)


def test_deterministic_kernels_are_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        choose_kernels(torch.device("cpu"), StrategyConfig(deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        choose_kernels(torch.device("cuda"), StrategyConfig(deterministic=True))
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        choose_kernels(torch.device("cuda"), StrategyConfig())
        assert torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
