"""What a generator's step gets from networks that are not trained: tokens, latents, features."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data_pipelines.tokens.latents import LatentStatistics
from ifsq_train.data.batch import Batch
from ifsq_train.losses.alignment import alignment_loss
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.plain import plain_paths
from ifsq_train.models.precision import autocast
from ifsq_train.models.quantizers.base import Quantizer, QuantizerOutput
from ifsq_train.tasks.base import StepInfo


class ImageEncoder:
    """A frozen tokenizer that encodes a batch's images on the fly.

    Args:
        network: used in eval mode.
        precision: of its convolutions; with fp32 the tokens are those of `ifsq precompute`.
    """

    def __init__(self, network: Tokenizer, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        self.network = network.eval().requires_grad_(False)
        self._precision = precision

    @torch.no_grad()
    def __call__(self, images: Tensor) -> QuantizerOutput:
        """Images float [B, 3, H, W] in [-1, 1]; latents come back in fp32."""
        with autocast(images.device, self._precision):
            return self.network.encode(images)


class TokenInputs:
    """Tokens of a batch: those it has, or those of its images.

    Args:
        encoder: needed for batches of images.
    """

    def __init__(self, encoder: ImageEncoder | None = None) -> None:
        self._encoder = encoder

    def auxiliary(self) -> dict[str, nn.Module]:
        """Frozen networks by name."""
        return {} if self._encoder is None else {"tokenizer": self._encoder.network}

    def __call__(self, batch: Batch) -> Tensor:
        """int64 [B, T], or [B, T, G] for factorized tokens; row by row over the grid."""
        if self._encoder is None:
            return batch.inputs
        indices = self._encoder(batch.inputs).indices.flatten(1, 2)
        return indices[..., 0] if indices.shape[-1] == 1 else indices


class LatentInputs:
    """Scaled latents of a batch, from its images, its tokens, or stored as they are.

    Args:
        scaling: mean and standard deviation the flow's data is brought to 0 and 1 with.
        grid: height and width in latent cells.
        encoder: for batches of images.
        quantizer: for batches of tokens; gives the latents they stand for.
    """

    def __init__(
        self,
        scaling: LatentStatistics,
        grid: tuple[int, int],
        *,
        encoder: ImageEncoder | None = None,
        quantizer: Quantizer | None = None,
    ) -> None:
        assert encoder is None or quantizer is None
        self.scaling, self.grid = scaling, grid
        self._encoder, self._quantizer = encoder, quantizer
        self._constants: tuple[Tensor, Tensor] | None = None

    def auxiliary(self) -> dict[str, nn.Module]:
        """Frozen networks by name."""
        if self._encoder is not None:
            return {"tokenizer": self._encoder.network}
        return {} if self._quantizer is None else {"quantizer": self._quantizer}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """fp32 [B, C, h, w], whatever precision the run has.

        In the released code continuous latents, and with them noise and times, are bf16 while
        quantized ones are fp32, so that a comparison of the two compares precisions too.
        """
        latents = batch.inputs
        if self._encoder is not None:
            latents = self._encoder(batch.inputs).latents
        elif self._quantizer is not None:
            indices = batch.inputs.view(len(batch), *self.grid, -1)
            latents = self._quantizer.indices_to_latents(indices)
        wide = latents.float()
        if self._constants is None or self._constants[0].device != wide.device:
            # Once: made anew every step they would be a copy the host waits for.
            self._constants = self.scaling.constants(wide)
        mean, scale = self._constants
        return (wide - mean) / scale


class Alignment:
    """The REPA term of a step.

    Args:
        teacher: frozen, images to patch features; None takes the features stored in the batch.
        weight: lambda.
        precision: of the teacher's forward pass; ``run`` is that of the strategy.
        compiled: the loss through torch.compile, as the networks.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        weight: float,
        precision: Literal["run", "fp32", "bf16"] = "run",
        *,
        compiled: bool = False,
    ) -> None:
        self.weight, self._compiled = weight, compiled
        self._teacher, self._precision = teacher, precision

    def auxiliary(self) -> dict[str, nn.Module]:
        """The teacher, if it runs here."""
        return {} if self._teacher is None else {"teacher": self._teacher}

    def loss(self, projections: tuple[Tensor, ...], batch: Batch, info: StepInfo) -> Tensor:
        """Minus the mean cosine, fp32 scalar in [-1, 1]; not weighted."""
        targets = [self.targets(batch, info)]
        way = "plain" if plain_paths() else "compiled" if self._compiled else "fused"
        return alignment_loss(projections, targets, way=way, weight=self.weight)

    @torch.no_grad()
    def targets(self, batch: Batch, info: StepInfo) -> Tensor:
        """Teacher features [B, T, Z] of the batch's own views; no graph is ever kept of them."""
        if self._teacher is None:
            assert batch.features is not None, "the data was opened without its features"
            return batch.features
        images = batch.inputs if batch.images is None else batch.images
        with self._autocast(info, images.device.type):
            return self._teacher(images)

    def _autocast(self, info: StepInfo, device: str) -> AbstractContextManager[Any]:
        if self._precision == "run":
            return info.strategy.autocast()
        return autocast(device, self._precision) if self._precision == "bf16" else nullcontext()
