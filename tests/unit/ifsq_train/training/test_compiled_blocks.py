"""Blocks are one graph each: no break, and the numbers of the eager step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.training.kernels import compile_blocks
from tests.unit.ifsq_train.training.test_kernels import small

LABELS = torch.zeros(2, dtype=torch.int64)


def run(network: nn.Module) -> dict[str, Tensor]:
    """Gradients of a step by name."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(network, LlamaGen):
        tokens = torch.randint(64, (2, 16), generator=generator)
        output = network.eval()(tokens, LABELS, losses_only=True)
        loss = output.group_losses[0] + output.projections[0].square().mean()
    elif isinstance(network, DiT):
        x = torch.randn(2, 4, 4, 4, generator=generator)
        loss = network(x, torch.full((2,), 0.3), LABELS).prediction.square().mean()
    else:
        made, _ = network(torch.rand(2, 3, 16, 16, generator=generator))
        loss = made.square().mean()
    loss.backward()
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llamagen", "dit", "tokenizer"])
def test_a_block_is_one_graph(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that runs graphs as they are; a break would be an error."""
    torch.manual_seed(0)
    eager = small(kind)
    with torch.no_grad():
        for parameter in eager.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    compiled = copy.deepcopy(eager)
    plain, made = nn.Module.compile, []

    def strictly(module: nn.Module, **options: Any) -> None:
        made.append(module)
        plain(module, backend="eager", fullgraph=True, **options)

    monkeypatch.setattr(nn.Module, "compile", strictly)
    torch._dynamo.reset()
    assert compile_blocks(compiled) == len(made) > 0
    expected, found = run(eager), run(compiled)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5), name
