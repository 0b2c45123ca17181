"""`Tokenizer`: images to tokens or latents, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from ifsq_train.api.pictures import (
    OutputType,
    Pictures,
    check_output_type,
    check_sides,
    from_batch,
    to_batch,
)
from ifsq_train.artifacts.exported import open_tokenizer
from ifsq_train.artifacts.trained import TrainedTokenizer, Weights
from ifsq_train.config import TokenizerConfig

_MOST_ENTRIES = 2**24


class Tokenizer:
    """A trained tokenizer, ready for use.

    Attributes:
        device: where it computes; see `to`.
    """

    def __init__(self, trained: TrainedTokenizer) -> None:
        self._trained = trained
        self.device = torch.device("cpu")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        weights: Weights = "averaged",
        device: str | torch.device = "cpu",
    ) -> Tokenizer:
        """Open a tokenizer.

        Args:
            path: run folder, checkpoint folder, or folder written by ``ifsq export``.
            weights: ``averaged``, which are the live ones where no averages were kept, or ``live``.
            device: see `to`.

        Raises:
            UserError: no tokenizer there, or not whole.
        """
        if weights not in ("averaged", "live"):
            raise UserError(f"weights: found '{weights}'; use averaged or live")
        return cls(open_tokenizer(path, weights)).to(device)

    def __repr__(self) -> str:
        kind = self.config.quantizer.kind
        return f"Tokenizer({kind}, f{self.downsample_ratio}, {self.fingerprint[:12]})"

    @property
    def config(self) -> TokenizerConfig:
        """Its architecture."""
        return self._trained.config

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over weights and architecture; token datasets carry it."""
        return self._trained.fingerprint

    @property
    def step(self) -> int:
        """Optimizer steps of the run it comes from."""
        return self._trained.step

    @property
    def network(self) -> torch.nn.Module:
        """The network itself, float32 and in eval mode."""
        return self._trained.network

    @property
    def downsample_ratio(self) -> int:
        """Pixels per token and side."""
        return self._trained.network.downsample_ratio

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Entries of each token group; empty where there are no tokens (ae, vae)."""
        return tuple(self._trained.network.quantize.codebook_sizes)

    @property
    def codebook(self) -> tuple[Tensor, ...]:
        """The latents of every token: float32 [entries, channels] for each token group.

        Empty where there are no tokens.

        Raises:
            UserError: a group of more than 2**24 entries, or one whose channels are not its own.
        """
        sizes, quantizer = self.codebook_sizes, self._trained.network.quantize
        if large := [size for size in sizes if size > _MOST_ENTRIES]:
            raise UserError(
                f"codebook: a group has {large[0]:,} entries; written out are up to"
                f" {_MOST_ENTRIES:,}. Decode the tokens you have instead"
            )
        table = quantizer.digit_table()
        if table is None and len(sizes) > 1:
            raise UserError(
                f"codebook: the {len(sizes)} groups of a {type(quantizer).__name__} share their"
                " channels; decode whole tokens instead"
            )
        widths = [quantizer.num_channels] if table is None else list(table.groups)
        found, first = [], 0
        for group, (size, width) in enumerate(zip(sizes, widths if sizes else [], strict=True)):
            indices = torch.zeros(1, size, 1, len(sizes), dtype=torch.int64, device=self.device)
            indices[0, :, 0, group] = torch.arange(size, device=self.device)
            with torch.no_grad():
                latents = quantizer.indices_to_latents(indices)[0, :, :, 0]
            found.append(latents[first : first + width].t().float().contiguous())
            first += width
        return tuple(found)

    def to(self, device: str | torch.device) -> Tokenizer:
        """Move the network; results are made there. Returns itself.

        Raises:
            UserError: no such device here.
        """
        try:
            self._trained.network.to(device)
        except (RuntimeError, AssertionError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"device '{device}' cannot be used here: {first}") from None
        self.device = torch.device(device)
        return self

    @torch.no_grad()
    def encode(
        self,
        images: Pictures,
        *,
        to: Literal["auto", "tokens", "latents"] = "auto",
        batch_size: int = 32,
    ) -> Tensor:
        """Tokens or latents of images.

        Args:
            images: one or many: PIL images, uint8 arrays [H, W, 3] or [B, H, W, 3], float tensors
                [3, H, W] or [B, 3, H, W] in [-1, 1], or a list of single ones of equal size;
                grey ones have 1 channel. A grey tokenizer sees the luminance.
            to: ``auto`` gives tokens where the tokenizer has them, else latents.
            batch_size: images that pass the network together.

        Returns:
            Tokens int64 [B, h, w, G] with G token groups, or latents float32 [B, C, h, w], on
            `device`; without B for a single image. A VAE's latents are the means.

        Raises:
            UserError: no images, images of another kind, range or size, or tokens of a tokenizer
                that has none.
        """
        wanted = self._wanted(to)
        _check_batch_size(batch_size)
        batch, single = to_batch(images)
        check_sides(batch, self.downsample_ratio)
        found = []
        # Kernels, and so the last bit, differ by layout: the same values give the same result.
        for part in batch.contiguous().split(batch_size):
            quantized = self._trained.network.encode(part.to(self.device))
            found.append(quantized.indices if wanted == "tokens" else quantized.latents.float())
        whole = torch.cat(found)
        return whole[0] if single else whole

    @torch.no_grad()
    def decode(self, codes: Any, *, output_type: OutputType = "pil", batch_size: int = 32) -> Any:
        """Images of tokens or latents.

        Args:
            codes: what `encode` gives, as tensor or array: integers are tokens [B, h, w, G] or
                [h, w, G], floats are latents [B, C, h, w] or [C, h, w].
            output_type: ``pil``: PIL images; ``np``: uint8 arrays [H, W, 3]; ``pt``: float tensors
                [3, H, W], nominally in [-1, 1] and not clamped. A grey tokenizer gives PIL images
                of mode L, and 1 in place of 3.
            batch_size: images that pass the network together.

        Returns:
            A single image for codes without B; else a list of PIL images, or an array or tensor
            with B in front.

        Raises:
            UserError: codes of another shape or kind, a token outside its codebook, or an unknown
                `output_type`.
        """
        check_output_type(output_type)
        _check_batch_size(batch_size)
        given = torch.as_tensor(codes)
        latents, single = self._latents(given)
        rows = latents.contiguous().split(batch_size)
        parts = [self._trained.network.decode(part) for part in rows]
        return from_batch(torch.cat(parts), output_type, single)

    def _wanted(self, to: str) -> str:
        if to not in ("auto", "tokens", "latents"):
            raise UserError(f"to: found '{to}'; use auto, tokens or latents")
        if to == "tokens" and not self.codebook_sizes:
            kind = self.config.quantizer.kind
            raise UserError(f"a tokenizer of kind '{kind}' has no tokens; use to='latents'")
        if to == "auto":
            return "tokens" if self.codebook_sizes else "latents"
        return to

    def _latents(self, codes: Tensor) -> tuple[Tensor, bool]:
        """Latents float32 [B, C, h, w] on the device, and whether they are of a single image."""
        quantizer = self._trained.network.quantize
        channels, groups = quantizer.num_channels, len(self.codebook_sizes)
        tokens = not codes.is_floating_point()
        expected = f"tokens are integers [B, h, w, {groups}], " if groups else ""
        expected += f"latents floats [B, {channels}, h, w], B may be left out"
        fits = codes.dim() in (3, 4) and codes.numel() and not codes.is_complex()
        width = codes.shape[-1 if tokens else -3] if fits else 0
        if codes.dtype == torch.bool or width != (groups if tokens else channels):
            raise UserError(f"codes: found {codes.dtype} {list(codes.shape)}; {expected}")
        single = codes.dim() == 3
        batch = (codes[None] if single else codes).to(self.device)
        if not tokens:
            return batch.float(), single
        sizes = torch.tensor(self.codebook_sizes, device=self.device)
        outside = (batch.long() < 0) | (batch.long() >= sizes)
        if bool(outside.any()):
            raise UserError(
                f"codes: found token {int(batch[outside][0])}; the codebooks have"
                f" {', '.join(map(str, self.codebook_sizes))} entries, counted from 0"
            )
        return quantizer.indices_to_latents(batch.long()), single


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}; use 1 or more")
