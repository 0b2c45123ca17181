"""Images to tokens with a trained tokenizer, so that the same image always gives the same bits.

Convolutions round differently for another batch size and, on CPUs, another number of threads
(measured: differences of 1e-6 in the latents, enough to flip a token at a cell's border). What an
image's neighbours in the batch are, and where in it the image lies, changes nothing. So every
call here has exactly `batch_size` images, filled up with zeros, on one CPU thread or with fixed
cuDNN algorithms; more speed comes from more encoders. Bits are then equal between machines of one
kind; another kind of CPU or GPU may flip a token at a border once in a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.errors import UserError
from ifsq_train.artifacts import load_tokenizer
from ifsq_train.models.autoencoder import Tokenizer


class TokenEncoder:
    """A tokenizer in eval mode on one device, encoding in fp32.

    Attributes:
        fingerprint: sha256 over weights and configuration.
        quantizer: JSON-able description of the bottleneck.
        codebook_sizes: entries of each token group.
        digit_order: of the indices within a group.
        downsample_ratio: pixels per token and side.
        numerics: device kind and precision, such as cpu/fp32.
    """

    def __init__(self, network: Tokenizer, device: str, batch_size: int) -> None:
        """Move the network to the device.

        Raises:
            UserError: its bottleneck is continuous and has no tokens.
        """
        self.fingerprint = network.fingerprint()
        self.quantizer: Mapping[str, Any] = network.quantize.spec()
        self.codebook_sizes = tuple(network.quantize.codebook_sizes)
        if not self.codebook_sizes:
            raise UserError(
                f"a bottleneck of kind '{self.quantizer.get('kind')}' is continuous and has no"
                " tokens to precompute; use a tokenizer with fsq, ifsq, vq or lfq"
            )
        self.digit_order: Literal["little", "big"] = self.quantizer.get("digit_order", "little")
        self.downsample_ratio = network.downsample_ratio
        self.numerics = f"{device}/fp32"
        self._network = network.eval().to(device)
        self._device, self._batch_size = device, batch_size

    @torch.inference_mode()
    def encode(self, images: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens and what they stand for.

        Args:
            images: float32 [B, 3, S, S] in [-1, 1], 1 to `batch_size` of them.

        Returns:
            Indices int64 [B, h, w, G], dequantized latents float32 [B, C, h, w].
        """
        count = len(images)
        assert 0 < count <= self._batch_size
        filler = images.new_zeros(self._batch_size - count, *images.shape[1:])
        with reproducible_kernels():
            indices = self._network.encode(torch.cat([images, filler]).to(self._device)).indices
            latents = self._network.quantize.indices_to_latents(indices)
        return indices[:count].cpu().numpy(), latents[:count].float().cpu().numpy()

    def grid_of(self, image_size: int) -> tuple[int, int]:
        """Height and width in tokens of a square image.

        Raises:
            UserError: the side is not a whole number of tokens.
        """
        cells, rest = divmod(image_size, self.downsample_ratio)
        if rest or not cells:
            raise UserError(
                f"view.image_size={image_size} is not a multiple of the tokenizer's"
                f" {self.downsample_ratio} pixels per token; use"
                f" {max(cells, 1) * self.downsample_ratio}"
            )
        return cells, cells


def open_encoder(path: str, device: str, batch_size: int) -> TokenEncoder:
    """The tokenizer of a run folder or checkpoint, with averaged weights if it has any.

    Raises:
        UserError: no complete checkpoint at `path`, or not one of a tokenizer with tokens.
    """
    return TokenEncoder(load_tokenizer(path).network, device, batch_size)


@contextmanager
def reproducible_kernels() -> Iterator[None]:
    """One CPU thread, deterministic cuDNN algorithms chosen without timing, no TF32."""
    threads = torch.get_num_threads()
    matmul_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
