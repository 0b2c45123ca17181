"""DiT, its flow and its sampler give what the released code gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ifsq_train.losses.alignment import alignment_loss
from ifsq_train.losses.flow_matching import (
    PATHS,
    denoising_error,
    direction_error,
    velocity_error,
)
from ifsq_train.models.dit import SIZES, DiT, time_features
from ifsq_train.sampling.flow import (
    FlowSamplingConfig,
    guided_velocity,
    integrate,
    integrate_adaptive,
    sample_latents,
    time_grid,
)
from tests.support.goldens import Golden, assert_relative


def build(golden: Golden, weights: Golden | None = None) -> DiT:
    settings = golden.config["model"]
    model = DiT(
        num_layers=settings["depth"],
        num_heads=settings["num_heads"],
        dim=settings["hidden_size"],
        latent_channels=settings["in_channels"],
        grid=(settings["input_size"],) * 2,
        patch_size=settings["patch_size"],
        num_classes=settings["num_classes"],
        qk_norm=settings["use_qknorm"],
        swiglu=settings["use_swiglu"],
        rotary=settings["use_rope"],
        rms_norm=settings["use_rmsnorm"],
        learn_sigma=settings.get("learn_sigma", False),
        projection_dims=settings["z_dims"] or (),
        projection_depth=settings["encoder_depth"] or 0,
        projector_width=settings.get("projector_dim", 2048),
    )
    made = {name: value.clone() for name, value in model.state_dict().items()}
    recorded = (weights or golden).under("sd.")
    for name in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"):
        if name in recorded:
            assert_relative(made[name], recorded[name], 1e-6)
    model.load_state_dict(recorded)
    return model.eval()


@pytest.fixture(scope="module")
def flow(golden_dir: Path) -> tuple[Golden, Golden]:
    return Golden(golden_dir, "transport"), Golden(golden_dir, "dit")


@pytest.mark.parametrize("pack", ["dit", "dit_plain"])
def test_forward_and_gradients(golden_dir: Path, pack: str) -> None:
    golden = Golden(golden_dir, pack)
    model = build(golden)
    output = model(golden["x"], golden["t"], golden["y"])
    assert_relative(output.prediction, golden["out"])
    loss = (output.prediction * golden["w"]).sum()
    if output.projections:
        assert_relative(output.projections[0], golden["zs"])
        loss = loss + output.projections[0].square().sum()
    loss.backward()
    for name, expected in golden.under("grad.").items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert_relative(gradient, expected)


@pytest.mark.parametrize("pack", ["dit", "dit_plain"])
def test_embeddings(golden_dir: Path, pack: str) -> None:
    golden = Golden(golden_dir, pack)
    model = build(golden)
    assert_relative(time_features(golden["t"]), golden["t_emb_sin"])
    assert_relative(model.t_embedder(golden["t"]), golden["t_emb"])
    assert_relative(model.y_embedder(golden["y"]), golden["y_emb"])
    assert_relative(model.x_embedder(golden["x"]), golden["patch"])
    if "rope.in" in golden.tensors:
        assert_relative(model.feat_rope(golden["rope.in"]), golden["rope.out"])


@pytest.mark.parametrize("pack", ["dit", "dit_plain"])
def test_guidance_of_the_first_three_channels(golden_dir: Path, pack: str) -> None:
    """The released guidance; its doubled batch ends with the null class."""
    golden = Golden(golden_dir, pack)
    model, labels, time = build(golden), golden["cfg.y"][:3], golden["cfg.t"][0]
    assert bool((golden["cfg.y"][3:] == model.num_classes).all())

    def guided(start: float) -> Tensor:
        config = FlowSamplingConfig(cfg_scale=2.5, cfg_start=start, guided_channels=3)
        return guided_velocity(model, labels, config)(golden["x"], time)

    assert_relative(guided(0.0), golden["cfg.out"][:3])
    assert_relative(guided(float(time)), golden["cfg.out_interval_on"][:3])
    assert_relative(guided(float(time) + 1e-3), golden["cfg.out_interval_off"][:3])


NAMES = {"linear": "Linear", "gvp": "GVP", "vp": "VP"}


@pytest.mark.parametrize("kind", NAMES)
def test_path(flow: tuple[Golden, Golden], kind: str) -> None:
    golden, path, name = flow[0], PATHS[kind](), NAMES[kind]
    t = golden["t"]
    x, velocity = path.interpolate(golden["x1"], golden["x0"], t)
    assert_relative(x, golden[f"{name}.xt"])
    assert_relative(velocity, golden[f"{name}.ut"])
    assert_relative(path.to_score(velocity, x, t), golden[f"{name}.score"])
    assert_relative(path.to_noise(velocity, x, t), golden[f"{name}.noise"])
    wide = t.view(-1, 1, 1, 1)
    assert_relative(-path.alpha_rate(wide) * x, golden[f"{name}.drift_mean"])
    assert_relative(path.score_weight(wide), golden[f"{name}.drift_var"])


@pytest.mark.parametrize("kind", NAMES)
def test_loss_and_gradient(flow: tuple[Golden, Golden], kind: str) -> None:
    golden, name = flow[0], NAMES[kind]
    model = build(golden, flow[1])
    x, velocity = PATHS[kind]().interpolate(golden["x1"], golden["x0"], golden["t"])
    output = model(x, golden["t"], golden["y"])
    squared = velocity_error(output.prediction, velocity)
    cosine = direction_error(output.prediction, velocity)
    alignment = alignment_loss(output.projections, [golden["repa_target"]])
    assert_relative(squared, golden[f"{name}.mse"])
    assert_relative(cosine, golden[f"{name}.cos"])
    assert_relative(alignment, golden[f"{name}.proj"])
    total = squared.mean() + cosine.mean() + 0.5 * alignment
    assert_relative(total, golden[f"{name}.total"])
    total.backward()
    gradient = model.get_parameter("blocks.0.attn.qkv.weight").grad
    assert gradient is not None
    assert_relative(gradient, golden[f"{name}.grad_qkv0"])


@pytest.mark.parametrize(
    ("prediction", "weighting"),
    [("noise", "None"), ("score", "None"), ("noise", "velocity"), ("score", "likelihood")],
)
def test_noise_and_score_losses(
    flow: tuple[Golden, Golden], prediction: str, weighting: str
) -> None:
    golden, path = flow[0], PATHS["linear"]()
    x, _ = path.interpolate(golden["x1"], golden["x0"], golden["t"])
    output = build(golden, flow[1])(x, golden["t"], golden["y"]).prediction
    kind = "none" if weighting == "None" else weighting
    loss = denoising_error(path, output, golden["x0"], golden["t"], prediction, kind)  # pyright: ignore
    assert_relative(loss, golden[f"Linear.{prediction}_{weighting}.loss"])


def test_logit_normal_times(flow: tuple[Golden, Golden]) -> None:
    normal = np.random.RandomState(1700).standard_normal(16)
    assert_relative(torch.from_numpy(normal).sigmoid(), flow[0]["lognorm_t"])


def analytic(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) * (1 - t) - 0.5 * x + 0.1 * t


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_euler_trajectory(flow: tuple[Golden, Golden], shift: float) -> None:
    golden = flow[0]
    times = time_grid(10, shift)
    assert_relative(times, golden[f"ode.times_shift{shift}"])
    states = integrate(analytic, golden["ode.z"], times)
    mine = torch.stack([state[:1] for state in states])
    assert_relative(mine, golden[f"ode.analytic_shift{shift}"])


@pytest.mark.parametrize("method", ["midpoint", "heun3"])
def test_higher_orders(flow: tuple[Golden, Golden], method: str) -> None:
    states = integrate(analytic, flow[0]["ode.z"], time_grid(10), method)  # pyright: ignore
    assert_relative(states[-1], flow[0][f"ode.{method}_final"])


def test_fine_steps_meet_the_adaptive_solver(flow: tuple[Golden, Golden]) -> None:
    states = integrate(analytic, flow[0]["ode.z"], time_grid(200), "heun3")
    # The recorded solver stops refining at its own tolerance of 1e-3.
    assert_relative(states[-1], flow[0]["ode.dopri5_final"], 1e-4)


def test_adaptive_solver(flow: tuple[Golden, Golden]) -> None:
    """The recorded one chooses steps for its whole batch, ours for each sample: same tolerance."""
    final = integrate_adaptive(
        lambda x, t: analytic(x, t.view(-1, 1, 1, 1)), flow[0]["ode.z"], rtol=1e-3, atol=1e-6
    )
    assert_relative(final, flow[0]["ode.dopri5_final"], 1e-3)


def test_sampling(flow: tuple[Golden, Golden]) -> None:
    golden = flow[0]
    model, labels, noise = build(golden, flow[1]), golden["y"], golden["ode.z"]
    plain = FlowSamplingConfig(num_steps=10)
    assert_relative(sample_latents(model, labels, noise, plain), golden["ode.dit_final"])
    with torch.no_grad():
        states = integrate(guided_velocity(model, labels, plain), noise, time_grid(10))
    assert_relative(states[5], golden["ode.dit_mid"])
    guided = FlowSamplingConfig(num_steps=10, cfg_scale=2.0, cfg_start=0.25, guided_channels=3)
    labels = flow[1]["cfg.y"][:3]
    assert_relative(sample_latents(model, labels, noise, guided), golden["ode.cfg_final"])


def test_training_trace(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "dit_train_trace")
    model = build(golden, Golden(golden_dir, "dit")).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=golden.config["weight_decay"]
    )
    path = PATHS["linear"]()
    for step in range(golden.config["steps"]):
        t, labels = golden["t"][step], golden["y"][step]
        x, velocity = path.interpolate(golden["x1"][step], golden["x0"][step], t)
        output = model(x, t, labels)
        terms = {
            "mse": velocity_error(output.prediction, velocity).mean(),
            "cos": direction_error(output.prediction, velocity).mean(),
            "proj": alignment_loss(output.projections, [golden["repa_target"][step]]),
        }
        optimizer.zero_grad()
        (terms["mse"] + terms["cos"] + 0.5 * terms["proj"]).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        terms["grad_norm"] = torch.nn.utils.get_total_norm(gradients)
        for name, value in terms.items():
            assert_relative(value, golden[f"trace.{name}"][step], 1e-4)
        optimizer.step()
    assert_relative(model.x_embedder.proj.weight, golden["final.x_embedder"], 1e-3)
    assert_relative(model.final_layer.linear.weight, golden["final.linear"], 1e-3)


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        ("S", 1, 32_965_252),
        ("B", 1, 130_514_692),
        ("L", 1, 458_098_660),
        ("L", 2, 457_926_640),
        ("XL", 1, 675_196_228),
        ("XL", 2, 675_002_704),
    ],
)
def test_parameter_counts(size: str, patch: int, expected: int) -> None:
    with torch.device("meta"):
        shape: dict[str, Any] = dict(SIZES[size])
        model = DiT(**shape, latent_channels=4, grid=(16, 16), patch_size=patch)
    # The recorded counts include the fixed positions, which are no parameter here.
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert trained + model.pos_embed.numel() == expected
