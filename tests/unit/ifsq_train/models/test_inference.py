"""A network prepared for inference gives the same numbers, whatever is done with it afterwards."""

import copy

import pytest
import torch

from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.dit import DiT
from ifsq_train.models.inference import channels_last, optimize_for_inference
from ifsq_train.models.llamagen import LlamaGen, LlamaGenOutput, Shape
from ifsq_train.models.plain import VARIABLE
from ifsq_train.models.quantizers import FSQ
from ifsq_train.models.token_head import TokenHead
from tests.support.goldens import assert_relative


def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    small = Tokenizer(
        FSQ([17] * 4), channel_multipliers=(1, 2, 2), base_channels=32, num_res_blocks=1
    )
    return small.eval()


def images(size: int, count: int = 2) -> torch.Tensor:
    noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return channels_last(noise * 2 - 1)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_same_tokens_and_reconstructions(guard) -> None:
    plain = tokenizer()
    quick = optimize_for_inference(copy.deepcopy(plain))
    for size, count in ((32, 2), (48, 3), (32, 1), (32, 2)):
        batch = images(size, count)
        with guard():
            expected, tokens = plain(batch)
            found, quick_tokens = quick(batch)
        assert torch.equal(quick_tokens.indices, tokens.indices)
        assert_relative(found, expected)


def test_names_and_fingerprint_stay() -> None:
    plain = tokenizer()
    quick = optimize_for_inference(copy.deepcopy(plain))
    assert quick.fingerprint() == plain.fingerprint()
    assert list(quick.state_dict()) == list(plain.state_dict())


def test_changed_weights_are_seen() -> None:
    quick, batch = optimize_for_inference(tokenizer()), images(32)
    with torch.no_grad():
        before = quick.encoder(batch)
        quick.encoder.conv_in.weight.mul_(2.0)
        after = quick.encoder(batch)
    assert not torch.allclose(before, after)
    other = tokenizer()
    quick.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert_relative(quick.encoder(batch), before)


def test_gradients_still_flow() -> None:
    plain, quick = tokenizer(), optimize_for_inference(tokenizer())
    for network in (plain, quick):
        network(images(32))[0].square().mean().backward()
    expected, found = plain.encoder.conv_in.weight.grad, quick.encoder.conv_in.weight.grad
    assert expected is not None
    assert found is not None
    assert_relative(found, expected)


def test_autocast_and_a_copy_work() -> None:
    quick = optimize_for_inference(tokenizer())
    with torch.no_grad():
        quick.encoder(images(32))
        with torch.autocast("cpu", torch.bfloat16):
            assert quick.encoder(images(32)).dtype == torch.bfloat16
        twin = copy.deepcopy(quick)
        twin.encoder.conv_in.weight.zero_()
        assert not torch.allclose(twin.encoder(images(32)), quick.encoder(images(32)))


def test_the_debug_switch_leaves_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    network = tokenizer()
    assert optimize_for_inference(network) is network
    assert "forward" not in vars(network.encoder.conv_in)


@pytest.mark.parametrize("bf16", [False, True])
def test_linear_layers_are_packed_and_give_the_same(bf16: bool) -> None:
    """LlamaGen with its output layer, and DiT, also where autocast rounds their weights."""
    torch.manual_seed(0)
    shape: Shape = {"num_layers": 2, "num_heads": 2, "dim": 32}
    tokens, labels = torch.randint(50, (3, 9)), torch.tensor([0, 1, 2])
    latents, times = torch.randn(3, 4, 4, 4), torch.rand(3)
    generators = (
        (LlamaGen(**shape, codebook_sizes=[50], grid=(3, 3), num_classes=4), (tokens, labels)),
        (DiT(**shape, latent_channels=4, grid=(4, 4), num_classes=4), (latents, times, labels)),
    )
    for network, inputs in generators:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        network.eval()
        quick = optimize_for_inference(copy.deepcopy(network))
        linear = [module for module in quick.modules() if isinstance(module, torch.nn.Linear)]
        assert all("forward" in vars(module) for module in linear)
        assert list(quick.state_dict()) == list(network.state_dict())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            results = [one(*inputs) for one in (network, quick)]
        expected, found = (
            made.logits[0] if isinstance(made, LlamaGenOutput) else made.prediction
            for made in results
        )
        assert found.dtype == expected.dtype
        assert_relative(found, expected, 1e-2 if bf16 else 1e-5)


def test_a_packed_output_layer_still_gives_losses() -> None:
    head = TokenHead(8, 20)
    plain, quick = copy.deepcopy(head), optimize_for_inference(head)
    x, targets = torch.randn(4, 8), torch.arange(4)
    with torch.no_grad():
        assert_relative(quick(x), plain(x))
        assert_relative(quick(x, targets), plain(x, targets))
        assert_relative(quick(x, targets=targets), plain(x, targets))
