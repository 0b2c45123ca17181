"""Sampling: a sample's draws are its own, and the cache changes nothing."""

import copy

import pytest
import torch

from ifsq_train.models.inference import optimize_for_inference
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.plain import VARIABLE
from ifsq_train.sampling.autoregressive import SamplingConfig, sample_tokens
from ifsq_train.sampling.drawing import invert, invert_in_blocks


def build(codebooks: list[int]) -> LlamaGen:
    torch.manual_seed(0)
    model = LlamaGen(
        num_layers=2,
        num_heads=2,
        dim=32,
        codebook_sizes=codebooks,
        grid=(3, 3),
        num_classes=4,
        multiple_of=32,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("codebooks", [[11], [7, 5]])
def test_batching_does_not_change_a_sample(codebooks: list[int]) -> None:
    model = build(codebooks)
    labels = torch.arange(8) % 4
    config = SamplingConfig(cfg_scale=1.5, top_k=6, top_p=0.95)
    seeds = list(range(100, 108))
    whole = sample_tokens(model, labels, seeds, config)
    order = torch.tensor([5, 2, 7, 0])
    some = sample_tokens(model, labels[order], [seeds[i] for i in order], config)
    assert torch.equal(whole[order], some)
    assert len({tuple(row.flatten().tolist()) for row in whole}) > 1


@pytest.mark.parametrize("codebooks", [[11], [7, 5]])
def test_cached_logits_equal_the_full_forward_pass(codebooks: list[int]) -> None:
    model = build(codebooks)
    labels = torch.tensor([1, 3])
    seen: dict[int, list[torch.Tensor]] = {group: [] for group in range(len(codebooks))}
    tokens = sample_tokens(
        model,
        labels,
        [1, 2],
        SamplingConfig(),
        on_logits=lambda _position, group, logits: seen[group].append(logits),
    )
    full = model(tokens, labels).logits
    for group, logits in enumerate(full):
        assert torch.allclose(torch.stack(seen[group], 1), logits, atol=1e-5)


def test_draws_follow_the_distribution() -> None:
    """First token of many samples against its probabilities: chi-square of 10 cells."""
    model = build([11])
    labels = torch.zeros(4000, dtype=torch.int64)
    tokens = sample_tokens(model, labels, range(4000), SamplingConfig())
    with torch.no_grad():
        expected = model(tokens[:1], labels[:1]).logits[0][0, 0].softmax(-1) * 4000
    observed = tokens[:, 0].bincount(minlength=11)
    assert float(((observed - expected) ** 2 / expected).sum()) < 35  # p = 1e-4 at 10 degrees


@pytest.mark.parametrize("size", [700, 1024])
def test_drawing_by_blocks_inverts_the_same_distribution(size: int) -> None:
    """Also where most entries are impossible, and at both ends."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, size, generator=generator) * 3
    logits[:100, torch.randperm(size, generator=generator)[: size - 5]] = -torch.inf
    logits[100:110, :-1] = -torch.inf
    uniform = torch.rand(300, generator=generator, dtype=torch.float64)
    uniform[::3] = 1.0 - 1e-16
    uniform[1::3] = 0.0
    probabilities = logits.softmax(-1)
    found = invert_in_blocks(probabilities, uniform)
    assert (probabilities.gather(1, found.unsqueeze(1)) > 0).all()
    expected = invert(probabilities.double().cumsum(-1), uniform)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("codebooks", [[11], [7, 5]])
def test_leaving_out_the_unguided_branch_changes_nothing(
    codebooks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, labels = build(codebooks), torch.arange(4)
    for interval in (0, 2, 7):
        config = SamplingConfig(cfg_scale=2.0, cfg_interval=interval)
        fast = sample_tokens(model, labels, range(4), config)
        monkeypatch.setenv("IFSQ_PLAIN", "1")
        assert torch.equal(fast, sample_tokens(model, labels, range(4), config))
        monkeypatch.delenv("IFSQ_PLAIN")


def test_decoding_with_fixed_shapes_is_the_same_and_one_graph() -> None:
    """What is captured as a CUDA graph on a GPU, here with eager kernels."""
    model = build([11])
    x = torch.randn(2, 9, 1, 32, generator=torch.Generator().manual_seed(0))
    step = torch.compile(model.decode_step, backend="eager", fullgraph=True)
    ours, theirs = model.new_caches(2, 9, static=True), model.new_caches(2, 9)
    with torch.no_grad():
        for position in range(9):
            expected = model.decode_step(x[:, position], theirs, position)
            found = step(x[:, position], ours, torch.tensor([position]))
            assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("codebooks", [[11], [7, 5]])
def test_top_k_one_is_greedy(codebooks: list[int]) -> None:
    model = build(codebooks)
    labels = torch.tensor([0, 1, 2])
    greedy = sample_tokens(model, labels, [1, 2, 3], SamplingConfig(greedy=True))
    assert torch.equal(greedy, sample_tokens(model, labels, [4, 5, 6], SamplingConfig(top_k=1)))


def test_dropped_labels_act_as_the_null_class() -> None:
    model = build([11])
    tokens = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    dropped = model(tokens, torch.tensor([1, 2]), drop_labels=torch.tensor([True, False])).logits[0]
    given = model(tokens, torch.tensor([4, 2])).logits[0]
    assert torch.equal(dropped, given)


@pytest.mark.parametrize("codebooks", [[300], [17, 15]])
def test_the_quick_way_draws_what_the_plain_one_does(
    codebooks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed weights, guidance before the output layer, products for one query; tokens and logits
    are those of the plain formulas, and of bf16 weights nearly."""
    model, labels = build(codebooks), torch.arange(4)
    logits: dict[str, list[torch.Tensor]] = {}

    def draw(way: str, network: LlamaGen) -> torch.Tensor:
        seen = logits.setdefault(way, [])
        config = SamplingConfig(cfg_scale=2.0, cfg_interval=4, top_k=5)
        return sample_tokens(
            network, labels, range(4), config, on_logits=lambda _p, _g, found: seen.append(found)
        )

    quick = draw("quick", optimize_for_inference(copy.deepcopy(model)))
    half = optimize_for_inference(copy.deepcopy(model))
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    draw("half", half)
    monkeypatch.setenv(VARIABLE, "1")
    assert torch.equal(quick, draw("plain", model))
    for found, expected in zip(logits["quick"], logits["plain"], strict=True):
        assert torch.allclose(found, expected, atol=1e-4)
    first, expected = logits["half"][0], logits["plain"][0]
    assert float((first - expected).norm() / expected.norm()) < 3e-2
