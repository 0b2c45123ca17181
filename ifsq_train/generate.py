"""Images from a trained generator and the tokenizer whose tokens it speaks.

The result is one folder: ``samples.npz`` in the layout evaluators read (``arr_0`` uint8
[N, H, W, 3], ``arr_1`` int64 [N] class labels) and ``samples.json``, written last, which says what
made them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.errors import DataError, UserError
from ifsq_train.artifacts import (
    TrainedGenerator,
    TrainedTokenizer,
    load_generator,
    load_tokenizer,
    to_uint8,
)
from ifsq_train.checkpoint import write_atomically
from ifsq_train.config import SampleConfig, to_dict
from ifsq_train.context import default_device
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.randomness import derive_seed
from ifsq_train.sampling import SamplingConfig, sample_tokens

SAMPLES_NPZ, SAMPLES_JSON = "samples.npz", "samples.json"

OnBatch = Callable[[int, int], None]
"""Called after every batch with (samples done, samples in all)."""


@dataclass(frozen=True)
class Samples:
    """Drawn images.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: int64 [N], the classes asked for.
        facts: what made them, see `draw_samples`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    facts: dict[str, Any]


def draw_samples(config: SampleConfig, on_batch: OnBatch | None = None) -> int:
    """Draw all images a recipe asks for and write them; returns their number.

    A folder that holds the result of the same recipe and the same networks is left as it is.

    Raises:
        UserError: missing networks, networks that do not belong together, unknown classes.
    """
    tokenizer, generator = load_tokenizer(config.tokenizer), load_generator(config.generator)
    check_pair(tokenizer, generator, config)
    labels = sample_labels(config, generator.num_classes)
    folder = Path(config.output)
    facts = {
        "num_samples": len(labels),
        "generator": generator.fingerprint,
        "generator_step": generator.step,
        "tokenizer": tokenizer.fingerprint,
        "recipe": to_dict(config),
    }
    if _is_done(folder, facts):
        return len(labels)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SAMPLES_JSON).unlink(missing_ok=True)
    images = _draw(config, tokenizer, generator, labels, on_batch)
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=images, arr_1=labels)
    write_atomically(folder / SAMPLES_NPZ, buffer.getvalue())
    facts["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    write_atomically(folder / SAMPLES_JSON, json.dumps(facts, indent=1).encode())
    return len(labels)


def read_samples(folder: str | Path) -> Samples:
    """What `draw_samples` wrote.

    Raises:
        DataError: nothing there, unfinished, or damaged.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / SAMPLES_JSON).read_bytes())
        data = (folder / SAMPLES_NPZ).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{folder} holds no finished samples; run `ifsq sample` first") from None
    if hashlib.sha256(data).hexdigest() != facts.get("sha256"):
        raise DataError(f"{folder / SAMPLES_NPZ} is damaged; delete it and run `ifsq sample` again")
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    return Samples(arrays["arr_0"], arrays["arr_1"], facts)


def check_pair(
    tokenizer: TrainedTokenizer, generator: TrainedGenerator, config: SampleConfig
) -> None:
    """Refuse to decode tokens with another tokenizer than the one that made them.

    Raises:
        UserError: names both fingerprints.
    """
    if generator.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{config.generator} was trained on tokens of tokenizer"
            f" {generator.tokenizer_fingerprint[:12]}, {config.tokenizer} is"
            f" {tokenizer.fingerprint[:12]}; give the tokenizer its tokens were made with"
        )


def sample_labels(config: SampleConfig, num_classes: int) -> NDArray[np.int64]:
    """Class of every sample, int64 [N]; sample i is the i-th, whatever the batches.

    Raises:
        UserError: a class the generator was not trained for.
    """
    classes = range(num_classes) if config.classes is None else config.classes
    if unknown := [label for label in classes if not 0 <= label < num_classes]:
        raise UserError(
            f"classes: found {unknown[0]}; the generator knows classes 0 to {num_classes - 1}"
        )
    return np.repeat(np.asarray(classes, dtype=np.int64), config.samples_per_class)


def _is_done(folder: Path, facts: dict[str, Any]) -> bool:
    try:
        found = read_samples(folder).facts
    except DataError:
        return False
    return {key: found.get(key) for key in facts} == json.loads(json.dumps(facts))


def _draw(
    config: SampleConfig,
    tokenizer: TrainedTokenizer,
    generator: TrainedGenerator,
    labels: NDArray[np.int64],
    on_batch: OnBatch | None,
) -> NDArray[np.uint8]:
    device = default_device(0)
    network = generator.network
    assert isinstance(network, LlamaGen)
    tokenizer.network.to(device)
    network.to(device)
    how = SamplingConfig(
        cfg_scale=config.cfg_scale,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
    )
    images = []
    for first in range(0, len(labels), config.batch_size):
        part = torch.as_tensor(labels[first : first + config.batch_size])
        seeds = [derive_seed(config.seed, "sample", first + i) for i in range(len(part))]
        tokens = sample_tokens(network, part.to(device), seeds, how)
        pixels = decode_tokens(tokenizer, tokens, generator.grid)
        images.append(to_uint8(pixels).permute(0, 2, 3, 1).cpu().numpy())
        if on_batch is not None:
            on_batch(first + len(part), len(labels))
    return np.concatenate(images)


@torch.inference_mode()
def decode_tokens(
    tokenizer: TrainedTokenizer, tokens: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """Images float [B, 3, H, W], nominally in [-1, 1], of tokens int64 [B, T] or [B, T, G]."""
    network = tokenizer.network
    indices = tokens.reshape(len(tokens), *grid, -1)
    return network.decode(network.quantize.indices_to_latents(indices))
