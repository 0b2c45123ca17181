"""Images to tokens with a trained tokenizer, so that the same image always gives the same bits.

Convolutions round differently for another batch size and, on CPUs, another number of threads
(measured: differences of 1e-6 in the latents, enough to flip a token at a cell's border). What an
image's neighbours in the batch are, and where in it the image lies, changes nothing; this is
checked on the device at hand (`position_matters`), not taken for granted. So the networks always
see the same number of images (`batch_size`, or on CPUs what the image size decides), filled up with
zeros, on one CPU thread or with fixed cuDNN algorithms; more speed comes from more encoders. Bits
are then equal between machines of one kind; another kind of CPU or GPU may flip a token at a border
once in a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.views import Size
from ifsq_train.artifacts.teachers import open_teacher, teacher_fingerprint
from ifsq_train.artifacts.token_meaning import digit_table, token_grid
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config import PrecomputeConfig
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.inference import channels_last, optimize_for_inference
from ifsq_train.models.precision import autocast
from ifsq_train.models.repa import DinoTeacher

Precision = Literal["fp32", "tf32", "bf16"]
_CPU_PIXELS = 2 * 256 * 256


@dataclass(frozen=True)
class EncodedViews:
    """What a tokenizer, and a teacher if there is one, make of B images.

    tokens: int64 [B, h, w, G]; G is 0 for a continuous bottleneck.
    latents: float32 [B, C, h, w]: what the tokens stand for, or the posterior's mean.
    logvar: float32 of that shape, the posterior's log-variance; None without a posterior.
    features: float32 [B, T, D] of the teacher; None without.
    """

    tokens: Tensor
    latents: Tensor
    logvar: Tensor | None = None
    features: Tensor | None = None
    not_finite: Tensor | None = None
    """Bool [B, 2]: of which images the tokenizer's, the teacher's values are not all finite."""

    def faults(self) -> list[tuple[int, str]]:
        """Image and network wherever one gave values that are not finite; waits for the device."""
        if self.not_finite is None or not bool(self.not_finite.any()):
            return []
        networks = ("the tokenizer's encoder", "the teacher")
        return [(image, networks[which]) for image, which in self.not_finite.nonzero().tolist()]

    def arrays(self) -> EncodedArrays:
        """The same on the host; waits for the device."""

        def array(values: Tensor | None) -> NDArray[np.float32] | None:
            return None if values is None else values.float().cpu().numpy()

        latents = array(self.latents)
        assert latents is not None
        tokens = self.tokens.cpu().numpy()
        return EncodedArrays(tokens, latents, array(self.logvar), array(self.features))


@dataclass(frozen=True)
class EncodedArrays:
    """`EncodedViews` as numpy arrays."""

    tokens: NDArray[np.int64]
    latents: NDArray[np.float32]
    logvar: NDArray[np.float32] | None
    features: NDArray[np.float32] | None

    def rows(self, part: slice) -> EncodedArrays:
        """Those rows, without copying."""
        logvar, features = self.logvar, self.features
        return EncodedArrays(
            self.tokens[part],
            self.latents[part],
            None if logvar is None else logvar[part],
            None if features is None else features[part],
        )


class TokenEncoder:
    """A tokenizer in eval mode on one device, and a teacher beside it if there is one.

    Attributes:
        fingerprint: sha256 over weights and configuration of the tokenizer.
        quantizer: JSON-able description of the bottleneck.
        codebook_sizes: entries of each token group; empty for a continuous bottleneck.
        digits: how its tokens become latents without it, where they do.
        digit_order: of the indices within a group.
        latent_channels: C.
        has_posterior: whether latents have a variance (vae).
        downsample_ratio: pixels per token and side.
        numerics: device kind and precision, such as cpu/fp32.
        batch_size: images per call.
        teacher: fingerprint and width of the teacher; None without one.
    """

    def __init__(
        self,
        network: Tokenizer,
        device: str,
        batch_size: int,
        precision: Precision = "fp32",
        teacher: DinoTeacher | None = None,
    ) -> None:
        """Move the networks to the device."""
        quantizer = network.quantize
        self.fingerprint = network.fingerprint()
        self.quantizer: Mapping[str, Any] = quantizer.spec()
        self.codebook_sizes = tuple(quantizer.codebook_sizes)
        self.digits = digit_table(quantizer)
        self.digit_order: Literal["little", "big"] = self.quantizer.get("digit_order", "little")
        self.latent_channels = quantizer.num_channels
        self.has_posterior = quantizer.has_posterior
        self.downsample_ratio = network.downsample_ratio
        self.numerics = f"{device}/{precision}"
        self.batch_size = batch_size
        self._network = optimize_for_inference(network.to(device))
        self.teacher = None if teacher is None else (teacher_fingerprint(teacher), teacher.dim)
        self._teacher = teacher.eval().to(device) if teacher is not None else None
        self._device, self._precision = device, precision

    @torch.inference_mode()
    def encode(self, images: Tensor) -> EncodedViews:
        """What the networks make of images; on a GPU this returns before it is computed.

        Args:
            images: float32 [B, 3, H, W] in [-1, 1], 1 to `batch_size` of them.
        """
        assert 0 < len(images) <= self.batch_size
        images = images.to(self._device, non_blocking=True)
        size = self._images_at_once(images)
        with reproducible_kernels(tf32=self._precision == "tf32"):
            parts = [self._encode_filled(part, size) for part in images.split(size)]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _images_at_once(self, images: Tensor) -> int:
        """Of a call, always the same for images of one size: all on a GPU; on a CPU so few that
        what one layer hands to the next is still in the cache (measured at 256 px: twos are 1.3 to
        2.1 times as fast as sixteens)."""
        if self._device != "cpu":
            return self.batch_size
        fitting = _CPU_PIXELS // (images.shape[-2] * images.shape[-1])
        return max(1, min(self.batch_size, fitting))

    def _encode_filled(self, images: Tensor, size: int) -> EncodedViews:
        """At most `size` images, filled up to that many."""
        count = len(images)
        if count < size:
            images = torch.cat([images, images.new_zeros(size - count, *images.shape[1:])])
        images = channels_last(images)
        with autocast(self._device, self._precision):
            moments = self._network.quant_conv(self._network.encoder(images))
        tokens = self._network.quantize(moments).indices
        latents, logvar = self._latents(moments, tokens)
        # The teacher never runs in bf16: what it gives is stored as it is.
        features = None if self._teacher is None else self._teacher(images)[:count]
        logvar = None if logvar is None else logvar[:count]
        faults = torch.stack([_not_finite(moments[:count]), _not_finite(features, moments[:count])])
        return EncodedViews(tokens[:count], latents[:count], logvar, features, faults.T)

    def _latents(self, moments: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.codebook_sizes:
            return self._network.quantize.indices_to_latents(tokens), None
        return self._network.quantize.posterior(moments)

    def position_matters(self, size: Size) -> bool:
        """Whether an image's place in the batch changes any bit of what becomes of it here."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, 3, *size)
        images = torch.rand(shape, generator=generator) * 2 - 1
        shift = max(1, self.batch_size // 3)
        usual = vars(self.encode(images).arrays())
        shifted = vars(self.encode(images.roll(shift, 0)).arrays())
        return any(
            values is not None and not np.array_equal(np.roll(values, shift, 0), shifted[name])
            for name, values in usual.items()
        )


def _joined(parts: list[EncodedViews]) -> EncodedViews:
    logvars = [part.logvar for part in parts if part.logvar is not None]
    features = [part.features for part in parts if part.features is not None]
    return EncodedViews(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.latents for part in parts]),
        torch.cat(logvars) if logvars else None,
        torch.cat(features) if features else None,
        torch.cat([part.not_finite for part in parts if part.not_finite is not None]),
    )


def _not_finite(values: Tensor | None, like: Tensor | None = None) -> Tensor:
    """Bool [B]: images with a value that is NaN or infinite; none where there are no values."""
    if values is None:
        assert like is not None
        return torch.zeros(len(like), dtype=torch.bool, device=like.device)
    return ~values.flatten(1).isfinite().all(1)


def open_encoder(config: PrecomputeConfig, device: str) -> TokenEncoder:
    """Tokenizer and teacher of a recipe.

    Raises:
        UserError: no complete checkpoint of a tokenizer, no teacher file, or parts that do not
            fit together.
    """
    network = load_tokenizer(config.tokenizer, config.weights).network
    grid = token_grid(config.view.size, network.downsample_ratio)
    teacher = None
    if config.teacher is not None:
        teacher = open_teacher(config.teacher.weights, config.teacher.size, grid, "teacher.weights")
    return TokenEncoder(network, device, config.batch_size, config.precision, teacher)


@contextmanager
def reproducible_kernels(*, tf32: bool = False) -> Iterator[None]:
    """One CPU thread, deterministic cuDNN algorithms chosen without timing, TF32 where wanted."""
    threads = torch.get_num_threads()
    matmul_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
