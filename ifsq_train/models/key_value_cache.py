"""Keys and values of an attention layer while a sequence is decoded, and attention to them.

Shape suffixes as in `transformer`: B batch, H heads, S positions, K head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from ifsq_train.models.plain import plain_paths

_BLOCK = 32
"""Positions of a block: as small as products of one query with it are quick."""


class KeyValueCache(ABC):
    """What one layer has seen so far."""

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, position: int | Tensor) -> Tensor:
        """Keep key and value of `position`, and attend to it and all before it.

        Args:
            query, key, value: float [B, H, 1, K].
            position: one after the other; 0 begins another sequence.

        Returns:
            float [B, H, 1, K], of the query's dtype.
        """

    @abstractmethod
    def keep_first(self, batch: int) -> None:
        """Forget all but the first rows."""


def new_cache(shape: tuple[int, int, int, int], like: Tensor, *, static: bool) -> KeyValueCache:
    """An empty cache for a sequence.

    Args:
        shape: B, H, S of the whole sequence, K.
        like: a weight, whose device and dtype it takes; in blocks it is fp32 at least.
        static: shapes must never change, so that a CUDA graph can hold the step; its positions
            are then int64 [1] on the device.
    """
    if static or like.device.type != "cpu" or plain_paths():
        return WholeCache(shape, like)
    return BlockedCache(shape, like)


class WholeCache(KeyValueCache):
    """Allocated once for the whole sequence; attention by the fused kernel."""

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self._keys, self._values = like.new_zeros(shape), like.new_zeros(shape)

    @override
    def attend(self, query: Tensor, key: Tensor, value: Tensor, position: int | Tensor) -> Tensor:
        keys, values = self._keys, self._values
        own, mask = query.to(keys.dtype), None
        if isinstance(position, Tensor):
            keys.index_copy_(2, position, key.to(keys.dtype))
            values.index_copy_(2, position, value.to(values.dtype))
            # All slots are read; what is not filled yet is hidden.
            seen = torch.arange(keys.shape[2], device=keys.device) <= position
            mask = seen.view(1, 1, 1, -1)
        else:
            keys[:, :, position], values[:, :, position] = key[:, :, 0], value[:, :, 0]
            keys, values = keys[:, :, : position + 1], values[:, :, : position + 1]
        return F.scaled_dot_product_attention(own, keys, values, attn_mask=mask).to(query.dtype)

    @override
    def keep_first(self, batch: int) -> None:
        self._keys, self._values = self._keys[:batch], self._values[:batch]


class CacheWindow(KeyValueCache):
    """Part of a cache that stays where it is: its first rows, read up to a length.

    Positions are int64 [1] on the device, and no shape depends on them.

    Args:
        keys, values: float [at least B, H, S, K], written to.
        rows: B.
        length: slots that are read; what is not filled yet is hidden.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: int, length: int) -> None:
        self._keys, self._values, self._rows, self._length = keys, values, rows, length

    @override
    def attend(self, query: Tensor, key: Tensor, value: Tensor, position: int | Tensor) -> Tensor:
        assert isinstance(position, Tensor), "positions of static caches are on the device"
        keys, values = self._keys, self._values
        # Written by index into the whole: a change of a slice would be carried out on a copy.
        row = torch.arange(self._rows, device=keys.device)
        keys[row, :, position] = key[:, :, 0].to(keys.dtype)
        values[row, :, position] = value[:, :, 0].to(values.dtype)
        seen = torch.arange(self._length, device=keys.device) <= position
        window = (slice(self._rows), slice(None), slice(self._length))
        mixed = F.scaled_dot_product_attention(
            query.to(keys.dtype), keys[window], values[window], attn_mask=seen.view(1, 1, 1, -1)
        )
        return mixed.to(query.dtype)

    @override
    def keep_first(self, batch: int) -> None:
        self._rows = batch


class BlockedCache(KeyValueCache):
    """For a CPU: blocks of positions, each in one piece of memory, made when they are needed.

    A tensor for the whole sequence, of which only the beginning is filled, is read down to half as
    fast: what is filled lies in pieces whose distance is a power of two, and for those a CPU's
    cache has few places. The fused kernel is made for many queries; for one, plain products are
    quicker.

    Keys are fp32, which for one query is as quick as bf16, and so are scores. Values, and the
    weights they are multiplied with, are bf16 where the model is and the CPU has products of it.
    """

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor) -> None:
        batch, heads, length, width = shape
        self._heads, self._like = heads, like
        self._shape = (batch * heads, min(length, _BLOCK), width)
        self._dtype = torch.promote_types(like.dtype, torch.float32)
        half = like.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
        half = half and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._value_dtype = torch.bfloat16 if half else self._dtype
        self._blocks: list[tuple[Tensor, Tensor]] = []

    @override
    def attend(self, query: Tensor, key: Tensor, value: Tensor, position: int | Tensor) -> Tensor:
        assert isinstance(position, int), "positions on the device are for static caches"
        rows, size, width = self._shape
        number, place = divmod(position, size)
        if number == len(self._blocks):
            # Zeros: what is not filled yet must be finite, then its weight of zero hides it.
            keys = self._like.new_zeros(self._shape, dtype=self._dtype)
            self._blocks.append((keys, torch.zeros_like(keys, dtype=self._value_dtype)))
        for kept, new in zip(self._blocks[number], (key, value), strict=True):
            kept.view(-1, self._heads, size, width)[:, :, place] = new[:, :, 0]
        own = (query.to(self._dtype) * width**-0.5).reshape(rows, 1, width)
        seen = self._blocks[: number + 1]
        # Autocast would round the operands again for every product.
        with torch.autocast("cpu", enabled=False):
            scores = [torch.bmm(own, keys.transpose(1, 2)) for keys, _ in seen]
            scores[-1][:, :, place + 1 :] = -torch.inf
            weights = torch.cat(scores, 2).softmax(2).to(self._value_dtype).split(size, 2)
            mixed = torch.bmm(weights[0], seen[0][1]).to(self._dtype)
            for weight, (_, values) in zip(weights[1:], seen[1:], strict=True):
                mixed += torch.bmm(weight, values)
        return mixed.view(query.shape).to(query.dtype)

    @override
    def keep_first(self, batch: int) -> None:
        rows = batch * self._heads
        self._shape = (rows, *self._shape[1:])
        self._blocks = [(keys[:rows], values[:rows]) for keys, values in self._blocks]
