"""Recipe parts: what is read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_pipelines.views import AnyViewSpec
from ifsq_train.config.base import Config

# Which crops of an image are seen; the kinds and their options are in data_pipelines.views.
ViewConfig = Annotated[AnyViewSpec, Field(discriminator="kind")]


class ImageDataConfig(Config):
    """Batches of decoded images from a packed or indexed dataset."""

    kind: Literal["images"] = "images"
    url: str
    """Dataset folder written by `ifsq data pack` or `ifsq data index` (path or s3://)."""
    view: ViewConfig
    global_batch_size: int = Field(ge=1)
    """Images per optimizer step over all workers."""
    shuffle_window: int = Field(default=16384, ge=1)
    """Samples within which each lane of the order is shuffled."""
    decoder: Literal["auto", "cpu", "dali"] = "auto"
    """JPEG decoder: DALI where it is installed and a GPU is present, else the CPU path."""
    max_bad_samples: int = Field(default=100, ge=0)
    """Unreadable images allowed over the run before it fails."""
    prefetch_batches: int = Field(default=2, ge=1)
    """Batches decoded ahead of the step that needs them."""
    decode_threads: int = Field(default=1, ge=1)


class TokenDataConfig(Config):
    """Batches of precomputed tokens from the folder `ifsq precompute` wrote."""

    kind: Literal["tokens"] = "tokens"
    url: str
    """Token dataset folder (path or s3://)."""
    tokenizer: str | None = None
    """Checkpoint the tokens must come from; when given, tokens of another are refused."""
    images: str | None = None
    """Image dataset the tokens were made of; read only where a REPA teacher is named, which then
    sees the pixels of the very views the tokens show."""
    global_batch_size: int = Field(ge=1)
    """Images per optimizer step over all workers."""
    shuffle_window: int = Field(default=16384, ge=1)
    """Samples within which each lane of the order is shuffled."""
    prefetch_batches: int = Field(default=2, ge=1)


DataConfig = Annotated[ImageDataConfig | TokenDataConfig, Field(discriminator="kind")]
