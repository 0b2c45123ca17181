"""`ifsq export`: networks and token datasets in the layouts of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launchers.cli.options import Overwrite, Plugins

LAYOUTS = {
    "hf": "a network as model hubs store it: config.json, model.safetensors, card, preview",
    "diffusers": "an ae or vae tokenizer as diffusers' AutoencoderKL",
    "parquet": "a token dataset that the `datasets` library loads",
    "plain": "every network of a checkpoint as safetensors (`ifsq checkpoint export`)",
}


def export(
    source: Annotated[
        str, typer.Argument(help="Run or checkpoint folder; for parquet a token dataset.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    layout: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {what}" for name, what in LAYOUTS.items()))
    ] = "hf",
    weights: Annotated[str, typer.Option(help="averaged or live.")] = "averaged",
    tokenizer: Annotated[
        str | None, typer.Option(help="Generators: their tokenizer, if the recipe has none.")
    ] = None,
    license_name: Annotated[
        str, typer.Option("--license", help="For the card, such as apache-2.0 or cc-by-nc-4.0.")
    ] = "unknown",
    evaluation: Annotated[
        Path | None, typer.Option(help="File of `ifsq evaluate` whose numbers the card shows.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Dataset for a tokenizer's pictures; else the run's own.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, max=64, help="Pictures in the preview.")] = 8,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a network or a token dataset for other programs."""
    if layout not in LAYOUTS:
        raise UserError(f"--layout '{layout}' is unknown; use {', '.join(LAYOUTS)}")
    if weights not in ("averaged", "live"):
        raise UserError(f"--weights '{weights}' is unknown; use averaged or live")
    if layout == "hf":
        from ifsq_train.publishing.model_folder import ExportOptions, export_model

        options = ExportOptions(
            weights, tokenizer, license_name, evaluation, images, pictures, overwrite
        )
        written = export_model(source, output, options)
    elif layout == "diffusers":
        from ifsq_train.publishing.diffusers_folder import export_diffusers

        written = export_diffusers(source, output, weights, overwrite=overwrite)
    elif layout == "parquet":
        from data_pipelines.tokens.parquet import export_parquet
        from data_pipelines.tokens.reader import TokenDataset

        written = export_parquet(TokenDataset.open(source), output, overwrite=overwrite)
    else:
        from ifsq_train.artifacts.exchange import export_weights

        written = export_weights(source, output, overwrite=overwrite)
    for path in written:
        typer.echo(str(path))
