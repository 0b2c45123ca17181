"""Recipes: what a run is, typed and checked before anything starts.

A recipe is a YAML file. OmegaConf merges and interpolates it (``recipe.py``); the models
here say what is allowed. Recipes hold science only; the shape of the machine is
``LaunchConfig``. Every model is frozen and refuses unknown keys.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Config(BaseModel):
    """Base of all recipe parts: immutable, no unknown keys, field docstrings in the schema."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


# ---------------------------------------------------------------- data


class ViewConfig(Config):
    """Which crops of an image are seen; the geometry itself is in data_pipelines.views."""

    kind: Literal[
        "raw",
        "adm_center",
        "adm_random",
        "flip_resize_random",
        "ten_crop",
        "center_flip",
        "center_and_random",
    ] = "adm_center"
    image_size: int = Field(ge=1)
    """Side of the square image the model sees, in pixels."""
    num_views: int | None = Field(default=None, ge=1)
    """Views per image, for the kinds that have a free number of them."""
    ratio: float | None = Field(default=None, gt=1.0)
    """Ten-crop: side of the resized image over `image_size` (1.1 or 1.05 in the paper's code)."""
    flip: bool | None = None
    """Random horizontal flips; off for images where left and right differ, such as digits."""


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
    global_batch_size: int = Field(ge=1)
    """Images per optimizer step over all workers."""
    shuffle_window: int = Field(default=16384, ge=1)
    """Samples within which each lane of the order is shuffled."""
    prefetch_batches: int = Field(default=2, ge=1)


DataConfig = Annotated[ImageDataConfig | TokenDataConfig, Field(discriminator="kind")]


# ---------------------------------------------------------------- networks


class FsqConfig(Config):
    """Finite scalar quantization with the bound 2 sigmoid(alpha z) - 1 (paper section 3)."""

    kind: Literal["fsq", "ifsq"]
    levels: tuple[int, ...] = Field(min_length=1)
    """Levels per latent channel; K bits in the paper are 2**K + 1 levels."""
    alpha: float | None = Field(default=None, gt=0)
    """Slope of the bound; 1.6 for ifsq and 2.0 (exactly tanh) for fsq when not given."""
    bound: Literal["simple", "shifted"] = "simple"
    """`shifted` is FSQ's original bound, which also allows even level counts."""
    cells: Literal["paper", "equal_width"] = "paper"
    """`equal_width` gives the two end levels cells as wide as the others."""
    digit_order: Literal["little", "big"] = "little"
    """Which channel is least significant in a token: the first (released code) or the last."""
    factorized_channels: tuple[int, ...] | None = None
    """Channels per token group; one group of all channels when not given."""

    @field_validator("levels")
    @classmethod
    def _levels_at_least_two(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if min(levels) < 2:
            raise ValueError(f"every entry must be at least 2, found {list(levels)}")
        return levels

    @model_validator(mode="after")
    def _consistent(self) -> FsqConfig:
        if self.bound == "simple" and any(level % 2 == 0 for level in self.levels):
            raise ValueError(
                f"bound 'simple' needs odd levels, found {list(self.levels)};"
                " use 2**K + 1 levels or bound: shifted"
            )
        groups = self.factorized_channels
        if groups is not None and (sum(groups) != len(self.levels) or min(groups) < 1):
            raise ValueError(
                f"factorized_channels {list(groups)} must be positive and sum to the"
                f" {len(self.levels)} channels of levels"
            )
        return self

    @property
    def slope(self) -> float:
        """Alpha with the default of the kind filled in."""
        return self.alpha if self.alpha is not None else (1.6 if self.kind == "ifsq" else 2.0)

    @property
    def num_channels(self) -> int:
        """Latent channels the quantizer works on."""
        return len(self.levels)


class VqConfig(Config):
    """Vector quantization with a learned codebook."""

    kind: Literal["vq"]
    codebook_size: int = Field(default=16384, ge=2)
    num_channels: int = Field(default=4, ge=1)
    beta: float = Field(default=0.5, ge=0)
    loss_form: Literal["released", "vqvae"] = "released"
    """`released` weighs the codebook term by beta, `vqvae` the commitment term."""


class LfqConfig(Config):
    """Lookup-free quantization: one bit per channel."""

    kind: Literal["lfq"]
    num_channels: int = Field(default=14, ge=1, le=62)
    entropy_weight: float = Field(default=0.1, ge=0)
    commitment_weight: float = Field(default=0.25, ge=0)


class ContinuousConfig(Config):
    """No quantizer: a deterministic (ae) or Gaussian (vae) bottleneck."""

    kind: Literal["ae", "vae"]
    num_channels: int = Field(default=4, ge=1)
    kl_weight: float = Field(default=0.0, ge=0)


QuantizerConfig = Annotated[
    FsqConfig | VqConfig | LfqConfig | ContinuousConfig, Field(discriminator="kind")
]


class TokenizerConfig(Config):
    """Convolutional autoencoder with a quantizer in the middle."""

    quantizer: QuantizerConfig
    channel_multipliers: tuple[int, ...] = Field(default=(1, 1, 2, 4, 4), min_length=1)
    """Width of each level over base_channels; one downsampling between levels (f16: five)."""
    base_channels: int = Field(default=128, ge=1)
    num_res_blocks: int = Field(default=2, ge=1)
    """Residual blocks per encoder level; the decoder has one more."""
    z_channels: int = Field(default=4, ge=1)
    """Channels between the encoder and the 1x1 convolution before the quantizer."""
    norm_groups: int = Field(default=32, ge=1)

    @property
    def downsample_ratio(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @model_validator(mode="after")
    def _groups_divide(self) -> TokenizerConfig:
        widths = [self.base_channels * m for m in self.channel_multipliers]
        if bad := [w for w in widths if w % self.norm_groups]:
            raise ValueError(
                f"norm_groups={self.norm_groups} must divide every width, found {bad};"
                " change base_channels, channel_multipliers or norm_groups"
            )
        return self


class LlamaGenConfig(Config):
    """Decoder-only class-conditional transformer over image tokens."""

    size: Literal["S", "B", "L", "XL", "XXL", "XXXL", "custom"] = "custom"
    num_layers: int | None = Field(default=None, ge=1)
    num_heads: int | None = Field(default=None, ge=1)
    dim: int | None = Field(default=None, ge=8)
    num_classes: int = Field(default=1000, ge=1)
    class_dropout: float = Field(default=0.1, ge=0, le=1)
    """Chance of training a sample on the null class, for guidance."""
    token_dropout: float = Field(default=0.1, ge=0, lt=1)
    residual_dropout: float = Field(default=0.1, ge=0, lt=1)
    feed_forward_dropout: float = Field(default=0.1, ge=0, lt=1)
    factorized_layers: int = Field(default=2, ge=1)
    """Blocks of the small head that predicts the groups of one position."""

    @model_validator(mode="after")
    def _custom_is_complete(self) -> LlamaGenConfig:
        shape = (self.num_layers, self.num_heads, self.dim)
        if self.size == "custom" and None in shape:
            raise ValueError("size 'custom' needs num_layers, num_heads and dim; or name a size")
        if self.size != "custom" and shape != (None, None, None):
            raise ValueError(
                f"size '{self.size}' fixes num_layers, num_heads and dim;"
                " drop them or use size: custom"
            )
        if self.dim and self.num_heads and (self.dim // self.num_heads) % 4:
            raise ValueError(
                f"dim / num_heads must be a multiple of 4, found {self.dim} / {self.num_heads}"
            )
        return self


# ---------------------------------------------------------------- tasks


class AdversarialConfig(Config):
    """PatchGAN discriminator and its schedule."""

    start_step: int = Field(default=50_000, ge=0)
    weight: float = Field(default=0.5, ge=0)
    """Multiplies the adaptive weight."""
    adaptive_max: float = Field(default=1e6, gt=0)
    loss: Literal["hinge", "vanilla"] = "hinge"
    num_layers: int = Field(default=4, ge=1)
    base_channels: int = Field(default=64, ge=1)
    schedule: Literal["alternate", "both"] = "alternate"
    """`alternate` (released): odd steps train the discriminator only; `both`: each step both."""


class PerceptualConfig(Config):
    """LPIPS term; off unless weights are given."""

    weights: str | None = None
    """Local file with VGG16 backbone and linear heads; the term is off without it."""
    weight: float = Field(default=1.0, ge=0)


class TokenizerTaskConfig(Config):
    """Train an image tokenizer: reconstruction, perceptual and adversarial terms."""

    kind: Literal["tokenizer"]
    model: TokenizerConfig
    pixel_loss: Literal["l1", "l2"] = "l1"
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig | None = AdversarialConfig()
    codebook_weight: float = Field(default=1.0, ge=0)
    """Weight of the quantizer's own loss (VQ, LFQ)."""


class AutoregressiveTaskConfig(Config):
    """Train LlamaGen on image tokens."""

    kind: Literal["autoregressive"]
    model: LlamaGenConfig
    group_weights: tuple[float, ...] | None = None
    """Weights of the groups' cross-entropies for factorized tokens; 1 each when not given."""


TaskConfig = Annotated[TokenizerTaskConfig | AutoregressiveTaskConfig, Field(discriminator="kind")]


# ---------------------------------------------------------------- the run


class OptimConfig(Config):
    """AdamW and its learning-rate schedule for one network."""

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm; null turns clipping off."""
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    final_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Cosine: learning rate at the last step over `lr`."""


class StrategyConfig(Config):
    """How the networks are spread over the workers."""

    kind: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    """Which of optimizer state, gradients and parameters ZeRO partitions (deepspeed only)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: activations under autocast; parameters, gradients and optimizer stay fp32."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Largest batch one worker takes at once; gradients of several are accumulated."""


class CheckpointConfig(Config):
    """When the run's state is saved and how much of it is kept."""

    every_steps: int = Field(default=1000, ge=1)
    keep_last: int = Field(default=2, ge=1)
    """Complete checkpoints kept besides the newest are at most this many minus one."""


class TrainConfig(Config):
    """A training run."""

    kind: Literal["train"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: str
    """Folder of the run: checkpoints, metrics, log, result."""
    seed: int = Field(default=0, ge=0)
    steps: int = Field(ge=1)
    """Optimizer steps; a resumed run ends at the same number."""
    data: DataConfig
    task: TaskConfig
    optim: dict[str, OptimConfig]
    """By network: `autoencoder` and `discriminator` for tokenizers, `generator` otherwise."""
    strategy: StrategyConfig = StrategyConfig()
    ema_decay: float | None = Field(default=0.9999, ge=0, lt=1)
    """Decay of the averaged weights; null turns averaging off."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every_steps: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.task.kind == "tokenizer":
            adversarial = self.task.adversarial is not None
            needed = {"autoencoder", "discriminator"} if adversarial else {"autoencoder"}
            data_kind = "images"
        else:
            needed, data_kind = {"generator"}, "tokens"
        if set(self.optim) != needed:
            raise ValueError(
                f"optim has {sorted(self.optim)}, the task trains {sorted(needed)};"
                " give exactly one entry for each"
            )
        if self.data.kind != data_kind:
            raise ValueError(
                f"task '{self.task.kind}' reads data of kind '{data_kind}',"
                f" found '{self.data.kind}'"
            )
        return self


class PrecomputeConfig(Config):
    """Encode a dataset into token shards, once."""

    kind: Literal["precompute"]
    source: str
    """Image dataset folder (path or s3://)."""
    tokenizer: str
    """Run folder or checkpoint of a tokenizer; its averaged weights are used if it has any."""
    output: str
    """Token dataset folder to write (path or s3://)."""
    view: ViewConfig
    view_seed: int = Field(default=0, ge=0)
    samples_per_shard: int = Field(default=4096, ge=1)
    batch_size: int = Field(default=32, ge=1)
    decoder: Literal["auto", "cpu", "dali"] = "auto"
    max_bad_samples: int = Field(default=100, ge=0)


class SampleConfig(Config):
    """Draw images from a trained generator."""

    kind: Literal["sample"]
    generator: str
    """Run folder or checkpoint of a generator."""
    tokenizer: str
    """Run folder or checkpoint of the tokenizer its tokens came from."""
    output: str
    samples_per_class: int = Field(default=100, ge=1)
    classes: tuple[int, ...] | None = None
    """Class indices to draw; all when not given."""
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=100, ge=1)
    cfg_scale: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


class EvaluateConfig(Config):
    """Measure a tokenizer's reconstructions, or samples against a reference dataset."""

    kind: Literal["evaluate"]
    tokenizer: str
    """Run folder or checkpoint; reconstructs the data, and its encoder is the default feature
    network of the Frechet distance."""
    data: str
    """Held-out image dataset folder."""
    view: ViewConfig
    output: str
    """Result JSON to write."""
    samples: str | None = None
    """Folder of `ifsq sample`; adds the Frechet distance of samples against the data."""
    batch_size: int = Field(default=64, ge=1)


RecipeConfig = Annotated[
    TrainConfig | PrecomputeConfig | SampleConfig | EvaluateConfig, Field(discriminator="kind")
]


class LaunchConfig(Config):
    """The shape of the machine a run gets; never part of a recipe."""

    num_workers: int = Field(default=1, ge=1)
    gpus_per_worker: int = Field(default=0, ge=0)
    cpus_per_worker: float = Field(default=1, gt=0)
    address: str | None = None
    """Ray cluster to join; a local one is started when not given."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts of the worker group before the run is given up."""


def to_dict(config: Config) -> dict[str, Any]:
    """The plain, JSON-able form a checkpoint or a worker receives."""
    return config.model_dump(mode="json")
