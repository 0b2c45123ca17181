"""Reconstruction measures: equal to scikit-image, and each image counts once."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from ifsq_train.evaluation.reconstruction import (
    ReconstructionMeter,
    psnr,
    round_to_8_bit,
    ssim,
)


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(count, 3, 24, 31, generator=generator)
    noise = torch.randn(count, 3, 24, 31, generator=generator)
    scale = 0.02 + 0.1 * torch.rand(count, 1, 1, 1, generator=generator)
    return first * 2 - 1, first * 2 - 1 + noise * scale


@pytest.mark.parametrize(
    ("window", "options"),
    [
        ("uniform", {}),
        ("gaussian", {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}),
    ],
)
def test_ssim_equals_scikit_image(window: str, options: dict) -> None:
    first, second = (part.double() for part in images(2))
    mine = ssim(first, second, data_range=2.0, window=window)  # pyright: ignore
    for index in range(2):
        theirs = structural_similarity(
            first[index].numpy(), second[index].numpy(), data_range=2.0, channel_axis=0, **options
        )
        assert float(mine[index]) == pytest.approx(float(np.asarray(theirs)), abs=1e-12)


def test_ssim_of_images_smaller_than_the_window_is_refused() -> None:
    small = torch.zeros(1, 3, 6, 9)
    with pytest.raises(ValueError, match=r"at least 7x7 pixels, found 6x9"):
        ssim(small, small)


def test_psnr_of_a_known_error() -> None:
    reference = torch.zeros(2, 3, 8, 8)
    other = torch.full_like(reference, 0.1)
    assert torch.allclose(psnr(reference, other), torch.tensor(20.0).double(), atol=1e-6)
    assert psnr(reference, reference).isinf().all()


def test_batching_does_not_change_the_means() -> None:
    first, second = images(7)
    whole, parts, left, right = (ReconstructionMeter() for _ in range(4))
    whole.add(first, second)
    for start in (0, 3, 6):
        parts.add(first[start : start + 3], second[start : start + 3])
    left.add(first[:2], second[:2])
    right.add(first[2:], second[2:])
    left.merge(right)
    for meter in (parts, left):
        assert meter.results()["num_images"] == 7
        assert meter.results() == pytest.approx(whole.results(), rel=1e-12)


def test_8_bit_measures_ignore_what_a_viewer_cannot_see() -> None:
    reference = torch.full((1, 3, 8, 8), 1.0)
    meter = ReconstructionMeter()
    meter.add(reference, reference + 0.5)  # beyond white
    assert meter.results()["psnr_db_8bit"] == float("inf")
    assert meter.results()["psnr_db"] < 13
    assert torch.equal(
        round_to_8_bit(torch.tensor([-2.0, -1.0, 1.0, 2.0])) * 255,
        torch.tensor([0.0, 0.0, 255.0, 255.0]),
    )


def test_a_perceptual_network_is_averaged_over_images() -> None:
    meter = ReconstructionMeter(lambda a, b: (a - b).abs().amax(dim=(1, 2, 3)))
    first, second = images(3)
    meter.add(first, second)
    meter.add(first[:0], second[:0])  # a rank may have no image left
    expected = (first - second).abs().amax(dim=(1, 2, 3)).double().mean()
    assert meter.results()["lpips"] == pytest.approx(float(expected))


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        ReconstructionMeter().results()
