"""Recipes of `ifsq precompute`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ifsq_train.config.base import Config
from ifsq_train.config.data import ViewConfig
from ifsq_train.config.paths import RunPath
from ifsq_train.config.sources import ImagePlace


class TeacherFeaturesConfig(Config):
    """Features of a frozen DINOv2 teacher, stored beside the tokens of the same view."""

    weights: RunPath
    """Local file of a published DINOv2 backbone without registers."""
    size: Literal["S", "B", "L"] = "B"
    precision: Literal["fp32", "fp16", "int8"] = "fp16"
    """int8: with one scale per token; a quarter of fp32's bytes."""


class PrecomputeConfig(Config):
    """Encode a dataset into token shards, once."""

    kind: Literal["precompute"]
    source: ImagePlace
    """Image dataset folder (path or s3://)."""
    tokenizer: RunPath
    """Run folder or checkpoint of a tokenizer; see `weights`."""
    output: RunPath
    """Token dataset folder to write (path or s3://)."""
    view: ViewConfig
    view_seed: int = Field(default=0, ge=0)
    samples_per_shard: int = Field(default=4096, ge=1)
    batch_size: int = Field(default=32, ge=1)
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the encoder's convolutions: tf32 (GPUs only; a CPU computes fp32) rounds their inputs to
    10 bits, bf16 (autocast) to 7; the bound and the rounding stay fp32."""
    weights: Literal["averaged", "live"] = "averaged"
    """Of the tokenizer: the averaged weights where the run keeps some, or those being trained."""
    latents: Literal["auto", "fp16", "fp32"] = "auto"
    """Also store latents; auto does so (in fp32) where there are no tokens to take them from."""
    teacher: TeacherFeaturesConfig | None = None
    decoder: Literal["auto", "cpu", "dali"] = "auto"
    max_bad_samples: int = Field(default=100, ge=0)
