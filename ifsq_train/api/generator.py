"""`Generator`: images and tokens of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from ifsq_train.api.pictures import OutputType, check_output_type, from_batch
from ifsq_train.api.tokenizer import Tokenizer
from ifsq_train.artifacts.pretrained import TOKENIZER_FOLDER, open_pretrained
from ifsq_train.artifacts.trained import TrainedGenerator, Weights, load_generator
from ifsq_train.config import SampleConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.models.inference import channels_last, optimize_for_inference
from ifsq_train.models.precision import autocast
from ifsq_train.randomness import derive_seed
from ifsq_train.sampling.draw import draw_codes, not_finite, sample_labels

_OWN = ("kind", "generator", "tokenizer", "output", "weights", "classes", "samples_per_class")
_FILES = ("format", "preview")


@dataclass(frozen=True)
class GeneratorSamples:
    """Drawn samples, in the order of the classes asked for.

    Attributes:
        images: a list of PIL images, uint8 [B, H, W, 3], or float [B, 3, H, W], as asked for.
        tokens: int64 [B, h, w, G]; None from generators of latents.
        latents: float32 [B, C, h, w].
        classes: of each sample.
    """

    images: Any
    tokens: Tensor | None
    latents: Tensor
    classes: tuple[int, ...]


class Generator:
    """A trained generator with the tokenizer that its tokens or latents belong to."""

    def __init__(self, trained: TrainedGenerator, tokenizer: Tokenizer) -> None:
        """See `from_pretrained`.

        Raises:
            UserError: trained on the tokens of another tokenizer.
        """
        wanted = trained.spec.tokenizer_fingerprint
        if wanted != tokenizer.fingerprint:
            raise UserError(
                f"the generator was trained on tokens of tokenizer {wanted[:12]}, the one given is"
                f" {tokenizer.fingerprint[:12]}; give the tokenizer its tokens were made with"
            )
        self._trained, self.tokenizer = trained, tokenizer
        optimize_for_inference(trained.network.to(tokenizer.device))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        tokenizer: Tokenizer | str | Path | None = None,
        weights: Weights = "averaged",
        device: str | torch.device | None = None,
    ) -> Generator:
        """Open a generator.

        Args:
            path: run folder or checkpoint folder of a generator, or folder of ``ifsq export``.
            tokenizer: the one its tokens were made with, or where it lies; folders of
                ``ifsq export`` have it with them.
            weights: of the generator; ``averaged``, which are the live ones where no averages were
                kept, or ``live``.
            device: for both networks; the tokenizer's when not given.

        Raises:
            UserError: one is missing or not whole, or they do not belong together.
        """
        if weights not in ("averaged", "live"):
            raise UserError(f"weights: found '{weights}'; use averaged or live")
        trained = load_generator(path, weights)
        if tokenizer is None:
            tokenizer = Path(path) / TOKENIZER_FOLDER
            if not tokenizer.is_dir():
                raise UserError(
                    f"{path} has no tokenizer with it; give tokenizer=, the run or folder of the"
                    " one its tokens were made with"
                )
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = _matching(tokenizer, trained.spec.tokenizer_fingerprint)
        if device is not None:
            tokenizer.to(device)
        return cls(trained, tokenizer)

    def __repr__(self) -> str:
        kind = self._trained.task.kind
        return f"Generator({kind}, {self.num_classes} classes, {self.fingerprint[:12]})"

    @property
    def num_classes(self) -> int:
        """Classes it was trained for, counted from 0."""
        return self._trained.num_classes

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over weights, shape and scaling."""
        return self._trained.fingerprint

    @property
    def network(self) -> torch.nn.Module:
        """The network itself, in eval mode."""
        return self._trained.network

    def to(self, device: str | torch.device) -> Generator:
        """Move both networks; returns itself.

        Raises:
            UserError: no such device here.
        """
        self.tokenizer.to(device)
        self._trained.network.to(device)
        return self

    def sample(
        self,
        classes: int | Sequence[int],
        *,
        seed: int = 0,
        output_type: OutputType = "pil",
        batch_size: int = 32,
        **settings: Any,
    ) -> GeneratorSamples:
        """Draw a sample for each class.

        Sample i is a function of the networks, the seed, i and its class alone, and the one that
        `ifsq sample` draws as its i-th from the same seed, up to rounding.

        Args:
            classes: class of each sample; a class may be named more than once.
            seed: 0 or more.
            output_type: of the images; ``pil``, ``np`` (uint8) or ``pt`` (float, not clamped).
            batch_size: samples drawn together.
            settings: as in recipes of `ifsq sample`: cfg_scale, temperature, top_k, top_p, greedy,
                flow, precision and so on.

        Raises:
            UserError: no or unknown classes, an unknown setting or value, or samples that are not
                finite.
        """
        check_output_type(output_type)
        wanted = (classes,) if isinstance(classes, int) else tuple(int(one) for one in classes)
        if not wanted:
            raise UserError("classes: found none; give at least one")
        config = _config(wanted, {**settings, "seed": seed, "batch_size": batch_size})
        sample_labels(config, self.num_classes, self._trained.classes)
        drawn = [
            self._draw(range(first, min(first + batch_size, len(wanted))), wanted, config)
            for first in range(0, len(wanted), batch_size)
        ]
        images, tokens, latents = zip(*drawn, strict=True)
        return GeneratorSamples(
            from_batch(torch.cat(images), output_type, single=False),
            None if tokens[0] is None else torch.cat(tokens),
            torch.cat(latents).float(),
            wanted,
        )

    @torch.no_grad()
    def _draw(
        self, rows: range, classes: Sequence[int], config: SampleConfig
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images float [B, 3, H, W], tokens and latents of some of the samples."""
        device, network = self.tokenizer.device, self.tokenizer._trained.network
        labels = torch.tensor([classes[row] for row in rows], device=device)
        seeds = [derive_seed(config.seed, "sample", row) for row in rows]
        with autocast(device, config.precision):
            codes = draw_codes(self._trained, network.quantize, labels, seeds, config)
            images = network.decode(channels_last(codes.latents)).float()
        if broken := not_finite(images):
            raise UserError(
                f"sample {rows[broken[0]]} has values that are not finite; one of the networks has"
                " diverged: take another checkpoint"
            )
        return images, codes.tokens, codes.latents


def _matching(path: str | Path, fingerprint: str) -> Tokenizer:
    """The tokenizer at `path`, with those of its weights that have the fingerprint, if any have."""
    averaged = Tokenizer.from_pretrained(path)
    if averaged.fingerprint == fingerprint or open_pretrained(Path(path)) is not None:
        return averaged
    live = Tokenizer.from_pretrained(path, weights="live")
    return live if live.fingerprint == fingerprint else averaged


def _config(classes: tuple[int, ...], settings: dict[str, Any]) -> SampleConfig:
    """The settings checked.

    Raises:
        UserError: an unknown setting or value.
    """
    known = [name for name in SampleConfig.model_fields if name not in (*_OWN, *_FILES)]
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"{unknown[0]}: not a setting of sampling; these are {', '.join(known)}")
    given = {"kind": "sample", "generator": "-", "tokenizer": "-", "output": "-"}
    values = {**given, "classes": list(classes), "samples_per_class": 1, **settings}
    config = validate_recipe(values, source="Generator.sample")
    assert isinstance(config, SampleConfig)
    return config
