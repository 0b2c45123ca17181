"""The generator's loss on images it was not trained on, beside the training loss of the report."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from data_pipelines.views import ViewSpec
from ifsq_train.artifacts.trained import load_generator, load_tokenizer
from ifsq_train.data.images import open_image_source
from ifsq_train.losses.token_cross_entropy import token_cross_entropy


@torch.no_grad()
def held_out_loss(
    generator: Path, tokenizer: Path, dataset: Path, view: ViewSpec, batch_size: int = 128
) -> dict[str, float]:
    """Next-token cross-entropy of a LlamaGen on a dataset, with the weights that are sampled from.

    Args:
        generator, tokenizer: run folders.
        dataset: images that were held out.
        view: how they are seen.
        batch_size: images at a time.

    Returns:
        ``held_out_loss``, nats per position, and ``chance_loss``, that of guessing evenly among
        all codes.
    """
    trained, encoder = load_generator(generator), load_tokenizer(tokenizer).network
    source = open_image_source(
        str(dataset), view, decoder="cpu", seed=0, device=torch.device("cpu")
    )
    total, count = 0.0, source.manifest.num_samples
    try:
        for first in range(0, count, batch_size):
            ids = np.arange(first, min(first + batch_size, count), dtype=np.int64)
            batch = source.batch(ids)
            tokens = encoder.encode(batch.images).indices.flatten(1, 2)
            tokens = tokens[..., 0] if tokens.shape[-1] == 1 else tokens
            output = trained.network(tokens, batch.labels)
            total += float(token_cross_entropy(output.logits, tokens)) * len(ids)
    finally:
        source.close()
    chance = sum(math.log(size) for size in trained.spec.codebook_sizes)
    return {"held_out_loss": total / count, "chance_loss": chance}
