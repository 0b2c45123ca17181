"""Tokens in the fewest whole bits.

A row holds T tokens of G groups. Group after group, the T tokens of a group are written as
`bits[g]`-bit numbers into one little-endian bit stream: bit i of the stream is bit `i % 8` (least
significant first) of byte `i // 8`, and token t starts at bit `t * bits[g]` with its least
significant bit. Every group starts on a whole byte; unused bits are zero.

Example: the 3-bit tokens 1, 2, 7 are the bits 100 010 111 in stream order, bytes 0xD1 0x01.

Eight tokens of b bits fill exactly b bytes, so tokens 8k + j lie at the same bit of byte
`b * k + (j * b) // 8`, whatever k: one strided view per j handles an eighth of all tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import DataError, UserError

MAX_BITS = 63
_PHASES = 8
_BLOCK_ROWS = 256
"""Rows handled at a time: the eight passes over them find them in the cache."""
_SLACK_BYTES = 9
"""The widest word at the last token, and the byte after it, may reach this far beyond the data."""


def bits_needed(codebook_size: int) -> int:
    """Fewest whole bits for tokens 0 to `codebook_size` - 1: 17 for 17**4 = 83,521.

    Raises:
        UserError: a size below 1, or one that needs more than 63 bits.
    """
    if not 1 <= codebook_size <= 1 << MAX_BITS:
        raise UserError(
            f"codebook size {codebook_size} cannot be packed; use 1 to 2**{MAX_BITS} entries "
            "per group, or split the channels into more groups"
        )
    return max(1, (codebook_size - 1).bit_length())


@dataclass(frozen=True)
class TokenPacker:
    """Packs and unpacks rows of `num_tokens` tokens of `len(codebook_sizes)` groups.

    Raises:
        UserError: sizes that cannot be packed.
    """

    codebook_sizes: tuple[int, ...]
    num_tokens: int

    def __post_init__(self) -> None:
        if not self.codebook_sizes or self.num_tokens < 1:
            raise UserError(
                f"{self.num_tokens} tokens of {len(self.codebook_sizes)} groups cannot be packed; "
                "use at least one of each (a continuous bottleneck has no tokens)"
            )
        assert len(self.bits) == len(self.codebook_sizes)

    @cached_property
    def bits(self) -> tuple[int, ...]:
        """Bits per token of each group."""
        return tuple(bits_needed(size) for size in self.codebook_sizes)

    @cached_property
    def group_bytes(self) -> tuple[int, ...]:
        """Bytes each group takes in a row."""
        return tuple((self.num_tokens * bits + 7) // 8 for bits in self.bits)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: 544 for 256 tokens of 17 bits."""
        return sum(self.group_bytes)

    def pack(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Int64 [N, T] (one group) or [N, T, G] to uint8 [N, row_bytes].

        Raises:
            DataError: a token outside its codebook, or another shape.
        """
        groups = self._by_group(tokens)
        packed = np.empty((len(groups), self.row_bytes), dtype=np.uint8)
        for first in range(0, len(groups), _BLOCK_ROWS):
            block = groups[first : first + _BLOCK_ROWS]
            padded = np.zeros((len(block), self.row_bytes + _SLACK_BYTES), dtype=np.uint8)
            start = 0
            for group, (bits, width) in enumerate(zip(self.bits, self.group_bytes, strict=True)):
                _pack_group(block[:, :, group], bits, padded, start)
                start += width
            packed[first : first + _BLOCK_ROWS] = padded[:, : self.row_bytes]
        return packed

    def unpack(self, packed: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Uint8 [N, row_bytes] to int64 [N, T] for one group, else [N, T, G]."""
        if packed.ndim != 2 or packed.shape[1] != self.row_bytes:
            raise DataError(
                f"packed tokens have shape {packed.shape}, expected [N, {self.row_bytes}] for "
                f"{self.num_tokens} tokens of {self.bits} bits; the file is not of this spec"
            )
        rows, num_groups = len(packed), len(self.bits)
        tokens = np.empty((rows, self.num_tokens, num_groups), dtype=np.int64)
        for first in range(0, rows, _BLOCK_ROWS):
            block = slice(first, first + _BLOCK_ROWS)
            padded = _with_slack(packed[block])
            start = 0
            for group, (bits, width) in enumerate(zip(self.bits, self.group_bytes, strict=True)):
                _unpack_group(padded, start, bits, self.row_bytes, tokens[block, :, group])
                start += width
        return tokens[:, :, 0] if num_groups == 1 else tokens

    def out_of_range(self, packed: NDArray[np.uint8]) -> tuple[int, int] | None:
        """A packed token outside its codebook, and the codebook's size; None where there is none.

        Free where all codebooks are powers of two, which every pattern of bits is a token of.
        """
        if all(
            size == 1 << bits for size, bits in zip(self.codebook_sizes, self.bits, strict=True)
        ):
            return None
        tokens = self.unpack(packed).reshape(len(packed), self.num_tokens, -1)
        for group, size in enumerate(self.codebook_sizes):
            highest = int(tokens[:, :, group].max(initial=0))
            if highest >= size:
                return highest, size
        return None

    def _by_group(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        groups = tokens[:, :, None] if tokens.ndim == 2 else tokens
        expected = (self.num_tokens, len(self.codebook_sizes))
        if groups.ndim != 3 or groups.shape[1:] != expected:
            raise DataError(
                f"tokens have shape {tokens.shape}, expected [N, {expected[0]}, {expected[1]}]; "
                "encode with the tokenizer the spec was made for"
            )
        self._check_range(groups)
        return groups

    def _check_range(self, groups: NDArray[np.int64]) -> None:
        if not len(groups):
            return
        lowest, highest = groups.min(axis=(0, 1)).tolist(), groups.max(axis=(0, 1)).tolist()
        for group, size in enumerate(self.codebook_sizes):
            if lowest[group] < 0 or highest[group] >= size:
                raise DataError(
                    f"tokens of group {group} run from {lowest[group]} to {highest[group]}, "
                    f"allowed are 0 to {size - 1}; the codebook size or the tokens are wrong"
                )


def pack_tokens(tokens: NDArray[np.int64], codebook_sizes: Sequence[int]) -> NDArray[np.uint8]:
    """`TokenPacker.pack` for tokens int64 [N, T] or [N, T, G]."""
    return TokenPacker(tuple(codebook_sizes), tokens.shape[1]).pack(tokens)


def unpack_tokens(
    packed: NDArray[np.uint8], codebook_sizes: Sequence[int], num_tokens: int
) -> NDArray[np.int64]:
    """`TokenPacker.unpack` of uint8 [N, row_bytes]."""
    return TokenPacker(tuple(codebook_sizes), num_tokens).unpack(packed)


def _pack_group(
    tokens: NDArray[np.int64], bits: int, padded: NDArray[np.uint8], start: int
) -> None:
    """Or the tokens int64 [N, T] into the rows of `padded` from byte `start`, zero there so far."""
    for phase in range(min(_PHASES, tokens.shape[1])):
        first_byte, shift = divmod(phase * bits, 8)
        values = tokens[:, phase::_PHASES].astype(np.uint64)

        def words(
            dtype: str, offset: int, shape: tuple[int, ...] = values.shape
        ) -> NDArray[np.unsignedinteger]:
            strides = (padded.shape[1], bits)
            return np.ndarray(shape, dtype, padded.data, offset, strides)  # unaligned on purpose

        at = start + first_byte
        # Words of one phase are `bits` bytes apart and must not overlap.
        if bits < 4:
            shifted = values << np.uint64(shift)
            for byte in range((shift + bits + 7) // 8):
                out = words("<u1", at + byte)
                out |= (shifted >> np.uint64(8 * byte)).astype(np.uint8)
        elif shift + bits <= 32:
            out = words("<u4", at)
            out |= values.astype(np.uint32) << np.uint32(shift)
        else:
            out = words("<u8", at)
            out |= values << np.uint64(shift)
            if shift + bits > 64:
                out = words("<u1", at + 8)
                out |= (values >> np.uint64(64 - shift)).astype(np.uint8)


def _unpack_group(
    padded: NDArray[np.uint8], start: int, bits: int, row_bytes: int, out: NDArray[np.int64]
) -> None:
    """Read int64 [N, T] from the rows' bytes at `start`; `padded` is flat, with slack behind."""
    rows, num_tokens = out.shape
    for phase in range(min(_PHASES, num_tokens)):
        first_byte, shift = divmod(phase * bits, 8)
        count = (num_tokens - phase + _PHASES - 1) // _PHASES

        def words(
            dtype: str, offset: int, shape: tuple[int, int] = (rows, count)
        ) -> NDArray[np.unsignedinteger]:
            return np.ndarray(
                shape, dtype, padded.data, offset, strides=(row_bytes, bits)
            )  # unaligned on purpose

        at = start + first_byte
        if shift + bits <= 32:
            mask32 = np.uint32((1 << bits) - 1)
            out[:, phase::_PHASES] = (words("<u4", at) >> np.uint32(shift)) & mask32
            continue
        values = words("<u8", at) >> np.uint64(shift)
        if shift + bits > 64:
            values |= words("<u1", at + 8).astype(np.uint64) << np.uint64(64 - shift)
        out[:, phase::_PHASES] = values & np.uint64((1 << bits) - 1)


def _with_slack(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    flat = np.empty(packed.size + _SLACK_BYTES, dtype=np.uint8)
    flat[: packed.size] = packed.reshape(-1)
    flat[packed.size :] = 0
    return flat
