"""Packing is exact, as small as promised, and in the documented bit order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError, UserError
from data_pipelines.tokens.packing import (
    TokenPacker,
    bits_needed,
    pack_tokens,
    unpack_tokens,
)


def slow_pack(row: list[list[int]], bits: tuple[int, ...]) -> bytes:
    """The documented format, written with Python integers; `row` is one list per group."""
    packed = b""
    for tokens, width in zip(row, bits, strict=True):
        stream = sum(token << (i * width) for i, token in enumerate(tokens))
        packed += stream.to_bytes((len(tokens) * width + 7) // 8, "little")
    return packed


@st.composite
def token_arrays(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    sizes = tuple(
        draw(st.integers(1, 2 ** draw(st.integers(1, 63)))) for _ in range(draw(st.integers(1, 4)))
    )
    rows, num_tokens = draw(st.integers(0, 4)), draw(st.integers(1, 35))
    columns = [
        draw(
            st.lists(
                st.integers(0, size - 1), min_size=rows * num_tokens, max_size=rows * num_tokens
            )
        )
        for size in sizes
    ]
    values = np.array(columns, dtype=np.int64).reshape(len(sizes), rows, num_tokens)
    return values.transpose(1, 2, 0), sizes


@given(token_arrays())
@settings(max_examples=200)
def test_any_tokens_come_back_and_lie_as_documented(case: tuple[np.ndarray, tuple[int, ...]]):
    tokens, sizes = case
    packer = TokenPacker(sizes, tokens.shape[1])
    packed = packer.pack(tokens)
    for row, expected in zip(packed, tokens, strict=True):
        assert row.tobytes() == slow_pack(expected.T.tolist(), packer.bits)
    assert np.array_equal(packer.unpack(packed).reshape(tokens.shape), tokens)


@pytest.mark.parametrize("bits", range(1, 64))
def test_largest_tokens_of_every_width_survive(bits: int):
    tokens = np.full((3, 19), 2**bits - 1, dtype=np.int64)
    tokens[1] = 0
    assert np.array_equal(unpack_tokens(pack_tokens(tokens, [2**bits]), [2**bits], 19), tokens)


def test_example_of_the_documentation():
    assert pack_tokens(np.array([[1, 2, 7]]), [8]).tobytes() == bytes([0xD1, 0x01])


def test_paper_tokens_take_17_bits_each():
    packer = TokenPacker((17**4,), 256)
    assert packer.bits == (17,)
    assert packer.row_bytes == 544


def test_each_group_has_its_own_width():
    packer = TokenPacker((17**4, 16, 2), 256)
    assert packer.bits == (17, 4, 1)
    assert packer.row_bytes == 544 + 128 + 32


def test_one_group_needs_no_group_axis():
    tokens = np.arange(12).reshape(2, 6)
    packer = TokenPacker((12,), 6)
    assert np.array_equal(packer.pack(tokens), packer.pack(tokens[:, :, None]))
    assert packer.unpack(packer.pack(tokens)).shape == (2, 6)


@pytest.mark.parametrize("token", [-1, 10])
def test_token_outside_the_codebook_is_refused(token: int):
    with pytest.raises(DataError, match=r"group 0 .* allowed are 0 to 9"):
        pack_tokens(np.array([[0, token]]), [10])


def test_other_row_width_is_refused():
    with pytest.raises(DataError, match="expected \\[N, 544\\]"):
        TokenPacker((17**4,), 256).unpack(np.zeros((2, 512), dtype=np.uint8))


@pytest.mark.parametrize("size", [0, 2**63 + 1])
def test_codebook_that_cannot_be_packed_is_refused(size: int):
    with pytest.raises(UserError, match="cannot be packed"):
        bits_needed(size)


def test_continuous_latents_have_no_tokens():
    with pytest.raises(UserError, match="no tokens"):
        TokenPacker((), 256)
