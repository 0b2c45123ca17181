"""FSQ and LFQ give the codes of vector-quantize-pytorch where the settings are equal."""

from __future__ import annotations

import pytest
import torch

from ifsq_train.models.quantizers import FSQ, LFQ

peer = pytest.importorskip(
    "vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed: make test-peers"
)


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [7, 5, 3], [4, 4]])
def test_fsq_with_its_first_bound(levels: list[int]) -> None:
    ours = FSQ(levels, bound="shifted").eval()
    theirs = peer.FSQ(levels).eval()
    latents = torch.randn(2, len(levels), 4, 6, generator=torch.Generator().manual_seed(0)) * 2
    codes, indices = theirs(latents)
    found = ours(latents)
    torch.testing.assert_close(found.latents, codes)
    assert torch.equal(found.indices[..., 0], indices.long())


def test_lfq_with_its_bits_the_other_way_round() -> None:
    bits = 6
    ours = LFQ(bits, entropy_weight=0.0).eval()
    theirs = peer.LFQ(dim=bits, codebook_size=2**bits).eval()
    latents = torch.randn(2, bits, 4, 6, generator=torch.Generator().manual_seed(0))
    codes, indices, _ = theirs(latents)
    found = ours(latents)
    torch.testing.assert_close(found.latents, codes)
    # Their first bit is the most significant, ours the least.
    places = 2 ** torch.arange(bits)
    digits = (indices[..., None] // places) % 2
    assert torch.equal(found.indices[..., 0], (digits * places.flip(0)).sum(-1))
