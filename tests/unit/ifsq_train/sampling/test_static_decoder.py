"""Compiled sampling: the tokens of the eager one, in steps that CUDA graphs can hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext

from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.sampling.autoregressive import SamplingConfig, draw_compiled, sample_tokens
from ifsq_train.sampling.static_decoder import length_bucket, row_bucket, static_decoder
from tests.unit.ifsq_train.sampling.test_sampling import build

pytestmark = pytest.mark.heavy


def as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function


def uniforms(count: int, model: LlamaGen) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, model.num_tokens, len(model.codebook_sizes))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def draw_eagerly(
    model: LlamaGen, labels: Tensor, config: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    draws = uniforms(len(labels), model)
    monkeypatch.setattr("ifsq_train.sampling.autoregressive._uniforms", lambda *_: draws)
    tokens = sample_tokens(model, labels, range(len(labels)), config)
    return tokens.view(draws.shape)


@pytest.mark.parametrize("codebooks", [[11], [300], [7, 5]])
@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(greedy=True),
        SamplingConfig(cfg_scale=2.0, greedy=True),
        SamplingConfig(cfg_scale=1.5, top_k=6, top_p=0.95, temperature=0.9),
        SamplingConfig(cfg_scale=2.0, cfg_interval=3),
    ],
)
def test_tokens_are_those_of_eager_sampling(
    codebooks: list[int], config: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(codebooks)
    decoder = static_decoder(model, 4, as_it_is)
    with torch.no_grad():
        for count in (4, 3):
            labels = torch.arange(count) % 4
            found = draw_compiled(decoder, labels, uniforms(count, model), config)
            assert torch.equal(found, draw_eagerly(model, labels, config, monkeypatch))


class Graphs:
    """A backend that runs graphs as they are, and says of each why a CUDA graph would be skipped.

    Attributes:
        count: graphs made.
        skipped: for each that would be skipped the inputs it changes at addresses that may move.
    """

    def __init__(self) -> None:
        self.count = 0
        self.skipped: list[list[int]] = []

    def compiler(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        backend = aot_autograd(fw_compiler=self._keep, inference_compiler=self._keep)
        return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)

    def _keep(self, graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        found = TracingContext.get().fw_metadata
        assert found is not None
        changed = {i for i, info in enumerate(found.input_info) if info.mutates_data}
        self.count += 1
        moving = sorted(changed - set(found.static_input_indices))
        if moving:
            self.skipped.append(moving)
        assert changed, "a step that fills no cache proves nothing"
        return graph.forward


@pytest.mark.parametrize("codebooks", [[11], [7, 5]])
def test_no_graph_is_skipped_and_batches_share_them(codebooks: list[int]) -> None:
    """Batches of other sizes, and the end of guidance, need no graph of their own."""
    torch._dynamo.reset()
    model, graphs = build(codebooks), Graphs()
    config = SamplingConfig(cfg_scale=2.0, cfg_interval=3, greedy=True)
    with torch.no_grad():
        for count in (4, 4, 2, 3, 1):
            decoder = static_decoder(model, count, graphs.compiler)
            draw_compiled(decoder, torch.arange(count), uniforms(count, model), config)
            assert graphs.count == 2, "one guided, one not: 9 positions are one bucket"
    assert graphs.skipped == []


def test_a_cache_that_is_handed_in_would_be_skipped() -> None:
    """The counter sees what it is for."""
    torch._dynamo.reset()
    model, graphs = build([11]), Graphs()
    step = graphs.compiler(model.decode_step)
    with torch.no_grad():
        step(torch.zeros(2, 1, 32), model.new_caches(2, 9, static=True), torch.tensor([0]))
    assert len(graphs.skipped) == 1


def test_buckets() -> None:
    assert [length_bucket(p, 256) for p in (0, 63, 64, 127, 128, 255)] == [
        64, 64, 128, 128, 256, 256
    ]  # fmt: skip
    assert [length_bucket(p, 9) for p in (0, 8)] == [9, 9]
    assert length_bucket(520, 576) == 576
    assert all(length_bucket(p, 576) > p for p in range(576))
    assert [row_bucket(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]


def test_a_network_keeps_its_decoder_and_a_copy_makes_its_own() -> None:
    model = build([11])
    decoder = static_decoder(model, 3, as_it_is)
    assert static_decoder(model, 4, as_it_is) is decoder
    assert static_decoder(model, 5, as_it_is) is not decoder
    assert not [name for name in model.state_dict() if "keys" in name]
    twin = copy.deepcopy(model)
    assert static_decoder(twin, 2, as_it_is).model is twin
