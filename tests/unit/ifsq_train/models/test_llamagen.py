"""What holds for LlamaGen without any recorded tensors."""

import copy

import pytest
import torch
import torch.nn.functional as F

from ifsq_train.losses.token_cross_entropy import sum_of_group_means, token_cross_entropy
from ifsq_train.models import token_head
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.plain import VARIABLE
from ifsq_train.models.transformer import apply_rope, rope_table
from tests.support.goldens import relative_error


def build(codebooks: list[int]) -> LlamaGen:
    torch.manual_seed(0)
    model = LlamaGen(
        num_layers=2,
        num_heads=2,
        dim=32,
        codebook_sizes=codebooks,
        grid=(3, 3),
        num_classes=4,
        token_dropout=0.0,
        residual_dropout=0.0,
        feed_forward_dropout=0.0,
        multiple_of=32,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_turning_by_complex_products_is_the_plain_formula(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers and gradients, of queries that lie among keys and values; also with a table
    that an engine has rounded with the weights."""
    random = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 10, 3, 4, 8, generator=random).to(dtype).requires_grad_()
    weights = torch.randn(2, 10, 4, 8, generator=random).to(dtype)
    table = rope_table(3, 3, 8)
    for turns in (table, table.bfloat16()):
        results = []
        for plain in ("0", "1"):
            monkeypatch.setenv(VARIABLE, plain)
            turned = apply_rope(qkv.unbind(2)[1], turns)
            (gradient,) = torch.autograd.grad(turned, qkv, weights)
            results += [turned, gradient]
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-14}[dtype]
        assert results[0].dtype == dtype
        assert torch.allclose(results[0], results[2], atol=tolerance)
        assert torch.allclose(results[1], results[3], atol=tolerance)


@pytest.mark.parametrize("formulas", ["by hand", "for a compiler"])
@pytest.mark.parametrize("codebooks", [[11], [7, 5]])
def test_losses_without_logits_are_the_same(
    codebooks: list[int], formulas: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of four positions of the 11-way head, the last part being shorter; what a compiler
    gets runs as it is written."""
    monkeypatch.setattr(token_head, "MAX_LOGIT_BYTES", 176)
    model, labels = build(codebooks), torch.tensor([1, 2])
    shape = (2, 9) if len(codebooks) == 1 else (2, 9, 2)
    tokens = torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(0))
    expected = token_cross_entropy(model(tokens, labels).logits, tokens)
    expected.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(token_head.TokenHead, "compiled", formulas == "for a compiler")
    monkeypatch.setattr(token_head, "_compiled", lambda: token_head._visit)
    output = model(tokens, labels, losses_only=True)
    assert output.logits == ()
    loss = sum_of_group_means(output.group_losses)
    loss.backward()
    assert torch.allclose(loss, expected, rtol=1e-6)
    for (name, mine), theirs in zip(model.named_parameters(), gradients, strict=True):
        assert mine.grad is not None
        assert theirs is not None
        assert relative_error(mine.grad, theirs) < 1e-5, name


@pytest.mark.parametrize("codebook", [9, 300])
def test_how_much_is_visited_at_once_changes_no_bit(
    codebook: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of loss and gradients: small codebooks are visited many rows at a time."""
    generator = torch.Generator().manual_seed(0)
    head = token_head.TokenHead(8, codebook)
    x = torch.randn(70, 8, generator=generator)
    targets = torch.randint(0, codebook, (70,), generator=generator)

    def found() -> list[torch.Tensor]:
        inputs = x.clone().requires_grad_()
        head.zero_grad()
        loss = head(inputs, targets)
        loss.backward()
        assert inputs.grad is not None
        assert head.weight.grad is not None
        return [loss.detach(), inputs.grad, head.weight.grad.clone()]

    at_once = found()
    monkeypatch.setattr(token_head, "_CACHED_BYTES", 1)
    for mine, theirs in zip(at_once, found(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("codebooks", [[300], [40, 30]])
def test_losses_and_gradients_without_logits_against_float64(codebooks: list[int]) -> None:
    """Every parameter's gradient, as norm of the difference over norm, is within 1e-5 of float64;
    so is that of whole logits."""
    model, labels = build(codebooks), torch.tensor([1, 2])
    shape = (2, 9) if len(codebooks) == 1 else (2, 9, 2)
    tokens = torch.randint(0, 30, shape, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(model).double()
    expected = token_cross_entropy64(exact(tokens, labels).logits, tokens)
    expected.backward()
    for losses_only in (True, False):
        model.zero_grad()
        output = model(tokens, labels, losses_only=losses_only)
        if losses_only:
            loss = sum_of_group_means(output.group_losses)
        else:
            loss = token_cross_entropy(output.logits, tokens)
        loss.backward()
        assert relative_error(loss, expected.detach()) < 1e-6
        for (name, mine), wide in zip(model.named_parameters(), exact.parameters(), strict=True):
            assert mine.grad is not None
            assert wide.grad is not None
            assert relative_error(mine.grad, wide.grad) < 1e-5, name


def token_cross_entropy64(logits: tuple[torch.Tensor, ...], tokens: torch.Tensor) -> torch.Tensor:
    targets = tokens.unsqueeze(-1) if tokens.dim() == 2 else tokens
    return torch.stack(
        [
            F.cross_entropy(part.flatten(0, 1), targets[..., group].flatten())
            for group, part in enumerate(logits)
        ]
    ).sum()


def test_the_loss_without_logits_under_bf16_is_that_of_bf16_logits() -> None:
    """Same matrix products in bf16, same fp32 softmax: only the order of sums differs."""
    model, labels = build([300]), torch.tensor([1, 2])
    tokens = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    results = []
    for losses_only in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(tokens, labels, losses_only=losses_only)
        loss = (
            sum_of_group_means(output.group_losses)
            if losses_only
            else token_cross_entropy(output.logits, tokens)
        )
        (3.0 * loss).backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append((loss.detach(), torch.cat(gradients)))
    (plain, expected), (ours, found) = results
    assert torch.allclose(ours, plain, rtol=1e-5)
    assert (found - expected).norm() < 2e-2 * expected.norm()


def test_a_fresh_model_gives_every_token_the_same_probability() -> None:
    """The released output heads start at zero."""
    model = LlamaGen(num_layers=1, num_heads=2, dim=16, codebook_sizes=[8], grid=(2, 2))
    logits = model.eval()(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([3])).logits[0]
    assert not logits.any()


@pytest.mark.parametrize("codebooks", [[64], [32, 48]])
def test_a_fresh_model_starts_as_the_released_one(codebooks: list[int]) -> None:
    """Normal weights of deviation 0.02, biases and output heads of zero."""
    torch.manual_seed(0)
    model = LlamaGen(num_layers=1, num_heads=2, dim=64, codebook_sizes=codebooks, grid=(2, 2))
    heads = {id(p) for p in model.output.parameters()}
    for name, value in model.named_parameters():
        if id(value) in heads or name.endswith("bias"):
            assert not value.any(), name
        elif value.dim() == 2 and value.numel() > 1000:
            assert 0.018 < float(value.std()) < 0.022, name
            assert abs(float(value.mean())) < 0.003, name


@pytest.mark.parametrize("codebooks", [[11], [7, 5]])
def test_later_tokens_do_not_change_earlier_predictions(codebooks: list[int]) -> None:
    model, labels = build(codebooks).eval(), torch.tensor([1])
    shape = (1, 9) if len(codebooks) == 1 else (1, 9, 2)
    tokens = torch.zeros(shape, dtype=torch.int64)
    changed = tokens.clone()
    changed[:, 5:] = 3
    before, after = model(tokens, labels).logits, model(changed, labels).logits
    assert torch.equal(before[0][:, :6], after[0][:, :6])
    assert not torch.equal(before[0][:, 6:], after[0][:, 6:])
    if len(codebooks) > 1:  # the second group of position 5 has seen its first
        assert torch.equal(before[1][:, :5], after[1][:, :5])
        assert not torch.equal(before[1][:, 5], after[1][:, 5])
