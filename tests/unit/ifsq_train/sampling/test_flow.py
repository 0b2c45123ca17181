"""What holds for flows and their sampler without any recorded tensors."""

import math

import pytest
import torch

from ifsq_train.losses.flow_matching import PATHS, direction_error
from ifsq_train.models.dit import DiT
from ifsq_train.sampling.flow import (
    FlowSamplingConfig,
    _dopri5_step,
    guided_velocity,
    integrate,
    integrate_adaptive,
    sample_latents,
    time_grid,
)


def tiny(**options) -> DiT:
    torch.manual_seed(0)
    model = DiT(
        num_layers=2,
        num_heads=2,
        dim=32,
        latent_channels=4,
        grid=(4, 4),
        num_classes=5,
        **options,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("prediction", ["noise", "score"])
def test_every_prediction_stands_for_the_same_velocity(kind: str, prediction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 5, 4, 3, 3, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    path = PATHS[kind]()
    x, velocity = path.interpolate(data, noise, t)
    output = noise if prediction == "noise" else -noise / path.sigma(t.view(-1, 1, 1, 1))[0]
    assert torch.allclose(path.to_velocity(output, x, t, prediction), velocity)  # pyright: ignore
    assert torch.allclose(path.to_noise(velocity, x, t), noise)


@pytest.mark.parametrize("kind", PATHS)
def test_velocity_is_the_derivative_of_the_path(kind: str) -> None:
    path, width = PATHS[kind](), 1e-6
    data, noise = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    _, velocity = path.interpolate(data, noise, t)
    after, _ = path.interpolate(data, noise, t + width)
    before, _ = path.interpolate(data, noise, t - width)
    assert torch.allclose((after - before) / (2 * width), velocity, rtol=1e-6, atol=1e-7)


def test_direction_ignores_length() -> None:
    velocity = torch.randn(2, 4, 3, 3)
    assert torch.allclose(direction_error(3 * velocity, velocity), torch.zeros(2), atol=1e-6)
    assert torch.allclose(direction_error(-velocity, velocity), torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("heun3", 3)]
)
def test_integrators_have_their_order(method: str, order: int) -> None:
    def error(steps: int) -> float:
        start = torch.ones(1, dtype=torch.float64)
        end = integrate(lambda x, _t: x, start, time_grid(steps).double(), method)[-1]  # pyright: ignore
        return abs(float(end) - torch.e)

    assert error(8) / error(16) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize(
    ("tolerances", "others"),
    [({"rtol": 1e-4}, {}), ({"rtol": 1e-4, "atol": 1e-2}, {"rtol": 1e-4})],
)
def test_the_tolerances_of_the_settings_are_those_of_the_integrator(tolerances, others) -> None:
    model, labels = tiny(), torch.tensor([0, 1])
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    settings = FlowSamplingConfig(method="dopri5", **tolerances)
    found = sample_latents(model, labels, noise, settings)
    with torch.no_grad():
        velocity = guided_velocity(model, labels, settings)
        assert torch.equal(found, integrate_adaptive(velocity, noise, **tolerances))
        assert not torch.equal(found, integrate_adaptive(velocity, noise, **others))


def turning(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A velocity that depends on the time; from 1 at time 0 it leads to exp(sin 3t)."""
    return x * 3.0 * torch.cos(3.0 * t.double())


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("heun3", 3)]
)
def test_integrators_ask_at_the_right_times(method: str, order: int) -> None:
    def error(steps: int) -> float:
        start = torch.ones(1, dtype=torch.float64)
        times = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
        end = integrate(turning, start, times, method)[-1]  # pyright: ignore
        return abs(float(end) - math.exp(math.sin(3.0)))

    assert error(64) / error(128) == pytest.approx(2**order, rel=0.2)


def test_a_step_of_dormand_and_prince_is_of_order_five_and_its_error_of_order_four() -> None:
    """Errors of one step fall with the sixth and the fifth power of its length."""

    def errors(step: float) -> tuple[float, float]:
        x, t = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        length = torch.tensor([step], dtype=torch.float64)
        after, last, estimate = _dopri5_step(turning, x, t, length, turning(x, t))
        assert float(last) == pytest.approx(float(turning(after, length)), rel=1e-6)
        return abs(float(after) - math.exp(math.sin(3.0 * step))), abs(float(estimate))

    (error, estimate), (half_error, half_estimate) = errors(0.2), errors(0.1)
    assert error / half_error == pytest.approx(2**6, rel=0.2)
    assert estimate / half_estimate == pytest.approx(2**5, rel=0.2)
    assert error < estimate


def test_adaptive_steps_keep_their_tolerance() -> None:
    """Samples of very different stiffness, against the exact solution."""
    rates = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    calls = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(t)
        return -rates[:, None] * (x - torch.cos(t.double())[:, None])

    start = torch.full((3, 1), 2.0, dtype=torch.float64)
    coarse, fine = (
        integrate_adaptive(velocity, start, rtol=tolerance, atol=tolerance * 1e-2)
        for tolerance in (1e-3, 1e-6)
    )
    exact = integrate(velocity_of(rates), start, time_grid(20_000).double(), "heun3")[-1]
    assert (coarse - exact).abs().max() < 1e-2
    assert (fine - exact).abs().max() < 1e-5
    assert len(calls) < 1500


def velocity_of(rates: torch.Tensor):
    return lambda x, t: -rates[:, None] * (x - torch.cos(t.double()))


@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_batching_does_not_change_a_sample(method) -> None:
    model, labels = tiny(), torch.tensor([0, 1, 2, 3])
    noise = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    config = FlowSamplingConfig(num_steps=5, method=method, cfg_scale=2.0, cfg_end=0.6)
    whole = sample_latents(model, labels, noise, config)
    some = sample_latents(model, labels[2:], noise[2:], config)
    assert torch.allclose(whole[2:], some, atol=1e-5)


def test_all_channels_are_guided_by_default() -> None:
    model, labels = tiny(), torch.tensor([1])
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    plain, all_channels, three = (
        sample_latents(model, labels, noise, FlowSamplingConfig(1, cfg_scale=s, guided_channels=c))
        for s, c in ((1.0, None), (3.0, None), (3.0, 3))
    )
    assert not torch.allclose(plain[:, 3], all_channels[:, 3])
    assert torch.allclose(plain[:, 3], three[:, 3], atol=1e-6)
    assert torch.allclose(all_channels[:, :3], three[:, :3], atol=1e-6)


def test_guidance_acts_in_its_interval_only() -> None:
    """Early guidance of a two-step solution changes its first step alone, late its second."""
    model, labels = tiny(), torch.tensor([1])
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    plain, early, late, always = (
        sample_latents(
            model, labels, noise, FlowSamplingConfig(2, cfg_scale=s, cfg_start=start, cfg_end=end)
        )
        for s, start, end in ((1.0, 0.0, 1.0), (3.0, 0.0, 0.4), (3.0, 0.4, 1.0), (3.0, 0.0, 1.0))
    )
    results = [plain, early, late, always]
    assert all(not torch.allclose(a, b) for i, a in enumerate(results) for b in results[:i])
    never = FlowSamplingConfig(2, cfg_scale=3.0, cfg_start=0.6, cfg_end=0.9)
    assert torch.equal(sample_latents(model, labels, noise, never), plain)


def test_patches_keep_their_place() -> None:
    """With a 2x2 patch, a change in one corner of the output head lands in one corner."""
    model = tiny(patch_size=2)
    patches = torch.zeros(1, 4, 16)
    patches[0, 1, 0] = 1.0  # second patch of the first row, its first pixel, channel 0
    image = model._unpatchify(patches)
    assert image.shape == (1, 4, 4, 4)
    assert image.nonzero().tolist() == [[0, 0, 0, 2]]


def test_dropped_labels_act_as_the_null_class() -> None:
    model = tiny()
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([0.3, 0.6])
    dropped = model(x, t, torch.tensor([1, 2]), drop_labels=torch.tensor([True, False]))
    given = model(x, t, torch.tensor([5, 2]))
    assert torch.equal(dropped.prediction, given.prediction)


def test_a_grid_that_does_not_divide_into_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide into patches of 3"):
        tiny(patch_size=3)
