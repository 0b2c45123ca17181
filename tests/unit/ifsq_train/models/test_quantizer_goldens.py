"""The quantizers give what the released code gives."""

from pathlib import Path

import pytest
import torch

from ifsq_train.models.plain import VARIABLE
from ifsq_train.models.quantizers import FSQ, LFQ, VQ, Continuous, NormalizedVQ
from ifsq_train.models.quantizers.continuous import kl_divergence, split_moments
from ifsq_train.models.quantizers.fsq import ProjectedFSQ
from ifsq_train.models.quantizers.lfq import all_codes
from tests.support.goldens import Golden, assert_close
from tests.support.lfq_rounding import assert_gradient_within_rounding

FSQ_CASES = [
    "L17x4.tanh",
    "L17x4.ifsq",
    "L5x4.tanh",
    "L5x4.ifsq",
    "L9x3.tanh",
    "L9x3.ifsq",
    "L17x8.tanh",
    "L17x8.ifsq",
    "E8555.bound",
    "L5x4.bound",
]


def build_fsq(settings: dict, groups: list[int] | None = None) -> FSQ:
    simple = settings.get("do_simple_bound", True)
    return FSQ(
        settings["levels"],
        alpha=1.6 if settings["act"] == "scale_sigmoid_16" else 2.0,
        bound="simple" if simple else "shifted",
        groups=groups,
    )


@pytest.fixture(scope="module")
def fsq(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "fsq")


@pytest.mark.parametrize("case", FSQ_CASES)
def test_fsq_codes_and_gradients(fsq: Golden, case: str) -> None:
    quantizer = build_fsq(fsq.config["cases"][case])
    z = fsq[f"{case}.z"].requires_grad_()
    output = quantizer(z)
    assert_close(output.latents, fsq[f"{case}.codes"], rtol=0, atol=1e-7)
    (output.latents * fsq[f"{case}.w"]).sum().backward()
    assert z.grad is not None
    assert_close(z.grad, fsq[f"{case}.grad_z"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", FSQ_CASES)
def test_fsq_indices(fsq: Golden, case: str) -> None:
    settings = fsq.config["cases"][case]
    output = build_fsq(settings)(fsq[f"{case}.z"])
    assert torch.equal(output.indices[..., 0], fsq[f"{case}.idx_exact"])
    digits = build_fsq(settings).indices_to_digits(output.indices)
    assert torch.equal(digits, fsq[f"{case}.digits"])
    big = FSQ(
        settings["levels"],
        alpha=1.6 if settings["act"] == "scale_sigmoid_16" else 2.0,
        bound="simple" if settings["do_simple_bound"] else "shifted",
        digit_order="big",
    )
    assert torch.equal(big(fsq[f"{case}.z"]).indices[..., 0], fsq[f"{case}.idx_paper_be"])


@pytest.mark.parametrize("case", FSQ_CASES)
def test_fsq_groups_and_inverse(fsq: Golden, case: str) -> None:
    settings = fsq.config["cases"][case]
    quantizer = build_fsq(settings, settings["factorized_bits"])
    output = quantizer(fsq[f"{case}.z"])
    if settings["official_idx_wrong_fraction"] == 0 or case.startswith("L17x8"):
        # Groups of four 17-level channels stay below 2**24, where the released fp32 is exact.
        assert torch.equal(output.indices, fsq[f"{case}.fact_idx"])
    back = quantizer.indices_to_latents(output.indices)
    assert_close(back, fsq[f"{case}.codes_from_fact_idx"], rtol=0, atol=1e-7)
    assert torch.equal(back, output.latents)


@pytest.mark.parametrize("case", FSQ_CASES)
def test_fsq_of_a_sequence(fsq: Golden, case: str) -> None:
    """A sequence [B, N, D] is a grid of height N and width 1."""
    settings = fsq.config["cases"][case]
    quantizer = build_fsq(settings, settings["factorized_bits"])
    output = quantizer(fsq[f"{case}.seq_z"].transpose(1, 2).unsqueeze(-1))
    codes = output.latents.squeeze(-1)
    assert_close(codes.transpose(1, 2), fsq[f"{case}.seq_codes"], rtol=0, atol=1e-7)
    assert torch.equal(output.indices.squeeze(2), fsq[f"{case}.seq_fact_idx"])
    back = quantizer.indices_to_latents(fsq[f"{case}.seq_fact_idx"].unsqueeze(2)).squeeze(-1)
    assert_close(back, fsq[f"{case}.seq_codes_from_idx"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", FSQ_CASES)
def test_released_fp32_indices_are_ours_where_they_are_exact(fsq: Golden, case: str) -> None:
    exact, released = fsq[f"{case}.idx_exact"], fsq[f"{case}.idx"][..., 0]
    settings = fsq.config["cases"][case]
    ours = build_fsq(settings)(fsq[f"{case}.z"]).indices[..., 0]
    wrong = settings["official_idx_wrong_fraction"]
    assert float((released != exact).float().mean()) == pytest.approx(wrong, abs=1e-3)
    assert torch.equal(ours[released == exact], released[released == exact])


def test_fsq_projection(fsq: Golden) -> None:
    module = ProjectedFSQ(6, FSQ([5, 5, 5]))
    module.load_state_dict(fsq.under("proj.sd."))
    latents, indices = module(fsq["proj.z"])
    assert_close(latents, fsq["proj.out"], rtol=1e-6, atol=1e-7)
    assert torch.equal(indices[..., 0, :], fsq["proj.idx"])


def test_fsq_several_codebooks(fsq: Golden) -> None:
    latents, indices = ProjectedFSQ(4, FSQ([5, 5]), num_codebooks=2)(fsq["cb2.z"])
    assert_close(latents, fsq["cb2.out"], rtol=0, atol=1e-7)
    assert torch.equal(indices, fsq["cb2.idx"])


def test_fsq_running_moments(fsq: Golden) -> None:
    quantizer = FSQ([17] * 4, track_statistics=True)
    for step, batch in enumerate(fsq["run.x"]):
        quantizer(batch)
        assert_close(quantizer.running_mean, fsq[f"run.mean{step}"], rtol=1e-6, atol=1e-7)
        assert_close(quantizer.running_var, fsq[f"run.var{step}"], rtol=1e-6)
    output = quantizer.eval()(fsq["run.x"][0])  # the moments change no code
    assert_close(output.latents, fsq["run.codes0_eval"], rtol=0, atol=1e-7)
    assert torch.equal(output.indices, fsq["run.idx0_eval"])


@pytest.fixture(scope="module")
def others(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "vq_lfq_vae")


@pytest.mark.parametrize(("name", "form"), [("legacy", "released"), ("fixed", "vqvae")])
def test_vq(others: Golden, name: str, form: str) -> None:
    size, dim = others["vq.codebook"].shape
    quantizer = VQ(size, dim, beta=others.config["vq_beta"], loss_form=form)  # pyright: ignore
    with torch.no_grad():
        quantizer.embedding.weight.copy_(others["vq.codebook"])
    z = others["vq.z"].clone().requires_grad_()
    output = quantizer(z)
    assert torch.equal(output.indices.flatten(), others[f"vq.{name}.idx"])
    assert_close(output.latents, others[f"vq.{name}.zq"], rtol=1e-6, atol=1e-6)
    assert_close(output.losses["codebook"], others[f"vq.{name}.loss"], rtol=1e-6)
    ((output.latents * others["vq.w"]).sum() + output.losses["codebook"]).backward()
    assert z.grad is not None
    assert quantizer.embedding.weight.grad is not None
    assert_close(z.grad, others[f"vq.{name}.grad_z"], rtol=1e-5, atol=1e-7)
    grad = quantizer.embedding.weight.grad
    assert_close(grad, others[f"vq.{name}.grad_codebook"], rtol=1e-5, atol=1e-7)
    entries = quantizer.indices_to_latents(output.indices)
    assert_close(entries, others["vq.entry"], rtol=0)


def test_normalized_vq(others: Golden) -> None:
    size, dim = others["lgvq.grad_codebook"].shape
    quantizer = NormalizedVQ(size, dim, beta=0.25, entropy_ratio=0.1)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(others["vq.codebook"])
    z = others["vq.z"].clone().requires_grad_()
    output = quantizer(z)
    assert torch.equal(output.indices.flatten(), others["lgvq.idx"])
    assert_close(output.latents, others["lgvq.zq"], rtol=1e-5, atol=1e-6)
    for mine, theirs in (("codebook", "vq"), ("commitment", "commit"), ("entropy", "entropy")):
        assert_close(output.losses[mine], others[f"lgvq.{theirs}_loss"], rtol=1e-5, atol=1e-7)
    entries = quantizer.indices_to_latents(output.indices)
    assert_close(entries, others["lgvq.entry"], rtol=1e-6, atol=1e-7)
    loss = (output.latents * others["vq.w"]).sum()
    torch.stack([loss, *output.losses.values()]).sum().backward()
    assert z.grad is not None
    assert quantizer.embedding.weight.grad is not None
    # Temperature 0.01 multiplies what fp32 rounds away in the distances by a hundred.
    assert_close(z.grad, others["lgvq.grad_z"], rtol=1e-4, atol=1e-6)
    grad = quantizer.embedding.weight.grad
    assert_close(grad, others["lgvq.grad_codebook"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("plain", [True, False])
def test_lfq(others: Golden, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(int(plain)))
    bits = others.config["lfq_bits"]
    quantizer = LFQ(bits, entropy_weight=1.0, commitment_weight=0.25)
    x = others["lfq.x"].clone().requires_grad_()
    output = quantizer(x)
    assert_close(output.latents, others["lfq.out"], rtol=0)
    assert torch.equal(output.indices.flatten(), others["lfq.idx"])
    assert_close(output.losses["entropy"], others["lfq.entropy_aux_loss"], rtol=1e-5, atol=1e-6)
    assert_close(output.losses["commitment"], 0.25 * others["lfq.commitment"], rtol=1e-6)
    for name, recorded in (("sample", "per_sample"), ("codebook", "codebook")):
        assert_close(output.stats[f"{name}_entropy"], others[f"lfq.{recorded}_entropy"], rtol=1e-5)
    (output.latents * others["lfq.w"]).sum().backward(retain_graph=True)
    (output.losses["entropy"] + output.losses["commitment"]).backward()
    assert x.grad is not None
    assert_gradient_within_rounding(x.grad, x, others["lfq.w"])
    assert_close(all_codes(bits), others["lfq.codebook"], rtol=0)
    assert_close(quantizer.eval()(x).latents, others["lfq.eval_out"], rtol=0)
    assert torch.equal(quantizer.indices_to_latents(output.indices), output.latents)


def test_the_recorded_lfq_gradient_is_the_formula_s_to_rounding(others: Golden) -> None:
    """So what ours is compared with, the formula in float64, is what the released code computes."""
    assert_gradient_within_rounding(others["lfq.grad_x"], others["lfq.x"], others["lfq.w"])


def test_lfq_groups(others: Golden) -> None:
    quantizer = LFQ(6, groups=others.config["lfq_factorized_bits"]).eval()
    output = quantizer(others["lfq.x"])
    for group in range(2):
        assert torch.equal(output.indices[..., group].flatten(), others[f"lfq.fact_idx{group}"])
    assert torch.equal(quantizer.indices_to_latents(output.indices), output.latents)


def test_gaussian_posterior(others: Golden) -> None:
    mean, log_variance = split_moments(others["kl.parameters"])
    assert_close(mean, others["kl.mode"], rtol=0)
    assert_close((0.5 * log_variance).exp(), others["kl.std"], rtol=1e-6)
    assert_close(kl_divergence(mean, log_variance), others["kl.kl"], rtol=1e-6)
    sampled = Continuous(4, deterministic=False)(others["kl.parameters"], others["kl.eps"])
    assert_close(sampled.latents, others["kl.sample"], rtol=1e-6, atol=1e-7)
