"""`ifsq data import-codes` and `export-codes`: the released layout of one .npy per image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launchers.cli.options import ImagePixels, Overwrite, both_sides


def import_codes(
    codes: Annotated[Path, typer.Argument(help="Folder with 0.npy, 1.npy, ... of codes.")],
    labels: Annotated[Path, typer.Argument(help="Folder with 0.npy, 1.npy, ... of labels.")],
    dataset: Annotated[str, typer.Argument(help="Token dataset folder to write.")],
    tokenizer: Annotated[str, typer.Option(help="Tokenizer the codes were made with.")],
    image_size: ImagePixels = "256",
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 4096,
) -> None:
    """Make a token dataset of codes extracted by the released scripts."""
    from data_pipelines.tokens.code_files import ReleasedCodes, import_released
    from ifsq_train.artifacts.token_meaning import spec_of_tokenizer

    like = spec_of_tokenizer(tokenizer, both_sides("--image-size", image_size), samples_per_shard)
    released = ReleasedCodes.open(codes, labels, like.codebook_sizes, like.tokens_per_row)
    digest = import_released(released, dataset, like)
    sys.stdout.write(f"{released.count} images in {dataset}, digest {digest[:12]}\n")


def export_codes(
    dataset: Annotated[str, typer.Argument(help="Token dataset.")],
    codes: Annotated[Path, typer.Argument(help="Folder for 0.npy, 1.npy, ... of codes.")],
    labels: Annotated[Path, typer.Argument(help="Folder for 0.npy, 1.npy, ... of labels.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a token dataset as one .npy per image, as the released training reads them."""
    from data_pipelines.tokens.code_files import export_released
    from data_pipelines.tokens.reader import TokenDataset

    if codes.resolve() == labels.resolve():
        raise UserError(f"{codes}: codes and labels have the same names; give two folders")
    count = export_released(TokenDataset.open(dataset), codes, labels, overwrite=overwrite)
    sys.stdout.write(f"{count} images in {codes}\n")
