"""A batch of a recipe or of a dataset as one picture."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import UserError
from data_pipelines.images.contact_sheet import contact_sheet
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.outputs import claim_file
from data_pipelines.views import ImageSize, ViewSpec, shown_size
from ifsq_train.config import ImageDataConfig, TrainConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.data.images import open_images
from ifsq_train.plugins.sources import open_images_of

COMMAND = "ifsq data preview"


def recipe_config(recipe: str, overrides: Sequence[str]) -> tuple[ImageDataConfig, int]:
    """Images and seed of a training recipe.

    Raises:
        UserError: the recipe does not train on images.
    """
    config = load_recipe(recipe, list(overrides))
    if not (isinstance(config, TrainConfig) and isinstance(config.data, ImageDataConfig)):
        raise UserError(
            f"{recipe} trains on no images; name the recipe of a tokenizer, or an image dataset"
        )
    return config.data, config.seed


def dataset_config(url: str, view: str, image_size: ImageSize, batch_size: int) -> ImageDataConfig:
    """Batches of a dataset without a recipe, smaller where it has fewer samples.

    Raises:
        UserError: an unknown view, or no dataset.
    """
    spec = ViewSpec.from_dict({"kind": view, "image_size": image_size})
    size = min(batch_size, open_images_of(url).num_samples)
    return ImageDataConfig(url=url, view=spec, global_batch_size=size)


def _refuse_foreign(path: Path) -> None:
    """Raise UserError if a file is there that `ifsq data preview` did not make."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file; name a PNG file to write")
    made_by = None
    with contextlib.suppress(OSError), Image.open(path) as image:
        made_by = image.info.get("Software")
    claim_file(path, COMMAND, {} if made_by == COMMAND else None, {}, overwrite=False)


def preview_batch(config: ImageDataConfig, seed: int, step: int, count: int, output: Path) -> int:
    """Write the first `count` images of global batch `step` as a PNG; returns how many there are.

    Pixels are those the model is given, rounded to 8 bits as the decoder makes them. A bad image
    shows its replacement and says so.

    Raises:
        UserError: missing or damaged dataset, more bad images than the recipe allows, or a file
            at `output` that is no preview.
    """
    _refuse_foreign(output)
    budget = ErrorBudget(config.max_bad_samples)
    data = open_images(config, seed=seed, budget=budget, device=torch.device("cpu"))
    ids = data.plan.rank_ids(step, 0, 1)[:count]
    batch = data.show(ids, data.plan.rank_epochs(step, 0, 1)[:count])
    data.source.close()
    replaced = {replacement.position for replacement in batch.replacements}
    names = data.source.class_names
    captions = []
    for position, key in enumerate(batch.keys):
        label = int(batch.labels[position])
        name = names[label] if 0 <= label < len(names) else ""
        shown = f"{label} {name}" if label >= 0 and name != str(label) else str(label)
        captions.append((key, f"replaced: {shown}" if position in replaced else shown))
    title = (
        f"{', '.join(map(str, config.urls))}  batch {step}, {len(ids)} of"
        f" {config.global_batch_size},"
        f" {config.view.kind} {shown_size(config.view.image_size)} px, seed {seed}"
    )
    buffer, made_by = io.BytesIO(), PngInfo()
    made_by.add_text("Software", COMMAND)
    contact_sheet(batch.pixels.numpy(), captions, title).save(buffer, "PNG", pnginfo=made_by)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, buffer.getvalue())
    return len(ids)
