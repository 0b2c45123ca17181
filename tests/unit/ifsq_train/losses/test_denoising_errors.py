"""What errors of a predicted noise or score weigh, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ifsq_train.losses.flow_matching import PATHS, FlowPath, denoising_error, direction_error

T = torch.tensor([0.1, 0.35, 0.8], dtype=torch.float64)


def point(path: FlowPath) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, the point and its velocity."""
    random = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 3, 2, 3, 3, generator=random, dtype=torch.float64)
    return noise, *path.interpolate(data, noise, T)


@pytest.mark.parametrize("name", list(PATHS))
@pytest.mark.parametrize("prediction", ["noise", "score"])
def test_errors_weighted_by_velocity_are_those_of_the_velocity(name: str, prediction) -> None:
    path = PATHS[name]()
    noise, x, velocity = point(path)
    guess = noise + torch.linspace(-1.0, 1.0, noise.numel(), dtype=torch.float64).view_as(noise)
    sigma = path.sigma(T)[0].view(-1, 1, 1, 1)
    output = guess if prediction == "noise" else -guess / sigma
    found = denoising_error(path, output, noise, T, prediction, "velocity")
    given = path.to_velocity(output, x, T, prediction)
    expected = (given - velocity).square().mean((1, 2, 3))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0.0)
    plain = denoising_error(path, output, noise, T, prediction)
    torch.testing.assert_close(plain.double(), (guess - noise).square().mean((1, 2, 3)))
    weight = path.score_weight(T) / path.sigma(T)[0] ** 2
    likely = denoising_error(path, output, noise, T, prediction, "likelihood")
    torch.testing.assert_close(likely.double(), weight * plain.double(), rtol=1e-5, atol=0.0)


def test_the_direction_is_that_across_channels() -> None:
    one = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    other = torch.tensor([[4.0, -3.0], [-3.0, -4.0]]).view(1, 2, 1, 2)
    assert float(direction_error(one, 2 * one)) == pytest.approx(0.0, abs=1e-6)
    expected = 1.0 - (0.0 + -25 / 25) / 2
    assert float(direction_error(one, other)) == pytest.approx(expected)
