"""Images from a trained generator and the tokenizer whose tokens or latents it speaks.

`draw_samples` does it in this process, `launchers.on_ray.sample` on many; the folder they write is
described in `sample_job`. Sample i is a function of the networks, the seed and i: whoever draws it,
and whatever is drawn beside it, it is the same image up to rounding of the networks' arithmetic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.open import open_storage
from data_pipelines.work_items import WorkItem
from ifsq_train.artifacts.networks import generator_kind
from ifsq_train.artifacts.trained import (
    TrainedGenerator,
    TrainedTokenizer,
    load_generator,
    load_tokenizer_of,
    to_pixels,
)
from ifsq_train.config import SampleConfig
from ifsq_train.distributed.context import default_device
from ifsq_train.models.dit import DiT
from ifsq_train.models.inference import channels_last, optimize_for_inference
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.precision import autocast
from ifsq_train.models.quantizers.base import Quantizer
from ifsq_train.randomness import derive_seed
from ifsq_train.sampling.autoregressive import SamplingConfig, sample_tokens
from ifsq_train.sampling.files import read_images
from ifsq_train.sampling.flow import FlowSamplingConfig, sample_latents
from ifsq_train.sampling.job import (
    SampleJob,
    SamplePart,
    SampleSpec,
    describe_samples,
    publish_part,
    read_facts,
)

Draw = Callable[[nn.Module, Tensor, Sequence[int], SampleConfig], Tensor]
"""See `ifsq_train.plugins.GeneratorKind.draw`."""
logger = logging.getLogger(__name__)

OnBatch = Callable[[int, int], None]
"""Called after every batch with (samples done, samples in all)."""


@dataclass(frozen=True)
class Samples:
    """Drawn images.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: int64 [N], the classes asked for.
        facts: what made them, see `SampleSpec`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    facts: dict[str, Any]


def draw_samples(
    config: SampleConfig, on_batch: OnBatch | None = None, *, overwrite: bool | None = None
) -> int:
    """Draw all images a recipe asks for and write them; returns their number.

    A folder that holds the result of the same recipe and the same networks is left as it is; a
    job that was interrupted goes on.

    Args:
        config: the recipe.
        on_batch: called after every batch.
        overwrite: see `SampleJob.claim`.

    Raises:
        UserError: a folder that holds something else, missing networks, networks that do not
            belong together, unknown classes.
    """
    sampler = Sampler(config, default_device(0))
    job = SampleJob(open_storage(config.output), sampler.spec, config)
    job.claim(overwrite)
    if job.is_finished():
        return len(sampler.spec.labels)
    left = job.begin()
    for number, item in enumerate(left, start=1):
        publish_part(job.storage, item, sampler.draw(item))
        if on_batch is not None:
            on_batch(job.samples_done(len(left) - number), len(sampler.spec.labels))
    job.finish()
    return len(sampler.spec.labels)


def read_samples(folder: str | Path) -> Samples:
    """What `draw_samples` wrote.

    Raises:
        DataError: nothing there, unfinished, or damaged.
    """
    storage = open_storage(str(folder))
    facts = read_facts(storage)
    if facts is None:
        raise DataError(f"{folder} holds no finished samples; run `ifsq sample` first")
    try:
        kind, digest = facts["recipe"]["format"], facts["sha256"]
    except (KeyError, TypeError):
        raise DataError(f"{folder}: samples.json is damaged; run `ifsq sample` again") from None
    images, labels = read_images(storage, kind, digest)
    return Samples(images, labels, facts)


class Sampler:
    """Both networks of a recipe on one device; draws any part of the samples.

    Attributes:
        spec: what is drawn.
    """

    def __init__(self, config: SampleConfig, device: torch.device) -> None:
        """Open the networks.

        Raises:
            UserError: missing networks, networks that do not belong together, unknown classes.
        """
        self._config, self._device = config, device
        self._tokenizer, self._generator = open_pair(config)
        self.spec = _spec(config, self._tokenizer, self._generator, device)
        drawing(self._generator.task.kind)  # refuses unknown kinds before anything is moved
        for network in (self._tokenizer.network, self._generator.network):
            optimize_for_inference(network.to(device))
        if config.precision == "bf16" and self._generator.task.speaks == "tokens":
            # Autocast would convert every weight again for each of the tokens.
            for parameter in self._generator.network.parameters():
                parameter.data = parameter.data.bfloat16()

    def draw(self, item: WorkItem) -> SamplePart:
        """The samples of an item."""
        rows = range(item.first_sample, item.first_sample + item.num_samples)
        labels = np.array([self.spec.labels[row] for row in rows], np.int64)
        seeds = [derive_seed(self._config.seed, "sample", row) for row in rows]
        images = self._images(torch.as_tensor(labels).to(self._device), seeds)
        if broken := not_finite(images):
            raise UserError(
                f"{len(broken)} of {len(images)} samples of a batch have values that are"
                f" not finite, first sample {rows[broken[0]]}, drawn from {self._config.generator}"
                f" and decoded by {self._config.tokenizer}; one has diverged: take another"
                " checkpoint"
            )
        return SamplePart(to_pixels(images), labels)

    @torch.inference_mode()
    def _images(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images float [B, 3 or 1, H, W], nominally in [-1, 1]."""
        with autocast(self._device, self._config.precision):
            network = self._tokenizer.network
            drawn = draw_codes(self._generator, network.quantize, labels, seeds, self._config)
            return network.decode(channels_last(drawn.latents)).float()


class Codes(NamedTuple):
    """What a generator drew.

    tokens: int64 [B, h, w, G]; None from generators of latents.
    latents: float [B, C, h, w], what the tokenizer's decoder takes.
    """

    tokens: Tensor | None
    latents: Tensor


def draw_codes(
    generator: TrainedGenerator,
    quantizer: Quantizer,
    labels: Tensor,
    seeds: Sequence[int],
    config: SampleConfig,
) -> Codes:
    """Draw a batch.

    Args:
        generator: its network on the device of `labels`.
        quantizer: of its tokenizer, on the same device.
        labels: int64 [B].
        seeds: one per sample; decides its draws.
        config: how it is drawn.

    Raises:
        UserError: nobody knows the kind of generator.
    """
    drawn = drawing(generator.task.kind)(generator.network, labels, seeds, config)
    if generator.scaling is not None:
        return Codes(None, generator.scaling.denormalize(drawn.float()))
    tokens = drawn.reshape(len(drawn), *generator.spec.grid, -1)
    return Codes(tokens, quantizer.indices_to_latents(tokens))


def not_finite(images: Tensor) -> list[int]:
    """Which of [B, ...] have values that are not finite."""
    return (~images.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()


def open_pair(config: SampleConfig) -> tuple[TrainedTokenizer, TrainedGenerator]:
    """Tokenizer and generator of a recipe.

    Raises:
        UserError: one is missing, or they do not belong together; names both fingerprints.
    """
    generator = load_generator(config.generator, config.weights)
    wanted = generator.spec.tokenizer_fingerprint
    tokenizer = load_tokenizer_of(config.tokenizer, wanted)
    if wanted != tokenizer.fingerprint:
        raise UserError(
            f"{config.generator} was trained on tokens of tokenizer {wanted[:12]},"
            f" {config.tokenizer} is {tokenizer.fingerprint[:12]}; give the tokenizer its"
            " tokens were made with"
        )
    return tokenizer, generator


def sample_labels(
    config: SampleConfig, num_classes: int, trained: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Class of every sample, int64 [N]; sample i is the i-th, whatever the batches.

    Args:
        config: the recipe; all trained classes where it names none.
        num_classes: of the generator.
        trained: the classes its data had; all where that is not known.

    Raises:
        UserError: a class the generator was not trained for.
    """
    everything = range(num_classes) if trained is None else trained
    classes = everything if config.classes is None else config.classes
    if unknown := [label for label in classes if not 0 <= label < num_classes]:
        raise UserError(
            f"classes: found {unknown[0]}; the generator knows classes 0 to {num_classes - 1}"
        )
    if missing := sorted(set(classes) - set(everything)):
        logger.warning("classes: the generator's data had no images of %s", missing)
    return np.repeat(np.asarray(classes, dtype=np.int64), config.samples_per_class)


def drawing(kind: str) -> Draw:
    """How a kind of generator is drawn from.

    Raises:
        UserError: nobody knows the kind.
    """
    shipped: dict[str, Draw] = {"autoregressive": _draw_tokens, "diffusion": _draw_latents}
    return shipped.get(kind) or generator_kind(kind).draw


def _draw_tokens(
    network: nn.Module, labels: Tensor, seeds: Sequence[int], config: SampleConfig
) -> Tensor:
    assert isinstance(network, LlamaGen)
    return sample_tokens(network, labels, seeds, token_settings(config))


def _draw_latents(
    network: nn.Module, labels: Tensor, seeds: Sequence[int], config: SampleConfig
) -> Tensor:
    assert isinstance(network, DiT)
    noise = seeded_noise(network, seeds).to(labels.device)
    return sample_latents(network, labels, noise, flow_settings(config))


def token_settings(config: SampleConfig) -> SamplingConfig:
    """A recipe's settings for LlamaGen."""
    return SamplingConfig(
        cfg_scale=config.cfg_scale,
        cfg_interval=config.cfg_last,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        greedy=config.greedy,
        compiled=config.compile,
    )


def flow_settings(config: SampleConfig) -> FlowSamplingConfig:
    """A recipe's settings for DiT."""
    return FlowSamplingConfig(cfg_scale=config.cfg_scale, **config.flow.model_dump())


def seeded_noise(model: DiT, seeds: Sequence[int]) -> Tensor:
    """Standard normal float32 [B, C, h, w]; row i is a function of seeds[i]."""
    shape = (model.latent_channels, *model.grid)
    rows = [
        np.random.Generator(np.random.Philox(key=seed)).standard_normal(shape, np.float32)
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(rows))


def _spec(
    config: SampleConfig,
    tokenizer: TrainedTokenizer,
    generator: TrainedGenerator,
    device: torch.device,
) -> SampleSpec:
    return describe_samples(
        config,
        sample_labels(config, generator.num_classes, generator.classes),
        generator=generator.fingerprint,
        generator_step=generator.step,
        tokenizer=tokenizer.fingerprint,
        device=device.type,
    )
