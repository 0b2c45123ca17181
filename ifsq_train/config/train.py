"""Whole recipes, one per command, and the shape of the machine they get."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ifsq_train.config.base import Config
from ifsq_train.config.data import DataConfig
from ifsq_train.config.paths import RunPath
from ifsq_train.config.tasks import TaskConfig
from ifsq_train.config.trackers import TrackerConfig, TrackImagesConfig

BUCKET_ELEMENTS = 50_000_000
"""Gradients that DeepSpeed sends at once on GPUs."""


class OptimConfig(Config):
    """Optimizer and learning-rate schedule of one network."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: matrices by Muon, everything else by AdamW with `betas` (released: 0.95, 0.95)."""
    lr: float = Field(gt=0)
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        default="none", exclude_if=lambda value: value == "none"
    )
    """How the learning rate follows the batch, from `lr` at `lr_batch_size` samples. linear: in
    proportion (Goyal et al. 2017, arXiv:1706.02677, for SGD); sqrt: with the root (Malladi et al.
    2022, arXiv:2205.10287, for Adam); none: `lr` whatever the batch."""
    lr_batch_size: int | None = Field(default=None, ge=1, exclude_if=lambda value: value is None)
    """Global batch that `lr` is meant for; needed by `lr_scaling`."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon only."""
    weight_decay: float = Field(default=0.0, ge=0)
    decay: Literal["all", "matrices"] = "all"
    """Which parameters decay: all (released), or only those with two dimensions or more."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm; null turns clipping off."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """wsd: warm-up, then constant, then linearly down over the last `decay_ratio` of the steps."""
    warmup_steps: int = Field(default=0, ge=0)
    final_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """cosine and wsd: learning rate at the last step over `lr`."""
    decay_ratio: float = Field(default=0.2, gt=0, le=1)
    """wsd: part of the run in which the learning rate falls."""

    @model_validator(mode="after")
    def _scaling_has_its_batch(self) -> OptimConfig:
        if (self.lr_scaling != "none") != (self.lr_batch_size is not None):
            raise ValueError(
                "lr_scaling and lr_batch_size belong together: give the batch that lr is meant"
                " for and linear or sqrt, or neither"
            )
        return self

    def for_batch(self, global_batch_size: int) -> OptimConfig:
        """The same with the learning rate of a global batch of this size, and no rule left."""
        if self.lr_batch_size is None:
            return self
        ratio = global_batch_size / self.lr_batch_size
        lr = self.lr * (ratio if self.lr_scaling == "linear" else ratio**0.5)
        return self.model_copy(update={"lr": lr, "lr_scaling": "none", "lr_batch_size": None})


class StrategyConfig(Config):
    """How the networks are spread over the workers."""

    kind: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    """Which of optimizer state, gradients and parameters ZeRO partitions (deepspeed only)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: activations under autocast; parameters, gradients and optimizer stay fp32."""
    cpu_kernels: Literal["exact", "fast"] = Field(
        default="exact", exclude_if=lambda value: value == "exact"
    )
    """bf16 on a CPU. exact: torch's own kernels; fast: norms and gates of LlamaGen as one step
    each, its attention by plain products, and where the CPU has no bf16 instructions, products
    through fp32 kernels. Losses then agree up to rounding."""
    communication: Literal["fp32", "bf16"] = Field(
        default="fp32", exclude_if=lambda value: value == "fp32"
    )
    """What gradients are rounded to for being added over workers; bf16 sends half as much."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Largest batch one worker takes at once; gradients of several are accumulated."""
    offload_optimizer: bool = False
    """Keep master weights and moments in host memory (deepspeed, stages 1 to 3)."""
    residual: Literal["fp32", "bf16"] = Field(
        default="fp32", exclude_if=lambda value: value == "fp32"
    )
    """What the stream between the blocks of a generator is kept in (bf16 needs precision bf16)."""
    float8: bool = Field(default=False, exclude_if=lambda value: not value)
    """Linear layers of blocks multiply in float8, each factor scaled by its largest value; needs
    precision bf16 and GPUs from Ada or Hopper on. On a CPU it is slow and only for trying."""
    activation_checkpointing: bool | Literal["selective"] = False
    """Recompute each block's activations in the backward pass instead of keeping them. selective:
    results of matrix products, convolutions and attention are kept, the rest is recomputed."""
    synced_batch_norm: bool = False
    """Batch norms see the whole global batch's share of all workers, not each its own."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile (not at stage 3, whose hooks it cannot trace). auto: on GPUs the blocks of
    every network and the losses over codebooks and features; true: whole networks, anywhere."""
    deterministic: bool = False
    """Only kernels that give the same bits every time; an operation without one is an error.
    Slower on GPUs."""

    @model_validator(mode="after")
    def _engine_can(self) -> StrategyConfig:
        if self.offload_optimizer and (self.kind != "deepspeed" or self.zero_stage == 0):
            raise ValueError("offload_optimizer needs kind deepspeed and zero_stage 1, 2 or 3")
        if self.precision != "bf16" and (self.residual == "bf16" or self.float8):
            option = "float8" if self.float8 else "residual: bf16"
            raise ValueError(f"{option} needs precision bf16, this has {self.precision}")
        if self.compile is True and self.kind == "deepspeed" and self.zero_stage == 3:
            raise ValueError("compile does not work with zero_stage 3; use 0, 1 or 2")
        return self

    def compiles_on(self, device: str) -> bool:
        """Whether anything is compiled on a kind of device, `cpu` or `cuda`."""
        if self.compile != "auto":
            return self.compile
        return device == "cuda" and not (self.kind == "deepspeed" and self.zero_stage == 3)


class KeepBestConfig(Config):
    """Checkpoints kept because a logged value was good when they were made."""

    metric: str = "loss"
    """A key of metrics.jsonl."""
    mode: Literal["min", "max"] = "min"
    count: int = Field(default=1, ge=1)


class CheckpointConfig(Config):
    """When the run's state is saved and how much of it is kept."""

    every_steps: int = Field(default=1000, ge=1)
    keep_last: int = Field(default=2, ge=1)
    """Newest complete checkpoints that are kept."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoints whose step is a multiple of this are never deleted."""
    keep_best: KeepBestConfig | None = None
    max_failed_saves: int = Field(default=2, ge=0)
    """Saves in a row that may fail (disk full, storage refusing) before the run ends."""


class ProfileConfig(Config):
    """torch.profiler traces of chosen steps, one file per worker in the run folder."""

    first_step: int = Field(ge=0)
    num_steps: int = Field(default=3, ge=1)
    memory: bool = False
    """Also record allocations."""


class TrainConfig(Config):
    """A training run."""

    kind: Literal["train"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: RunPath
    """Folder of the run: checkpoints, metrics, log, result."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Labels for metrics, such as the study and variant a run belongs to; they change nothing."""
    seed: int = Field(default=0, ge=0)
    steps: int = Field(ge=1)
    """Optimizer steps; a resumed run ends at the same number."""
    data: DataConfig
    task: TaskConfig
    optim: dict[str, OptimConfig]
    """By network: `autoencoder` and `discriminator` for tokenizers, `classifier` for classifiers,
    `generator` otherwise."""
    strategy: StrategyConfig = StrategyConfig()
    ema_decay: float | None = Field(default=0.9999, ge=0, lt=1)
    """Decay of the averaged weights; null turns averaging off."""
    ema_warmup: bool = True
    """The decay rises to `ema_decay`: it is min(ema_decay, (1 + n) / (10 + n)) at update n, so
    that averages of short runs are not near the initial weights. The released code has none."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every_steps: int = Field(default=10, ge=1)
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """A NaN or infinite gradient: end the run, leave the update out, or take the weights of the
    last checkpoint and go on with the next batch."""
    dry_run: bool = True
    """Try one forward and backward pass before step 1; finds memory and shape errors early."""
    watchdog_seconds: float | None = Field(default=900.0, gt=0)
    """A step that takes longer ends the worker and names the rank that hangs; null: never."""
    profile: ProfileConfig | None = None
    trackers: tuple[TrackerConfig, ...] = Field(default=(), exclude_if=lambda value: not value)
    """Where the logged numbers go besides metrics.jsonl and Prometheus."""
    track_images: TrackImagesConfig | None = Field(default=None, exclude_if=lambda v: v is None)
    """Pictures that the trackers get as well; null makes none."""

    @model_validator(mode="after")
    def _optimizers_fit(self) -> TrainConfig:
        sharded = self.strategy.kind == "deepspeed" and self.strategy.zero_stage > 0
        if sharded and any(optim.kind == "muon" for optim in self.optim.values()):
            raise ValueError(
                "muon needs whole matrices, which zero_stage 1 to 3 cut up;"
                " use zero_stage 0 or strategy.kind torch"
            )
        return self

    def is_logged(self, step: int) -> bool:
        """Whether the numbers of step `step`, counted from 0, are recorded."""
        return step + 1 == self.steps or (step + 1) % self.log_every_steps == 0

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if set(self.optim) != (needed := self.task.networks()):
            raise ValueError(
                f"optim has {sorted(self.optim)}, the task trains {sorted(needed)};"
                " give exactly one entry for each"
            )
        self.task.check_data(self.data)
        return self
