"""What a generator speaks: the tokens or latents it is trained on and makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

MAX_GRID = 65_536
"""Most tokens or latent cells on a side."""


@dataclass(frozen=True)
class GeneratorSpec:
    """Everything of its tokens or latents that a generator's network and its users need.

    The one owner of these facts: made of a token dataset, of a tokenizer or of a checkpoint.

    Attributes:
        grid: height and width in tokens or latent cells.
        codebook_sizes: entries of each token group; empty for continuous latents.
        latent_channels: C of the latents; 0 where not known (tokens alone).
        tokenizer_fingerprint: of the tokenizer that decodes what is made; empty where not known.
        latent_mean, latent_std: per channel, what latents are scaled with: network values times
            std plus mean are the tokenizer's. None until they are known.
    """

    grid: tuple[int, int]
    codebook_sizes: tuple[int, ...] = ()
    latent_channels: int = 0
    tokenizer_fingerprint: str = ""
    latent_mean: tuple[float, ...] | None = None
    latent_std: tuple[float, ...] | None = None

    def speaking(self, what: Literal["tokens", "latents"]) -> GeneratorSpec:
        """Only the facts of tokens, or only those of latents."""
        if what == "latents":
            return replace(self, codebook_sizes=())
        return replace(self, latent_channels=0, latent_mean=None, latent_std=None)

    def scaled(self, mean: tuple[float, ...], std: tuple[float, ...]) -> GeneratorSpec:
        """With these statistics of the latents, one number per channel."""
        return replace(self, latent_mean=mean, latent_std=std)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form a checkpoint's header stores; `from_dict` reads it back."""
        stored: dict[str, Any] = {}
        if self.tokenizer_fingerprint:
            stored["tokenizer_fingerprint"] = self.tokenizer_fingerprint
        if self.codebook_sizes:
            stored["codebook_sizes"] = list(self.codebook_sizes)
        if self.latent_channels:
            stored["latent_channels"] = self.latent_channels
        stored["grid"] = list(self.grid)
        if self.latent_mean is not None and self.latent_std is not None:
            stored["latent_mean"] = list(self.latent_mean)
            stored["latent_std"] = list(self.latent_std)
        return stored

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> GeneratorSpec:
        """The spec in a checkpoint's header.

        Raises:
            KeyError, TypeError, ValueError: no generator's header, or no grid that a network has.
        """
        height, width = stored["grid"]
        if not all(isinstance(side, int) and 1 <= side <= MAX_GRID for side in (height, width)):
            raise ValueError(f"a grid of {height} x {width}; sides are 1 to {MAX_GRID}")
        mean, std = stored.get("latent_mean"), stored.get("latent_std")
        return GeneratorSpec(
            (int(height), int(width)),
            tuple(stored.get("codebook_sizes", ())),
            int(stored.get("latent_channels", 0)),
            stored.get("tokenizer_fingerprint", ""),
            None if mean is None else tuple(mean),
            None if std is None else tuple(std),
        )
