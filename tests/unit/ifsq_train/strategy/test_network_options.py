"""Options of the strategy that change networks: off by default, near the plain step, refused by
name where they cannot be followed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_pipelines.errors import UserError
from ifsq_train.config import StrategyConfig
from ifsq_train.metrics.flops import FlopCounter
from ifsq_train.models.dit import DiT
from ifsq_train.models.float8 import Float8Linear, reference_product
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.strategy.network_options import change_networks
from ifsq_train.training.fake_step import LiveBytes, activation_bytes
from tests.unit.ifsq_train.training.test_fake_step import SPEC, recipe

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "dim": 32}
Step = tuple[Tensor, dict[str, Tensor]]


def network(kind: str) -> nn.Module:
    """A small generator whose heads are not zero."""
    torch.manual_seed(0)
    if kind == "dit":
        made: nn.Module = DiT(**SHAPE, latent_channels=4, grid=(4, 4))
    else:
        codes = [64] if kind == "llamagen" else [16, 16]
        still = dict.fromkeys(("token_dropout", "residual_dropout", "feed_forward_dropout"), 0.0)
        made = LlamaGen(**SHAPE, codebook_sizes=codes, grid=(4, 4), multiple_of=32, **still)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.train()


def step(made: nn.Module) -> Step:
    """Loss and gradients of one batch in bf16."""
    generator, labels = torch.Generator().manual_seed(0), torch.zeros(4, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        if isinstance(made, DiT):
            x = torch.randn(4, 4, 4, 4, generator=generator)
            loss = made(x, torch.full((4,), 0.3), labels).prediction.float().square().mean()
        else:
            assert isinstance(made, LlamaGen)
            shape = (4, 16, 2) if made.factorized else (4, 16)
            tokens = torch.randint(16, shape, generator=generator)
            loss = torch.stack(made(tokens, labels, losses_only=True).group_losses).sum()
    loss.backward()
    gradients = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def changed(kind: str, **options: Any) -> nn.Module:
    made = network(kind)
    change_networks(StrategyConfig(precision="bf16", **options), {"generator": made}, CPU)
    return made


def assert_near(found: Step, plain: Step, tolerance: float) -> None:
    assert abs(found[0] - plain[0]) < tolerance * abs(plain[0])
    assert found[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        assert (found[1][name] - gradient).norm() < 20 * tolerance * gradient.norm(), name


@pytest.mark.parametrize("kind", ["llamagen", "factorized", "dit"])
def test_selective_checkpointing_changes_no_bit(kind: str) -> None:
    plain, found = step(network(kind)), step(changed(kind, activation_checkpointing="selective"))
    assert torch.equal(found[0], plain[0])
    for name, gradient in plain[1].items():
        assert torch.equal(found[1][name], gradient), name


def test_selective_checkpointing_multiplies_nothing_twice() -> None:
    counted = []
    for how in (False, "selective", True):
        made = changed("llamagen", activation_checkpointing=how)
        with FlopCounter() as counter:
            step(made)
        counted.append(counter.total)
    assert counted[0] == counted[1] < counted[2]


def test_selective_checkpointing_keeps_less_than_all_and_more_than_nothing() -> None:
    all_, some, none = (
        activation_bytes(recipe(precision="bf16", activation_checkpointing=how), SPEC, 16)
        for how in (False, "selective", True)
    )
    assert all_ is not None
    assert some is not None
    assert none is not None
    assert none < some < 0.85 * all_


@pytest.mark.parametrize("kind", ["llamagen", "factorized", "dit"])
def test_residuals_in_bf16_are_near_the_plain_step_and_smaller(kind: str) -> None:
    assert_near(step(changed(kind, residual="bf16")), step(network(kind)), 1e-2)
    seen: list[torch.dtype] = []
    made = changed(kind, residual="bf16")
    blocks = made.blocks if isinstance(made, DiT) else made.layers
    for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
        block.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    with LiveBytes():
        step(made)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["llamagen", "dit"])
def test_float8_is_near_the_plain_step(kind: str) -> None:
    made = changed(kind, float8=True)
    # The gated layers of this small DiT have 85 channels, which are no whole tiles.
    found = sum(isinstance(layer, Float8Linear) for layer in made.modules())
    assert found == (10 if kind == "llamagen" else 6)
    assert_near(step(made), step(network(kind)), 3e-2)
    assert made.state_dict().keys() == network(kind).state_dict().keys()


def test_float8_products_are_those_of_rounded_factors() -> None:
    torch.manual_seed(0)
    layer, x = Float8Linear(64, 48), torch.randn(2, 16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    expected = reference_product(x, layer.weight) + layer.bias
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 2e-2 * expected.abs().max()
    assert not torch.allclose(
        found.float(), nn.functional.linear(x, layer.weight, layer.bias), 1e-3
    )


def test_float8_is_for_training_in_bf16_and_whole_tiles() -> None:
    torch.manual_seed(0)
    layer, x = Float8Linear(16, 16), torch.randn(5, 16)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), plain)
    with torch.autocast("cpu", torch.bfloat16):
        expected = nn.functional.linear(x, layer.weight, layer.bias)
        assert torch.equal(layer(x), expected)  # five rows are no whole tile


@pytest.mark.parametrize("option", [{"residual": "bf16"}, {"float8": True}])
def test_options_are_refused_by_name_where_they_cannot_be_followed(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs precision bf16, this has fp32"):
        StrategyConfig(**option)
    config = StrategyConfig(precision="bf16", **option)
    with pytest.raises(UserError, match=f"strategy.{next(iter(option))}"):
        change_networks(config, {"autoencoder": nn.Sequential(nn.Conv2d(3, 3, 3))}, CPU)


def test_all_options_are_off_by_default_and_leave_no_trace_in_recipes() -> None:
    said = StrategyConfig().model_dump()
    assert not {"residual", "float8", "cpu_kernels"} & said.keys()
    made = network("llamagen")
    change_networks(StrategyConfig(precision="bf16"), {"generator": made}, CPU)
    plain, found = step(network("llamagen")), step(made)
    assert torch.equal(plain[0], found[0])
