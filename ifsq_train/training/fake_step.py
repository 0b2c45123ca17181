"""What a step holds at once, from shapes alone: nothing is computed and no GPU is needed.

Fake tensors go through the task's own forward and backward pass, by the formulas of a GPU run
eagerly; storages are counted while they live. Blocks that are compiled keep less.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_pipelines.errors import UserError
from data_pipelines.tokens.latents import LatentStatistics
from ifsq_train.artifacts.networks import build_discriminator, build_generator, build_tokenizer
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    TokenizerTaskConfig,
    TrainConfig,
)
from ifsq_train.data.batch import Batch
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.models.perceptual import Lpips
from ifsq_train.models.plain import as_on_a_gpu
from ifsq_train.models.repa import SIZES as TEACHERS
from ifsq_train.randomness import BatchRandom
from ifsq_train.strategy.base import frozen
from ifsq_train.strategy.network_options import change_networks
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.base import StepInfo, TrainTask
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import Alignment, LatentInputs
from ifsq_train.tasks.tokenizer_gan import TokenizerTask

logger = logging.getLogger(__name__)


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors from their making to their end.

    Attributes:
        alive: bytes now.
        peak: most of them at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: dict[int, Any] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key in self._seen:
                continue
            self._seen[key] = weakref.ref(storage, lambda _, k=key, s=size: self._freed(k, s))
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def _freed(self, key: int, size: int) -> None:
        self.alive -= size
        self._seen.pop(key, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator on shapes and count what it made."""
        result = func(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def activation_bytes(config: TrainConfig, spec: GeneratorSpec | None, samples: int) -> int | None:
    """Most memory of a micro-batch's passes beside trained weights and their gradients, in bytes.

    Frozen networks are in it. None where the task is not one of this package's, or does something
    that depends on values.

    Args:
        config: the recipe; none of its files need exist.
        spec: of the tokens or latents; generators need it.
        samples: of the micro-batch.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_a_gpu():
        made = _fake_task(config, spec, samples)
        if made is None:
            return None
        task, batch = made
        change_networks(config.strategy, task.modules(), torch.device("cpu"))
        for network in task.auxiliary().values():
            network.requires_grad_(False).eval()
        step = max(config.steps - 2, 0)
        due = {name: s for s in (step, step + 1) for name in task.updates(s)}
        try:
            return max(_update(task, name, s, batch, config) for name, s in due.items())
        except RuntimeError as error:
            logger.warning("activations are not known: %s", error)
            return None


def _update(task: TrainTask, name: str, step: int, batch: Batch, config: TrainConfig) -> int:
    modules = task.modules()
    own = [p for p in modules[name].parameters() if p.requires_grad]
    trained = sum(p.untyped_storage().nbytes() for n in modules.values() for p in n.parameters())
    # Statistics of logged steps look at values, which fake tensors have not.
    random = BatchRandom(0, step, batch.positions)
    info = StepInfo(step, random, 1.0, 1, _Precision(config), False)
    others = [network for key, network in modules.items() if key != name]
    try:
        with LiveBytes() as live, frozen(others):
            for network in (*modules.values(), *task.auxiliary().values()):
                live.hold((*network.parameters(), *network.buffers()))
            live.hold([batch.inputs])
            task.loss(name, modules, batch, info).loss.backward()
            gradients = sum(p.grad.untyped_storage().nbytes() for p in own if p.grad is not None)
        # Gradients grow while activations shrink: what is most beside all of them is a bound.
        return max(live.peak - trained - gradients, 0)
    finally:
        for parameter in own:
            parameter.grad = None


class _Precision:
    def __init__(self, config: TrainConfig) -> None:
        self._bf16 = config.strategy.precision == "bf16"

    def autocast(self) -> AbstractContextManager[object]:
        # Not `models.precision`: no kernel of this process is to be replaced.
        return torch.autocast("cpu", torch.bfloat16, enabled=self._bf16)


def _fake_task(
    config: TrainConfig, spec: GeneratorSpec | None, samples: int
) -> tuple[TrainTask, Batch] | None:
    task, labels = config.task, torch.zeros(samples, dtype=torch.int64)
    places = np.arange(samples)
    if isinstance(task, TokenizerTaskConfig) and config.data.kind == "images":
        images = torch.zeros(samples, 3, *config.data.view.size)
        return _tokenizer(task), Batch(images, labels, places)
    if spec is None or not isinstance(task, AutoregressiveTaskConfig | DiffusionTaskConfig):
        return None
    network: Any = build_generator(task, spec)
    height, width = getattr(network, "patches", spec.grid)
    align = features = None
    if task.repa is not None:
        align = Alignment(None, task.repa.weight)
        features = torch.zeros(samples, height * width, TEACHERS[task.repa.size]["dim"])
    if isinstance(task, AutoregressiveTaskConfig):
        groups = len(spec.codebook_sizes)
        shape = (samples, height * width) if groups == 1 else (samples, height * width, groups)
        tokens = torch.zeros(shape, dtype=torch.int64)
        made: TrainTask = AutoregressiveTask(task, network, None, align)
        return made, Batch(tokens, labels, places, features)
    channels = spec.latent_channels
    unscaled = LatentStatistics((0.0,) * channels, (1.0,) * channels, 0)
    latents = torch.zeros(samples, channels, *spec.grid)
    diffusion = DiffusionTask(task, network, LatentInputs(unscaled, spec.grid), align)
    return diffusion, Batch(latents, labels, places, features)


def _tokenizer(task: TokenizerTaskConfig) -> TokenizerTask:
    discriminator = build_discriminator(task)
    weighed = task.perceptual.weights is not None and task.perceptual.weight != 0
    perceptual = Lpips("vgg16") if weighed else None
    try:
        tokenizer = build_tokenizer(task.model)
    except RuntimeError as error:
        raise UserError(f"this quantizer cannot be planned: {error}") from error
    return TokenizerTask(task, tokenizer, discriminator, perceptual)
