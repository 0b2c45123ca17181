"""What a training will need, from arithmetic: memory, FLOPs, communication, days.

Nothing is allocated and nothing runs on a GPU: networks are built of torch's fake tensors, which
know shapes only, and one sample is pushed through them to count operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from data_pipelines.errors import UserError
from ifsq_train.artifacts.classifiers import build_classifier
from ifsq_train.artifacts.networks import build_discriminator, build_generator, build_tokenizer
from ifsq_train.config import GeneratorTaskConfig, TokenizerTaskConfig, TrainConfig
from ifsq_train.config.classifier import ClassifierTaskConfig
from ifsq_train.config.tasks import AUTOENCODER, DISCRIMINATOR, GENERATOR
from ifsq_train.config.train import BUCKET_ELEMENTS
from ifsq_train.metrics.flops import FlopCounter
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.models.perceptual import Lpips
from ifsq_train.models.repa import SIZES as DINO_SIZES
from ifsq_train.models.repa import DinoTeacher

FP32_BYTES = 4
_STAGE3_LIVE_PARAMETERS = 10**9
"""DeepSpeed's `stage3_max_live_parameters`."""
DEFAULT_EFFICIENCY = 0.35
"""Reached part of the peak that the days are computed with; see docs."""


@dataclass(frozen=True)
class Estimate:
    """For one recipe and one shape of cluster.

    Attributes:
        parameters: trainable parameters by network.
        flops_per_sample: forward and backward, all updates of an average step together.
        flops_per_step: of the global batch.
        state_bytes: per worker by ZeRO stage: parameters, gradients, moments and averages.
        bucket_bytes: per worker by ZeRO stage: gradients that are being sent, on GPUs.
        communication_bytes: sent by one worker per step, by ZeRO stage.
        workers: nodes times GPUs per node.
        micro_batch_size: samples one worker takes at once.
        micro_batches: per worker and step.
        days: of the whole run, or None where the peak is not given.
    """

    parameters: dict[str, int]
    flops_per_sample: float
    flops_per_step: float
    state_bytes: dict[int, float]
    bucket_bytes: dict[int, float]
    communication_bytes: dict[int, float]
    workers: int
    micro_batch_size: int
    micro_batches: int
    days: float | None


def estimate(
    config: TrainConfig,
    *,
    workers: int,
    peak_flops: float | None,
    efficiency: float = DEFAULT_EFFICIENCY,
    spec: GeneratorSpec | None = None,
) -> Estimate:
    """Arithmetic for a recipe.

    Args:
        config: the recipe; its dataset need not exist.
        workers: GPUs in all.
        peak_flops: of one GPU in the recipe's precision, FLOP/s.
        efficiency: expected part of the peak, in (0, 1].
        spec: of the tokens or latents; generators need it.

    Raises:
        UserError: the recipe's parts do not fit, or there are more workers than samples.
    """
    batch = config.data.global_batch_size
    if workers > batch:
        raise UserError(
            f"{workers} workers for a global batch of {batch}; use at most {batch} workers"
        )
    with FakeTensorMode():
        networks, inputs = build_networks(config, spec)
        parameters = {name: count_parameters(module) for name, module in networks.items()}
        forward = forward_flops(networks, inputs) | frozen_flops(config, spec)
        per_sample = step_flops(config, forward)
    share = -(-batch // workers)
    micro = min(config.strategy.micro_batch_size or share, share)
    count = -(-share // micro)
    total = sum(parameters.values())
    kept = parameters[next(iter(parameters))] if config.ema_decay is not None else 0
    sent = FP32_BYTES if config.strategy.communication == "fp32" else 2
    days = None
    if peak_flops is not None:
        seconds = config.steps * batch * per_sample / (workers * peak_flops * efficiency)
        days = seconds / 86_400
    return Estimate(
        parameters,
        per_sample,
        per_sample * batch,
        {stage: state_bytes(total, kept, stage, workers) for stage in range(4)},
        {stage: bucket_bytes(total, stage, workers) for stage in range(4)},
        {stage: communication_bytes(total, stage, workers, count, sent) for stage in range(4)},
        workers,
        micro,
        count,
        days,
    )


Inputs = tuple[torch.Tensor, ...]


def build_networks(
    config: TrainConfig, spec: GeneratorSpec | None
) -> tuple[dict[str, nn.Module], dict[str, Inputs]]:
    """The trained networks, and one sample for each.

    Raises:
        UserError: the recipe's parts do not fit, or facts are missing.
    """
    task = config.task
    if isinstance(task, GeneratorTaskConfig):
        network: Any = build_generator(task, _complete(task, spec))
        return {GENERATOR: network}, {GENERATOR: network.example_inputs()}
    if not isinstance(task, TokenizerTaskConfig | ClassifierTaskConfig):
        raise UserError(f"task '{task.kind}' comes from a plug-in, whose cost is not known here")
    assert config.data.kind == "images"
    image = torch.zeros(1, 3, *config.data.view.size)
    if isinstance(task, ClassifierTaskConfig):
        return {"classifier": build_classifier(task.model)}, {"classifier": (image,)}
    networks: dict[str, nn.Module] = {AUTOENCODER: build_tokenizer(task.model)}
    if (discriminator := build_discriminator(task)) is not None:
        networks[DISCRIMINATOR] = discriminator
    return networks, dict.fromkeys(networks, (image,))


def _complete(task: GeneratorTaskConfig, spec: GeneratorSpec | None) -> GeneratorSpec:
    """The spec, if it says what the network is built of."""
    if spec is None:
        raise UserError(
            "a generator's size depends on its tokens: name the dataset in the recipe, or give"
            " --grid, with --codebook-size or --latent-channels"
        )
    if task.speaks == "tokens" and not spec.codebook_sizes:
        raise UserError(
            f"task '{task.kind}' is trained on tokens: give --codebook-size, once per token group"
        )
    if task.speaks == "latents" and not spec.latent_channels:
        raise UserError(f"task '{task.kind}' is trained on latents: give --latent-channels")
    return spec


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def state_bytes(parameters: int, averaged: int, stage: int, workers: int) -> float:
    """Bytes per worker of parameters, gradients, two moments and averages, all fp32.

    Stages 1 and 2 hold an fp32 master copy of their part beside the whole parameters.
    """
    weights, gradients, moments = parameters, parameters, 2.0 * parameters
    if stage == 0:
        return FP32_BYTES * (weights + gradients + moments + averaged / workers)
    moments /= workers
    masters = parameters / workers
    if stage >= 2:
        gradients /= workers
    if stage == 3:
        weights /= workers
    return FP32_BYTES * (weights + masters + gradients + moments + averaged / workers)


def bucket_bytes(parameters: int, stage: int, workers: int) -> float:
    """Bytes of the buffers gradients are sent from: two buckets of DeepSpeed at stages 1 to 3,
    DDP's copy of all gradients at stage 0 (plain torch), nothing for one worker there."""
    if stage == 0:
        return FP32_BYTES * parameters if workers > 1 else 0.0
    return 2.0 * FP32_BYTES * BUCKET_ELEMENTS


def communication_bytes(
    parameters: int, stage: int, workers: int, micro_batches: int, gradient_bytes: int = FP32_BYTES
) -> float:
    """Bytes one worker of a run on GPUs sends per step, with ring algorithms.

    A ring all-reduce of P values sends 2 P (W - 1) / W per worker, a reduce to its owner, a
    reduce-scatter or an all-gather half of it. Stages 1 and 2 send gradients to their owners,
    stage 1 once per step and stage 2 after each micro-batch, and gather the updated weights in
    fp32; stage 3 reduce-scatters after each micro-batch and gathers the weights for it, twice
    where they are more than it keeps between forward and backward.
    """
    one = parameters * (workers - 1) / workers
    gradients, weights = gradient_bytes * one, FP32_BYTES * one
    if stage == 0:
        return 2 * gradients
    if stage == 1:
        return gradients + weights
    if stage == 2:
        return micro_batches * gradients + weights
    gathers = 1 if parameters <= _STAGE3_LIVE_PARAMETERS else 2
    return micro_batches * (gathers * weights + gradients)


def forward_flops(
    networks: Mapping[str, nn.Module], inputs: Mapping[str, Inputs]
) -> dict[str, float]:
    """Operations of one sample's forward pass by network, counted on shapes alone."""
    result = {}
    for name, module in networks.items():
        with torch.no_grad(), FlopCounter() as counter:
            module.eval()(*inputs[name])
        result[name] = float(counter.total)
    return result


def frozen_flops(config: TrainConfig, spec: GeneratorSpec | None) -> dict[str, float]:
    """Operations of one sample's forward pass through networks that are not trained, by name.

    `perceptual` is LPIPS of an image (a distance takes two), `teacher` REPA's DINOv2 where it runs
    beside the generator.
    """
    task = config.task
    if isinstance(task, TokenizerTaskConfig):
        if task.perceptual.weights is None or task.perceptual.weight == 0:
            return {}
        assert config.data.kind == "images"
        image = torch.zeros(1, 3, *config.data.view.size)
        pair = forward_flops({"perceptual": Lpips("vgg16")}, {"perceptual": (image, image)})
        return {"perceptual": pair["perceptual"] / 2.0}
    repa = task.repa if isinstance(task, GeneratorTaskConfig) else None
    if repa is None or repa.teacher is None or spec is None:
        return {}
    patch = getattr(getattr(task, "model", None), "patch_size", 1)
    grid = (spec.grid[0] // patch, spec.grid[1] // patch)
    teacher = DinoTeacher(**DINO_SIZES[repa.size], grid=grid)
    image = torch.zeros(1, 3, 14 * grid[0], 14 * grid[1])
    return forward_flops({"teacher": teacher}, {"teacher": (image,)})


def step_flops(config: TrainConfig, forward: Mapping[str, float]) -> float:
    """Operations of one sample in an average step: a backward pass is two forward passes.

    A tokenizer's step against the discriminator passes through both, and the discriminator's own
    step needs the reconstruction and two passes. LPIPS passes both images forward and one back,
    a teacher only forward.
    """
    if not isinstance(config.task, TokenizerTaskConfig):
        return 3.0 * next(iter(forward.values())) + forward.get("teacher", 0.0)
    autoencoder = 3.0 * (forward[AUTOENCODER] + forward.get("perceptual", 0.0))
    adversarial = config.task.adversarial
    if adversarial is None or adversarial.start_step >= config.steps:
        return autoencoder
    generator_step = autoencoder + 2.0 * forward[DISCRIMINATOR]
    discriminator_step = forward[AUTOENCODER] + 6.0 * forward[DISCRIMINATOR]
    both = generator_step + discriminator_step
    against = both if adversarial.schedule == "both" else both / 2.0
    alone = adversarial.start_step / config.steps
    return alone * autoencoder + (1.0 - alone) * against
