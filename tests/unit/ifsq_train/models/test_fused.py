"""DiT's fused steps give the numbers of the plain formulas, in fp32 and, as near, in bf16."""

import copy

import pytest
import torch
from torch import Tensor

from ifsq_train.models.dit import DiT
from ifsq_train.models.plain import VARIABLE
from tests.support.goldens import relative_error


def model() -> DiT:
    torch.manual_seed(0)
    made = DiT(num_layers=2, num_heads=2, dim=32, latent_channels=4, grid=(6, 6), num_classes=5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def step(
    network: DiT, monkeypatch: pytest.MonkeyPatch, *, plain: bool, bf16: bool = False
) -> dict[str, Tensor]:
    """Prediction and gradients by name."""
    monkeypatch.setenv(VARIABLE, "1" if plain else "0")
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(1)
    dtype = network.pos_embed.dtype
    x, weights = torch.randn(2, 3, 4, 6, 6, generator=generator).to(dtype)
    t = torch.rand(3, generator=generator).to(dtype)
    leaf = x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        prediction = network(leaf, t, torch.tensor([0, 3, 5])).prediction
    (prediction * weights).sum().backward()
    assert leaf.grad is not None
    found = {"prediction": prediction.detach(), "input": leaf.grad}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return found


def test_fused_steps_are_the_plain_ones_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prediction and gradient of input and every parameter."""
    network = model()
    fused = step(network, monkeypatch, plain=False)
    plain = step(network, monkeypatch, plain=True)
    for name, expected in plain.items():
        assert relative_error(fused[name], expected) < 1e-5, name


def test_in_bf16_the_fused_steps_are_as_near_to_fp32_as_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = model()
    exact = step(network, monkeypatch, plain=True)
    errors = [
        torch.tensor([relative_error(found[name], exact[name]) for name in exact])
        for found in (step(network, monkeypatch, plain=plain, bf16=True) for plain in (False, True))
    ]
    assert float(errors[0].mean()) < 1.1 * float(errors[1].mean())
    assert float(errors[0].max()) < 1.5 * float(errors[1].max())
