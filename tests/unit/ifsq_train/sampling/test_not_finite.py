"""What is not a number is refused where it appears."""

import pytest
import torch

from data_pipelines.errors import UserError
from ifsq_train.evaluation.evaluate import refuse_broken
from ifsq_train.models.quantizers.base import Quantizer
from ifsq_train.models.quantizers.fsq import FSQ
from ifsq_train.models.quantizers.lfq import LFQ
from ifsq_train.models.quantizers.vq import VQ
from ifsq_train.precompute.encoder import EncodedViews
from ifsq_train.sampling.flow import integrate_adaptive


def test_dopri5_stops_at_the_first_velocity_that_is_not_finite():
    calls = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(float(t[0]))
        return torch.where(t[:, None] > 0.3, torch.nan, torch.ones_like(x))

    with pytest.raises(UserError, match="velocity is not finite at time 0"):
        integrate_adaptive(velocity, torch.zeros(2, 3))
    assert len(calls) < 60


@pytest.mark.parametrize("quantizer", [FSQ((5, 3)), LFQ(4), VQ(15, 2)])
@pytest.mark.parametrize("outside", [-1, 16, 2**40])
def test_indices_outside_the_codebook_are_refused(quantizer: Quantizer, outside: int):
    indices = torch.zeros(1, 2, 2, 1, dtype=torch.int64)
    quantizer.indices_to_latents(indices)
    indices[0, 1, 1] = outside
    with pytest.raises(ValueError, match="outside the codebooks"):
        quantizer.indices_to_latents(indices)


def test_evaluations_name_the_image_that_failed():
    values = torch.zeros(4, 3, 2, 2)
    refuse_broken(values, 8, "the tokenizer x")
    values[2, 0, 1, 1] = float("nan")
    with pytest.raises(UserError, match=r"the tokenizer x gives .* 1 of 4 images, first image 10"):
        refuse_broken(values, 8, "the tokenizer x")


def test_views_name_the_network_that_failed():
    bad = torch.tensor([[False, False], [True, False], [False, True]])
    views = EncodedViews(torch.zeros(3, 1, 1, 1), torch.zeros(3, 1, 1, 1), not_finite=bad)
    assert views.faults() == [(1, "the tokenizer's encoder"), (2, "the teacher")]
