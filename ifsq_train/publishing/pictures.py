"""Pictures of what a network does, as one PNG: reconstructions, or samples."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.errors import UserError
from data_pipelines.storage.local import write_atomically
from ifsq_train.artifacts.trained import TrainedGenerator, TrainedTokenizer, to_pixels
from ifsq_train.config import ImageDataConfig, SampleConfig, TrainConfig
from ifsq_train.config.sources import ImagePlace
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.evaluation.image_sets import HeldOutImages
from ifsq_train.randomness import derive_seed
from ifsq_train.sampling.draw import draw_codes

PREVIEW = "preview.png"
_SMALLEST_SIDE, _MARGIN = 96, 4

logger = logging.getLogger(__name__)


def reconstructions(
    target: Path,
    trained: TrainedTokenizer,
    recipe: TrainConfig,
    url: ImagePlace | None,
    count: int,
) -> bool:
    """Write images above their reconstructions; False, and a line in the log, where none are
    at hand.

    Args:
        target: file to write.
        trained: the tokenizer.
        recipe: that it was trained with; its view is taken.
        url: dataset; the recipe's where it is on this machine, if not given.
        count: images.

    Raises:
        UserError: no dataset at `url`.
    """
    assert isinstance(recipe.data, ImageDataConfig)
    place = url or recipe.data.urls[0]
    if url is None and not (isinstance(place, str) and Path(place).is_dir()):
        logger.warning("no preview: the training images are not here; --images DATASET makes one")
        return False
    try:
        images = HeldOutImages(place, recipe.data.view, count)
        originals = next(images.batches(InProcessContext()))[:count].cpu()
    except UserError:
        if url is not None:
            raise
        logger.warning("no preview: the training images cannot be read", exc_info=True)
        return False
    with torch.no_grad():
        made, _ = trained.network(originals)
    _write(target, [to_pixels(trained.network.seen(originals)), to_pixels(made)])
    return True


def samples(
    target: Path, generator: TrainedGenerator, tokenizer: TrainedTokenizer, count: int
) -> bool:
    """Write samples of the first classes, drawn with the defaults of sample recipes."""
    known = generator.classes or tuple(range(generator.num_classes))
    labels = torch.tensor([known[at % len(known)] for at in range(count)])
    config = SampleConfig(kind="sample", generator="-", tokenizer="-", output="-")
    seeds = [derive_seed(config.seed, "sample", row) for row in range(count)]
    with torch.no_grad():
        codes = draw_codes(generator, tokenizer.network.quantize, labels, seeds, config)
        images = tokenizer.network.decode(codes.latents)
    half = -(-count // 2)
    pixels = to_pixels(images.nan_to_num())
    _write(target, [row for row in (pixels[:half], pixels[half:]) if len(row)])
    return True


def _write(target: Path, rows: Sequence[NDArray[np.uint8]]) -> None:
    """Rows of images uint8 [N, H, W, 3]; small ones are enlarged, their pixels kept square."""
    height, width = rows[0].shape[1:3]
    factor = max(1, -(-_SMALLEST_SIDE // max(height, width)))
    step_y, step_x = height * factor + _MARGIN, width * factor + _MARGIN
    columns = max(len(row) for row in rows)
    size = (columns * step_x + _MARGIN, len(rows) * step_y + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            picture = Image.fromarray(pixels).resize(
                (width * factor, height * factor), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (_MARGIN + x * step_x, _MARGIN + y * step_y))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(target, buffer.getvalue())
