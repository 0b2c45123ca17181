"""Attention to a cache, one position after the other, against causal attention to the whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ifsq_train.models.key_value_cache import BlockedCache, KeyValueCache, WholeCache, new_cache
from ifsq_train.models.plain import VARIABLE

SHAPE = (4, 3, 70, 8)


def sequence(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    random = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, *SHAPE, generator=random).to(dtype)
    return query, key, value


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """All positions at once in float64."""
    return F.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True
    )


def step(
    cache: KeyValueCache, parts: tuple[Tensor, Tensor, Tensor], position: int, *, static: bool
) -> Tensor:
    """One position."""
    query, key, value = (part[:, :, position : position + 1] for part in parts)
    return cache.attend(query, key, value, torch.tensor([position]) if static else position)


def decode(cache: KeyValueCache, parts: tuple[Tensor, Tensor, Tensor], *, static: bool) -> Tensor:
    """The same position by position."""
    length = parts[0].shape[2]
    outputs = [step(cache, parts, position, static=static) for position in range(length)]
    return torch.cat(outputs, 2)


@pytest.mark.parametrize("kind", ["blocks", "whole", "static"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)]
)
def test_every_cache_attends_to_all_before(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    like = torch.zeros(1, dtype=dtype)
    cache = BlockedCache(SHAPE, like) if kind == "blocks" else WholeCache(SHAPE, like)
    parts = sequence(dtype=dtype)
    found = decode(cache, parts, static=kind == "static")
    assert found.dtype == dtype
    assert torch.allclose(found.double(), causal(*parts), atol=tolerance)


@pytest.mark.parametrize("kind", [BlockedCache, WholeCache])
def test_a_second_sequence_sees_nothing_of_the_first(kind: type[KeyValueCache]) -> None:
    """The factorized head uses its cache again for every token."""
    cache = kind(SHAPE, torch.zeros(1))  # pyright: ignore[reportCallIssue]
    decode(cache, sequence(0), static=False)
    parts = sequence(1)
    assert torch.allclose(decode(cache, parts, static=False), causal(*parts).float(), atol=2e-6)


@pytest.mark.parametrize("kind", [BlockedCache, WholeCache])
def test_rows_that_are_left_go_on_as_before(kind: type[KeyValueCache]) -> None:
    cache = kind(SHAPE, torch.zeros(1))  # pyright: ignore[reportCallIssue]
    parts = sequence()
    expected = causal(*parts).float()[:2]
    for position in range(SHAPE[2]):
        if position == 40:
            cache.keep_first(2)
            parts = (parts[0][:2], parts[1][:2], parts[2][:2])
        found = step(cache, parts, position, static=False)
        assert torch.allclose(found[:2], expected[:, :, position : position + 1], atol=2e-6)


def test_blocks_are_for_a_cpu_without_static_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(1)
    assert isinstance(new_cache(SHAPE, weight, static=False), BlockedCache)
    assert isinstance(new_cache(SHAPE, weight, static=True), WholeCache)
    monkeypatch.setenv(VARIABLE, "1")
    assert isinstance(new_cache(SHAPE, weight, static=False), WholeCache)
