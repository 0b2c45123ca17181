"""The autoencoder gives what the released one gives, and has its parameter counts."""

from pathlib import Path

import pytest
import torch

from ifsq_train.models.autoencoder import F8_MULTIPLIERS, F16_MULTIPLIERS, Tokenizer
from ifsq_train.models.discriminator import PatchDiscriminator
from ifsq_train.models.quantizers import FSQ, VQ, Continuous, Quantizer
from ifsq_train.models.quantizers.continuous import split_moments
from tests.support.goldens import Golden, assert_relative


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "tokenizer")


def build(golden: Golden, quantizer: Quantizer, own: str = "sd.") -> Tokenizer:
    """The recorded network with another bottleneck's tensors in place of FSQ's."""
    tokenizer = Tokenizer(
        quantizer, channel_multipliers=(1, 2, 1), base_channels=32, num_res_blocks=1
    )
    tensors = golden.under("sd.")
    if own != "sd.":
        bottleneck = ("quant", "post_quant")
        tensors = {k: v for k, v in tensors.items() if not k.startswith(bottleneck)}
        tensors |= golden.under(own)
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval()


@pytest.fixture
def ifsq(golden: Golden) -> Tokenizer:
    return build(golden, FSQ([17] * 4, track_statistics=True))


def test_every_stage_of_the_forward_pass(golden: Golden, ifsq: Tokenizer) -> None:
    features = ifsq.encoder(golden["x"])
    assert_relative(features, golden["enc_out"])
    pre = ifsq.quant_conv(features)
    assert_relative(pre, golden["pre_quant"])
    output = ifsq.encode(golden["x"])
    assert torch.equal(output.indices, golden["idx"])
    assert_relative(output.latents, golden["codes"])
    assert_relative(ifsq.decode(output.latents), golden["rec"])


def test_activations_inside_encoder_and_decoder(golden: Golden, ifsq: Tokenizer) -> None:
    encoder, decoder = ifsq.encoder, ifsq.decoder
    places: dict[str, torch.nn.Module] = {
        "enc_block0": encoder.down[0].block[0],  # pyright: ignore
        "enc_down0": encoder.down[0].downsample,  # pyright: ignore
        "enc_norm_out": encoder.norm_out,
        "dec_conv_in": decoder.conv_in,
        "dec_up_first": decoder.up[2].upsample,  # pyright: ignore
    }
    seen: dict[str, torch.Tensor] = {}

    def keep_as(name: str):
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
            seen[name] = output

        return hook

    for name, module in places.items():
        module.register_forward_hook(keep_as(name))
    ifsq(golden["x"])
    for name, expected in golden.under("act.").items():
        assert_relative(seen[name][:1], expected)


def test_gradients_through_the_straight_through_estimator(golden: Golden, ifsq: Tokenizer) -> None:
    reconstruction, _ = ifsq(golden["x"])
    loss = (golden["x"] - reconstruction).abs().mean()
    assert_relative(loss, golden["l1"])
    loss.backward()
    named = dict(ifsq.named_parameters())
    for name, expected in golden.under("grad.").items():
        gradient = named[name].grad
        assert gradient is not None
        # The sign of |x - rec| flips where they nearly meet; fp32 sums differ in order.
        assert_relative(gradient, expected)


def test_running_moments_of_a_training_encode(golden: Golden, ifsq: Tokenizer) -> None:
    ifsq.quantize.running_mean.zero_()  # pyright: ignore
    ifsq.quantize.running_var.fill_(1)  # pyright: ignore
    ifsq.train().encode(golden["x"])
    assert_relative(ifsq.quantize.running_mean, golden["run_mean"])  # pyright: ignore
    assert_relative(ifsq.quantize.running_var, golden["run_var"])  # pyright: ignore


def test_ae_and_vae(golden: Golden) -> None:
    tokenizer = build(golden, Continuous(4), "vae_sd.")
    output = tokenizer.encode(golden["x"])
    assert_relative(output.latents, golden["ae.latent"])
    assert_relative(tokenizer.decode(output.latents), golden["ae.rec"])
    vae = build(golden, Continuous(4, deterministic=False, kl_weight=1.0), "vae_sd.")
    moments = vae.quant_conv(vae.encoder(golden["x"]))
    assert_relative(split_moments(moments)[1], golden["vae.logvar"])
    sampled = vae.quantize(moments, golden["vae.eps"])
    assert_relative(sampled.losses["kl"], golden["vae.kl"].mean())
    assert_relative(vae.decode(sampled.latents), golden["vae.rec_sampled"])


def test_vq(golden: Golden) -> None:
    tokenizer = build(golden, VQ(32, 4), "vq_sd.")
    output = tokenizer.encode(golden["x"])
    assert torch.equal(output.indices.flatten(), golden["vq.idx"])
    assert_relative(output.latents, golden["vq.latent"])
    assert_relative(output.losses["codebook"], golden["vq.loss"])
    assert_relative(tokenizer.decode(output.latents), golden["vq.rec"])


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("quantizer", "f16", "f8"),
    [
        (lambda: FSQ([17] * 4), 83_324_099, 81_550_531),
        (lambda: FSQ([17] * 8), 83_379_555, 81_605_987),
        (lambda: Continuous(4), 83_324_135, 81_550_567),
        (lambda: VQ(16384, 4), 83_389_635, 81_616_067),
        (lambda: VQ(16384, 8), 83_510_627, 81_737_059),
    ],
)
def test_parameter_counts(quantizer, f16: int, f8: int) -> None:
    with torch.device("meta"):
        for multipliers, expected in ((F16_MULTIPLIERS, f16), (F8_MULTIPLIERS, f8)):
            bottleneck = quantizer()
            tokenizer = Tokenizer(
                bottleneck,
                channel_multipliers=multipliers,
                z_channels=bottleneck.num_channels,
            )
            assert count(tokenizer) == expected


def test_discriminator_parameter_counts() -> None:
    with torch.device("meta"):
        assert count(PatchDiscriminator(64, 4)) == 6_960_961
        assert count(PatchDiscriminator(64, 3)) == 2_765_633


def test_fingerprint_changes_with_weights_and_meaning() -> None:
    def tiny(**options) -> Tokenizer:
        torch.manual_seed(0)
        quantizer = FSQ([5, 5], track_statistics=True, **options)
        return Tokenizer(quantizer, channel_multipliers=(1, 1), base_channels=8, norm_groups=4)

    first = tiny().fingerprint()
    assert tiny().fingerprint() == first
    assert tiny(alpha=2.0).fingerprint() != first
    assert tiny(digit_order="big").fingerprint() != first
    moved = tiny()
    moved.quantize.running_mean.add_(1)  # pyright: ignore
    assert moved.fingerprint() == first
    with torch.no_grad():
        moved.decoder.conv_out.bias.add_(1e-3)  # pyright: ignore
    assert moved.fingerprint() != first
