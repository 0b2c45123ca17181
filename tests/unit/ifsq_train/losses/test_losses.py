"""What holds for the losses without any recorded tensors."""

import math

import pytest
import torch
import torch.nn.functional as F

from ifsq_train.losses import alignment
from ifsq_train.losses.alignment import Way, alignment_loss
from ifsq_train.losses.token_cross_entropy import token_cross_entropy
from ifsq_train.models.quantizers.lfq import lfq_entropy_factor


def test_aligned_features_give_minus_one_whatever_their_length() -> None:
    features = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert float(alignment_loss([features], [7 * features])) == pytest.approx(-1.0)
    assert float(alignment_loss([features], [-features])) == pytest.approx(1.0)


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "how", ["fused", "eagerly", pytest.param("compiled", marks=pytest.mark.compiles)]
)
def test_alignment_in_one_pass_is_that_of_torch(
    how: str, dtype: torch.dtype, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for more rows than are taken at a time, for a row of zeros, and whether or not the
    weight it is prepared for is the one it gets; what a compiler gets also without one."""
    way: Way = "fused" if how == "fused" else "compiled"
    if how == "eagerly":
        monkeypatch.setattr(alignment, "_compiled", lambda: alignment._visit)
    generator = torch.Generator().manual_seed(0)
    mine, target = torch.randn(2, 5, 131, 24, generator=generator).to(dtype)
    mine[2, 3] = 0.0
    results = []
    ways: tuple[Way, Way] = ("plain", way)
    for each in ways:
        leaf = mine.clone().requires_grad_()
        loss = alignment_loss([leaf], [target], way=each, weight=weight)
        (0.5 * loss).backward()
        assert leaf.grad is not None
        keep = torch.arange(131) != 3
        results.append((loss.detach(), leaf.grad[:, keep].float()))
    (expected, gradient), (found, own) = results
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.allclose(own, gradient, rtol=1e-2, atol=float(gradient.abs().max()) * 1e-2)
    if dtype == torch.float32:
        assert torch.allclose(own, gradient, rtol=1e-4, atol=1e-9)
    with torch.no_grad():
        again = alignment_loss([mine], [target], way=way)
    assert torch.allclose(again, expected, rtol=1e-5)


def test_alignment_is_the_mean_over_teachers() -> None:
    features = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    both = alignment_loss([features, features], [features, -features])
    assert float(both) == pytest.approx(0.0, abs=1e-6)


def test_no_gradient_goes_into_the_teacher() -> None:
    mine, theirs = torch.randn(2, 1, 4, 3).requires_grad_(), torch.randn(2, 1, 4, 3)
    target = theirs.requires_grad_()
    alignment_loss(list(mine), list(target)).backward()
    assert target.grad is None
    assert mine.grad is not None


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 5, 4)])
def test_features_that_do_not_pair_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not pair"):
        alignment_loss([torch.zeros(2, 5, 3)], [torch.zeros(shape)])
    with pytest.raises(ValueError, match="do not pair"):
        alignment_loss([], [])


def test_uniform_logits_cost_the_log_of_the_codebook_per_group() -> None:
    tokens = torch.zeros(2, 3, 2, dtype=torch.int64)
    logits = [torch.zeros(2, 3, 8), torch.zeros(2, 3, 16)]
    assert float(token_cross_entropy(logits, tokens)) == pytest.approx(math.log(8 * 16))
    weighted = token_cross_entropy(logits, tokens, [1.0, 0.5])
    assert float(weighted) == pytest.approx(math.log(8) + 0.5 * math.log(16))


def test_bf16_logits_are_widened_first() -> None:
    logits = torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = torch.tensor([[1, 2, 3, 4]])
    expected = F.cross_entropy(logits.float()[0], tokens[0])
    assert torch.equal(token_cross_entropy([logits], tokens), expected)


def test_entropy_factor_falls_to_one() -> None:
    assert [lfq_entropy_factor(step) for step in (0, 1000, 2000, 9000)] == [4.0, 2.5, 1.0, 1.0]
