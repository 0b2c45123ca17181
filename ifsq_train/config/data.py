"""Recipe parts: what is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_pipelines.views import AnyViewSpec
from ifsq_train.config.base import Config
from ifsq_train.config.kinds import OneOf
from ifsq_train.config.paths import RunPath
from ifsq_train.config.sources import ImagePlace

# Which crops of an image are seen; the kinds and their options are in data_pipelines.views.
ViewConfig = Annotated[AnyViewSpec, OneOf("ifsq.views")]


MACHINE_KEYS = ("decode_actors", "decode_threads", "prefetch_batches", "reader_threads")
"""Keys that recipes and checkpoints of earlier releases have under `data`."""


def without_machine_keys(values: Any) -> Any:
    """The values of a data part without `MACHINE_KEYS`, which are of `LoadingConfig` now."""
    if not isinstance(values, dict):
        return values
    return {key: value for key, value in values.items() if key not in MACHINE_KEYS}


class MixedDatasetConfig(Config):
    """One dataset of a mixture."""

    url: ImagePlace
    """Dataset folder written by `ifsq data pack` or `ifsq data index` (path or s3://)."""
    weight: float = Field(gt=0)
    """Share of every batch, relative to the other weights: 3 and 1 are three quarters and one."""


class ImageDataConfig(Config):
    """Batches of decoded images from a packed or indexed dataset, or from a mixture of several."""

    kind: Literal["images"] = "images"
    url: ImagePlace | None = None
    """Dataset folder written by `ifsq data pack` or `ifsq data index` (path or s3://)."""
    mix: tuple[MixedDatasetConfig, ...] = ()
    """Datasets to draw from by weight, instead of `url`."""
    view: ViewConfig
    global_batch_size: int = Field(ge=1)
    """Images per optimizer step over all workers."""
    shuffle_window: int = Field(default=16384, ge=1)
    """Samples within which each lane of the order is shuffled."""
    decoder: Literal["auto", "cpu", "dali"] = "auto"
    """JPEG decoder: DALI where it is installed and a GPU is present, else the CPU path."""
    max_bad_samples: int = Field(default=100, ge=0)
    """Unreadable images allowed over the run before it fails."""

    @model_validator(mode="before")
    @classmethod
    def _machine_elsewhere(cls, values: Any) -> Any:
        return without_machine_keys(values)

    @model_validator(mode="after")
    def _one_source(self) -> ImageDataConfig:
        if (self.url is None) == (not self.mix):
            found = "both" if self.mix else "neither"
            raise ValueError(f"found {found} of url and mix; give exactly one of them")
        return self

    @property
    def urls(self) -> tuple[str | Config, ...]:
        """All datasets that are read."""
        if self.url is not None:
            return (self.url,)
        return tuple(part.url for part in self.mix)


class TokenDataConfig(Config):
    """Batches of precomputed tokens from the folder `ifsq precompute` wrote."""

    kind: Literal["tokens"] = "tokens"
    url: RunPath
    """Token dataset folder (path or s3://)."""
    tokenizer: RunPath | None = None
    """Checkpoint the tokens must come from; when given, tokens of another are refused."""
    images: RunPath | None = None
    """Image dataset the tokens were made of; read only where a REPA teacher is named, which then
    sees the pixels of the very views the tokens show."""
    global_batch_size: int = Field(ge=1)
    """Images per optimizer step over all workers."""
    shuffle_window: int = Field(default=16384, ge=1)
    """Samples within which each lane of the order is shuffled."""

    @model_validator(mode="before")
    @classmethod
    def _machine_elsewhere(cls, values: Any) -> Any:
        return without_machine_keys(values)


DataConfig = Annotated[ImageDataConfig | TokenDataConfig, Field(discriminator="kind")]
