"""Pictures for trackers while a run goes on, made without leaving a trace in it.

Always of the same images, or the same classes and seeds, so that steps can be compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ifsq_train.artifacts.trained import TrainedGenerator, load_tokenizer_of, to_pixels
from ifsq_train.config import (
    GeneratorTaskConfig,
    SampleConfig,
    TokenizerTaskConfig,
    TrackImagesConfig,
    TrainConfig,
)
from ifsq_train.config.tasks import AUTOENCODER, GENERATOR
from ifsq_train.data.base import TrainData
from ifsq_train.data.images import ImageTrainData
from ifsq_train.distributed.context import RunContext
from ifsq_train.metrics.tracker import Shown
from ifsq_train.metrics.training import TrainingMetrics
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.models.quantizers.usage import count_levels
from ifsq_train.randomness import derive_seed
from ifsq_train.sampling.draw import draw_codes
from ifsq_train.tasks.base import TrainTask

logger = logging.getLogger(__name__)


class TrackedImages:
    """Makes the pictures of a run's trackers; does nothing where none are asked for.

    Whatever goes wrong while they are made is logged with its traceback and ends the pictures, not
    the training: observing never stops a run.

    Args:
        config: the recipe.
        context: only rank 0 makes any.
        data: as opened, not served by others.
        task: whose networks they are made with.
    """

    def __init__(
        self, config: TrainConfig, context: RunContext, data: TrainData, task: TrainTask
    ) -> None:
        self._config, self._make = config.track_images, None
        self._device = context.device
        if config.track_images is None or not config.trackers or context.rank != 0:
            return
        try:
            with untouched(context.device):
                self._make = _maker(config, config.track_images, context.device, data, task)
        except Exception:
            self._give_up()

    def report(self, step: int, metrics: TrainingMetrics) -> None:
        """Make and hand over the pictures, if they are due after `step` steps."""
        if self._config is None or self._make is None or step % self._config.every_steps:
            return
        began = time.monotonic()
        try:
            with untouched(self._device), torch.no_grad():
                shown = self._make()
        except Exception:
            self._give_up()
            return
        metrics.shown(step, shown, time.monotonic() - began)

    def _give_up(self) -> None:
        logger.warning("pictures for trackers failed and are left out from now on", exc_info=True)
        self._make = None


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """torch's generators are afterwards as before, and nothing is compiled anew."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was)


def _maker(
    config: TrainConfig,
    wanted: TrackImagesConfig,
    device: torch.device,
    data: TrainData,
    task: TrainTask,
) -> Callable[[], Shown] | None:
    """What makes the pictures; None, and a line in the log that says why, where nothing can."""
    if config.strategy.kind == "deepspeed" and config.strategy.zero_stage == 3:
        logger.warning("track_images: at ZeRO stage 3 no rank has a whole network; none are made")
        return None
    if isinstance(config.task, TokenizerTaskConfig):
        network = task.modules()[AUTOENCODER]
        assert isinstance(network, Tokenizer)
        return _reconstructions(network, data, wanted, device)
    if isinstance(config.task, GeneratorTaskConfig):
        return _samples(config, config.task, wanted, device, task)
    logger.warning("track_images: task '%s' makes no images", config.task.kind)
    return None


def _reconstructions(
    network: Tokenizer, data: TrainData, wanted: TrackImagesConfig, device: torch.device
) -> Callable[[], Shown]:
    assert isinstance(data, ImageTrainData)
    ids = np.arange(min(wanted.count, data.plan.num_samples), dtype=np.int64)
    images = data.show(ids, np.zeros_like(ids)).to_images().images.to(device)

    def make() -> Shown:
        with _evaluating(network):
            made, quantized = network(images)
        pairs = torch.cat([network.seen(images), made.float()], dim=3)
        shown = {"reconstructions": to_pixels(pairs.nan_to_num())}
        return Shown(shown, _level_histograms(network, quantized.indices))

    return make


def _level_histograms(
    network: Tokenizer, indices: Tensor
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """How often each channel takes each of its levels; empty where it has none."""
    quantizer = network.quantize
    levels, digits_of = quantizer.level_counts, getattr(quantizer, "indices_to_digits", None)
    if levels is None or digits_of is None:
        return {}
    counts = count_levels(digits_of(indices).permute(0, 3, 1, 2), levels).cpu().numpy()
    return {
        f"levels/{channel}": (
            counts[channel, :number],
            np.arange(number + 1, dtype=np.float64) - 0.5,
        )
        for channel, number in enumerate(levels)
    }


def _samples(
    config: TrainConfig,
    task_config: GeneratorTaskConfig,
    wanted: TrackImagesConfig,
    device: torch.device,
    task: TrainTask,
) -> Callable[[], Shown] | None:
    place = task_config.tokenizer or getattr(config.data, "tokenizer", None)
    if place is None:
        logger.warning(
            "track_images: samples need the tokenizer, which the recipe does not name; set"
            " data.tokenizer"
        )
        return None
    spec = GeneratorSpec.from_dict(task.describe())
    tokenizer = load_tokenizer_of(place, spec.tokenizer_fingerprint).network.to(device)
    network = task.modules()[GENERATOR]
    trained = TrainedGenerator(network, task_config, spec, 0, "")
    classes = [at % trained.num_classes for at in range(wanted.count)]
    labels = torch.tensor(classes, device=device)
    seeds = [derive_seed(config.seed, "tracked image", at) for at in range(wanted.count)]
    values = {"kind": "sample", "generator": "-", "tokenizer": "-", "output": "-"}
    settings = SampleConfig.model_validate(
        {**values, "cfg_scale": wanted.cfg_scale, "flow": wanted.flow}
    )

    def make() -> Shown:
        with _evaluating(network):
            codes = draw_codes(trained, tokenizer.quantize, labels, seeds, settings)
        drawn = tokenizer.decode(codes.latents).float()
        return Shown({"samples": to_pixels(drawn.nan_to_num())}, {})

    return make
