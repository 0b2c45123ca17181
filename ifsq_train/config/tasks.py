"""Recipe parts: what is trained and with what losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import override

from ifsq_train.config.base import Config
from ifsq_train.config.classifier import ClassifierTaskConfig
from ifsq_train.config.data import DataConfig
from ifsq_train.config.kinds import OneOf
from ifsq_train.config.networks import DiTConfig, LlamaGenConfig, TokenizerConfig
from ifsq_train.config.paths import RunPath
from ifsq_train.config.task_base import TaskConfigBase

AUTOENCODER, DISCRIMINATOR, GENERATOR = "autoencoder", "discriminator", "generator"
"""Names of the trained networks: keys of `optim`, and of a checkpoint's tensors."""


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

    weights: RunPath | tuple[RunPath, ...] | None = None
    """Local file with VGG16 backbone and linear heads, or a list of files that have them together
    (`ifsq weights check`); the term is off without it."""
    weight: float = Field(default=1.0, ge=0)


class TokenizerTaskConfig(TaskConfigBase):
    """Train an image tokenizer: reconstruction, perceptual and adversarial terms."""

    kind: Literal["tokenizer"]
    model: TokenizerConfig
    pixel_loss: Literal["l1", "l2"] = "l1"
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig | None = AdversarialConfig()
    codebook_weight: float = Field(default=1.0, ge=0)
    """Weight of the quantizer's own loss (VQ, LFQ)."""

    @override
    def networks(self) -> set[str]:
        return {AUTOENCODER} if self.adversarial is None else {AUTOENCODER, DISCRIMINATOR}

    @override
    def check_data(self, data: DataConfig) -> None:
        if data.kind != "images":
            raise ValueError(f"task 'tokenizer' reads data of kind 'images', found '{data.kind}'")


class RepaConfig(Config):
    """Align hidden states with a frozen teacher's patch features (REPA, paper section 5)."""

    teacher: RunPath | None = None
    """Local weight file of a DINOv2 backbone, with or without registers, or, with
    `classifier_features`, the run folder of a classifier. When not given, the features stored in
    the token dataset are used (`ifsq precompute` with a teacher)."""
    size: Literal["S", "B", "L"] = "B"
    """Which DINOv2 the file or the stored features are of: 384, 768 or 1024 features."""
    classifier_features: int | None = Field(default=None, ge=1)
    """Width of the classifier's features where `teacher` is one (task `classifier`)."""
    weight: float = Field(gt=0)
    """Lambda: 2.0 for LlamaGen, 0.5 for DiT in the paper."""
    depth: int = Field(default=8, ge=0)
    """Block (1-based) whose output is aligned; 0 is the embedding (LlamaGen only)."""
    projector_width: int = Field(default=2048, ge=1)
    precision: Literal["run", "fp32", "bf16"] = "run"
    """Of the teacher's forward pass; `run` is that of the strategy."""


class GeneratorTaskConfig(TaskConfigBase):
    """What the tasks of all generators have.

    Subclasses have fields `kind` and `model`, the latter with `num_classes` and `class_dropout`;
    those that speak latents have `latents: LatentConfig` too.
    """

    speaks: ClassVar[Literal["tokens", "latents"]]
    """What the network is trained on and makes."""

    if TYPE_CHECKING:
        # Fields of the subclasses; declared here they would come first in every stored recipe.
        kind: Any
        model: Any
        latents: Any

    tokenizer: RunPath | None = None
    """Run folder or checkpoint of the frozen tokenizer that encodes images on the fly; needed with
    data of kind images, and with tokens whose codebook is learned (vq) if latents are wanted."""
    tokenizer_precision: Literal["fp32", "bf16"] = "fp32"
    """Of its convolutions; the bound and the rounding are fp32 always. bf16 is faster, but a few
    per cent of the tokens then differ from those `ifsq precompute` and sampling make."""
    repa: RepaConfig | None = None

    @override
    def networks(self) -> set[str]:
        return {GENERATOR}

    @override
    def check_data(self, data: DataConfig) -> None:
        if data.kind == "images" and self.tokenizer is None:
            raise ValueError(
                f"task '{self.kind}' on data of kind 'images' needs task.tokenizer to encode"
                " them; name one, or use data of kind 'tokens'"
            )
        if self.repa is None:
            return
        teacher = self.repa.teacher
        if data.kind == "images" and teacher is None:
            raise ValueError(
                "task.repa on data of kind 'images' needs task.repa.teacher, a DINOv2 weight file;"
                " only token datasets can have stored features"
            )
        if data.kind == "tokens" and teacher is not None and data.images is None:
            raise ValueError(
                "task.repa.teacher needs pixels: name data.images, the dataset the tokens were made"
                " of, or drop task.repa.teacher to use features stored with the tokens"
            )


class AutoregressiveTaskConfig(GeneratorTaskConfig):
    """Train LlamaGen on image tokens."""

    speaks: ClassVar[Literal["tokens", "latents"]] = "tokens"
    kind: Literal["autoregressive"]
    model: LlamaGenConfig
    group_weights: tuple[float, ...] | None = None
    """Weights of the groups' cross-entropies for factorized tokens; 1 each when not given."""


class LatentConfig(Config):
    """Scaling of latents for the flow: `(latents - mean) / std * multiplier`, per channel."""

    mean: tuple[float, ...] | None = None
    """When mean and std are not given they are those of the token dataset, or, with images,
    measured once when the run begins. The released DiT runs have mean 0, std 1."""
    std: tuple[float, ...] | None = None
    multiplier: float = Field(default=1.0, gt=0)
    """The released DiT runs have 1.092421."""
    measure_images: int = Field(default=1024, ge=1)
    """At least so many images are encoded to measure mean and std."""

    @model_validator(mode="after")
    def _both_or_none(self) -> LatentConfig:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither to have them measured")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise ValueError(
                    f"mean has {len(self.mean)} channels and std {len(self.std)}; give one"
                    " number per latent channel in each"
                )
            if min(self.std) <= 0:
                raise ValueError(f"every std must be above 0, found {list(self.std)}")
        return self


class FlowConfig(Config):
    """Flow matching from noise (t = 0) to data (t = 1)."""

    path: Literal["linear", "gvp", "vp"] = "linear"
    times: Literal["logit_normal", "uniform"] = "logit_normal"
    time_mean: float = 0.0
    """Logit-normal: mean of the normal draws."""
    time_std: float = Field(default=1.0, gt=0)
    shift: float = Field(default=0.0, ge=0)
    """s > 0 maps t to s t / (1 + (s - 1) t): below 1 favours noise; 0 is off. (The released code
    reads such an option and ignores it.)"""
    cosine_weight: float = Field(default=1.0, ge=0)
    """Weight of one minus the cosine between predicted and true velocity; 0 turns it off."""


class DiffusionTaskConfig(GeneratorTaskConfig):
    """Train DiT on latents."""

    speaks: ClassVar[Literal["tokens", "latents"]] = "latents"
    kind: Literal["diffusion"]
    model: DiTConfig
    flow: FlowConfig = FlowConfig()
    latents: LatentConfig = LatentConfig()

    @model_validator(mode="after")
    def _aligns_a_block(self) -> DiffusionTaskConfig:
        if self.repa is not None and self.repa.depth < 1:
            raise ValueError("repa.depth=0 aligns the embedding, which DiT cannot; use 1 or more")
        return self


TaskConfig = Annotated[
    TokenizerTaskConfig | AutoregressiveTaskConfig | DiffusionTaskConfig | ClassifierTaskConfig,
    OneOf("ifsq.tasks"),
]
