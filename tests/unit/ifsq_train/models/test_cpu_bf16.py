"""Products of bf16 through fp32 kernels are those torch has, and other types stay as they are."""

import subprocess
import sys

import pytest
import torch

from ifsq_train.config import StrategyConfig
from ifsq_train.models.fused import norm_scale, silu_times
from ifsq_train.models.plain import VARIABLE
from ifsq_train.models.transformer import Block, FeedForward, RMSNorm, attend_before, rope_table
from ifsq_train.training.kernels import choose_kernels

WIDENED = """
import torch, torch.nn.functional as F
from ifsq_train.models import cpu_bf16
torch.manual_seed(0)
a, b = (torch.randn(5, 8, 8, dtype=torch.bfloat16) for _ in range(2))
image = torch.randn(2, 4, 6, 6, dtype=torch.bfloat16)
kernel = torch.randn(3, 4, 3, 3, dtype=torch.bfloat16)
def products():
    x, w, q = (t.clone().requires_grad_() for t in (image, kernel, a))
    mixed = F.scaled_dot_product_attention(q[None], a[None], b[None], is_causal=True)
    (F.conv2d(x, w, padding=1).float().square().sum() + mixed.float().sum()).backward()
    return [a @ b, a[0] @ b[0], torch.addmm(a[0], a[1], b[1]), torch.baddbmm(a, a, b),
            x.grad, w.grad, q.grad]
wide = torch.randn(8, 8)
before, exact = products(), wide @ wide
cpu_bf16._install()
for a_, b_ in zip(products(), before):
    assert torch.equal(a_, b_), "nobody has asked for other kernels"
cpu_bf16.choose_fast_bf16(True)
after = products()
assert torch.equal(wide @ wide, exact)
for x, y in zip(before, after):
    assert x.dtype == y.dtype == torch.bfloat16
    scale = x.float().abs().max()
    assert ((x.float() - y.float()).abs().max() / scale) < 2e-2, (x, y)
"""


def test_products_agree_with_torch_s_own() -> None:
    """In a process of its own: kernels stay replaced until it ends."""
    done = subprocess.run([sys.executable, "-c", WIDENED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Overriding" not in done.stderr


def test_norm_and_gate_by_hand_are_the_plain_ones() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(16).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 16, requires_grad=True)
    weight = norm.weight.detach().float().requires_grad_()
    y = torch.randn(2, 3, 16, requires_grad=True)
    mine = silu_times(norm_scale(x, weight, norm.eps), y)
    grads = torch.autograd.grad(mine.square().sum(), (x, weight, y))
    wide, other = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    plain = torch.nn.functional.silu(norm(wide)) * other
    expected = torch.autograd.grad(plain.square().sum(), (wide, norm.weight, other))
    for found, exact in zip((mine, *grads), (plain, *expected), strict=True):
        assert (found - exact).abs().max() / exact.abs().max() < 1e-5


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quicker ways are chosen, as `strategy.cpu_kernels: fast` does."""
    monkeypatch.setattr("ifsq_train.models.cpu_bf16._fast", True)


def bf16_pass() -> tuple[torch.Tensor, torch.Tensor]:
    """A block's output and gradient under autocast."""
    torch.manual_seed(0)
    block, x = Block(64, 2, 8, 0.0, 0.0), torch.randn(2, 17, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x, rope_table(4, 4, 32))
    return out.detach(), torch.autograd.grad(out.float().square().sum(), x)[0]


def test_bf16_keeps_torch_s_bits_unless_fast_kernels_are_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = bf16_pass()
    choose_kernels(torch.device("cpu"), StrategyConfig(precision="bf16", cpu_kernels="fast"))
    try:
        quick = bf16_pass()
    finally:
        choose_kernels(torch.device("cpu"), StrategyConfig())
    after = bf16_pass()
    monkeypatch.setenv(VARIABLE, "1")
    expected = bf16_pass()
    for one, two, fast, plain in zip(before, after, quick, expected, strict=True):
        assert torch.equal(one, plain)
        assert torch.equal(two, plain)
        assert (fast - plain).abs().max() < 0.02 * plain.abs().max()
    assert not torch.equal(quick[1], expected[1])


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("length", [1, 2, 7])
def test_causal_products_are_causal_attention(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr("ifsq_train.models.transformer.has_bf16_instructions", lambda: True)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8).bfloat16() for _ in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True
    )
    assert (attend_before(q, k, v) - exact).abs().max() < 3e-2


def test_fp32_keeps_its_formulas() -> None:
    """Recorded runs have their bits."""
    torch.manual_seed(0)
    layer, x = FeedForward(16, 8, 0.0), torch.randn(2, 3, 16)
    plain = layer.w2(torch.nn.functional.silu(layer.w1(x)) * layer.w3(x))
    assert torch.equal(layer(x), plain)
