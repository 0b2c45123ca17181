"""Recipes of `ifsq sample`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ifsq_train.config.base import Config
from ifsq_train.config.kinds import OneOf
from ifsq_train.config.paths import RunPath


class FlowDrawConfig(Config):
    """How DiT's flow is integrated."""

    num_steps: int = Field(default=250, ge=1)
    """Steps of the time grid; dopri5 chooses its own."""
    method: Literal["euler", "midpoint", "heun", "heun3", "dopri5"] = "euler"
    shift: float = Field(default=0.0, ge=0)
    """s > 0 maps the times t to s t / (1 + (s - 1) t); 0 is off."""
    rtol: float = Field(default=1e-3, gt=0)
    atol: float = Field(default=1e-6, gt=0)
    """dopri5: allowed error of a step, of each sample by itself."""
    cfg_start: float = Field(default=0.0, ge=0, le=1)
    cfg_end: float = Field(default=1.0, ge=0, le=1)
    """Guidance acts at times from cfg_start to cfg_end; 0 is noise, 1 is data."""
    guided_channels: int | None = Field(default=None, ge=1)
    """Only the first channels are guided; the released code guides 3. All when not given."""


SamplerConfig = Annotated[Config, OneOf("ifsq.tasks", "sampler")]


class SampleConfig(Config):
    """Draw images from a trained generator."""

    kind: Literal["sample"]
    generator: RunPath
    """Run folder or checkpoint of a generator."""
    tokenizer: RunPath
    """Run folder or checkpoint of the tokenizer its tokens came from."""
    output: RunPath
    """Folder to write (path or s3://)."""
    weights: Literal["averaged", "live"] = "averaged"
    """Of the generator: the averaged weights where the run keeps some, or those being trained."""
    samples_per_class: int = Field(default=100, ge=1)
    classes: tuple[int, ...] | None = None
    """Class indices to draw; all when not given."""
    seed: int = Field(default=0, ge=0)
    """Sample i is drawn from this and i alone, whatever draws it."""
    batch_size: int = Field(default=100, ge=1)
    """Samples drawn together; also what one worker takes at a time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the networks under autocast; guidance and drawing stay fp32."""
    compile: bool = False
    """Compile the decoding step, with CUDA graphs (GPU only)."""
    cfg_scale: float = Field(default=1.0, ge=0)
    """Guidance s: unconditional + s (conditional - unconditional); 1 turns it off."""
    cfg_last: int = Field(default=-1, ge=-1)
    """LlamaGen: guide the first token and those up to one after this; -1 guides all (released
    `cfg_interval`)."""
    temperature: float = Field(default=1.0, gt=0)
    """LlamaGen: divides the logits."""
    top_k: int = Field(default=0, ge=0)
    """LlamaGen: keep the k most likely tokens; 0 keeps all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """LlamaGen: keep the fewest most likely tokens whose probabilities sum to more than p."""
    greedy: bool = False
    """LlamaGen: always take the most likely token."""
    flow: FlowDrawConfig = FlowDrawConfig()
    """DiT: how the flow is integrated."""
    sampler: SamplerConfig | None = Field(default=None, exclude_if=lambda value: value is None)
    """Settings of a plug-in's generator, told apart by its kind."""
    format: Literal["npz", "png", "webp", "tar"] = "npz"
    """npz: one file as evaluators read it (arr_0 uint8 [N, H, W, 3]); png, webp (lossless): one
    file per image; tar: WebDataset shards of one batch each."""
    preview: int = Field(default=64, ge=0)
    """Images shown in preview.png, spread evenly over all; 0 writes none."""
