"""`ifsq checkpoint`: inspect and verify checkpoints, export weights, import released ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launchers.cli.options import Grid, Overwrite, both_sides, finite

app = typer.Typer(help="Inspect checkpoints, export and import weights.", no_args_is_help=True)

RunFolder = Annotated[Path, typer.Argument(help="Run folder or checkpoint folder.")]


@app.command("info")
def info(path: RunFolder) -> None:
    """Verify a checkpoint and say what it holds."""
    from ifsq_train.checkpoint.reader import open_checkpoint

    checkpoint = open_checkpoint(path)
    facts = {"folder": str(checkpoint.folder), "networks": checkpoint.networks()}
    shown = ("step", "world_size", "train_state", "changes", "engine", "data", "task", "versions")
    facts |= {key: checkpoint.header[key] for key in shown if key in checkpoint.header}
    typer.echo(json.dumps(facts, indent=1))


@app.command("verify")
def verify(path: RunFolder) -> None:
    """Read every byte of every checkpoint of a run; exit code 1 if any is damaged."""
    from ifsq_train.checkpoint.format import CheckpointError, list_steps, step_folder
    from ifsq_train.checkpoint.reader import Checkpoint

    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = list_steps(folder)
    folders = [step_folder(folder, step) for step in steps] or [path]
    damaged = 0
    for one in folders:
        try:
            checkpoint = Checkpoint(one)
        except CheckpointError as error:
            damaged += 1
            typer.echo(f"{one.name}: damaged: {error}")
        else:
            size = sum(entry["bytes"] for entry in checkpoint.header["files"].values())
            typer.echo(f"{one.name}: intact, {size / 2**20:.1f} MiB")
    if damaged:
        raise typer.Exit(1)


@app.command("export")
def export(
    path: RunFolder,
    output: Annotated[Path, typer.Argument(help="Folder for the safetensors files.")],
    overwrite: Overwrite = False,
) -> None:
    """Weights, and averaged weights where kept, as safetensors with plain names."""
    from ifsq_train.artifacts.exchange import export_weights

    for written in export_weights(path, output, overwrite=overwrite):
        typer.echo(str(written))


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Released .ckpt, .pt or .safetensors file, or a folder of `export`, or with an"
            " AutoencoderKL of diffusers."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Run folder to make.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Released files: training recipe of the same architecture."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Generators: run folder of their tokenizer.")
    ] = None,
    grid: Grid = None,
    latent_multiplier: Annotated[
        float, typer.Option(callback=finite, min=1e-9, help="DiT: what latents were multiplied by.")
    ] = 1.0,
    latent_mean: Annotated[
        str | None,
        typer.Option(help="DiT: what was subtracted from latents before: A,B,... per channel."),
    ] = None,
    latent_std: Annotated[
        str | None, typer.Option(help="DiT: what they were divided by: A,B,... per channel.")
    ] = None,
) -> None:
    """Import a released tokenizer, LlamaGen or DiT checkpoint, or exported weights."""
    from ifsq_train.artifacts.exchange import import_exported, import_released, released_spec
    from ifsq_train.config import TrainConfig
    from ifsq_train.config.load import load_recipe
    from ifsq_train.publishing.diffusers_folder import import_diffusers, is_diffusers

    sides = None if grid is None else both_sides("--grid", grid)
    of_diffusers = source.is_dir() and is_diffusers(source)
    if source.is_dir() and not of_diffusers:
        if recipe is not None:
            raise UserError(f"{source}: exported weights bring their recipe; leave --recipe out")
        count = import_exported(source, output, tokenizer, sides)
        typer.echo(f"{count:,} parameters in {output}")
        return
    if recipe is None:
        raise UserError(
            f"{source} has weights and no training recipe; give one of the same architecture:"
            " --recipe"
        )
    config = load_recipe(recipe, [])
    if not isinstance(config, TrainConfig):
        raise UserError(f"{recipe}: kind '{config.kind}', an import needs a 'train' recipe")
    if of_diffusers:
        typer.echo(f"{import_diffusers(source, output, config):,} parameters in {output}")
        return
    spec = None
    if tokenizer is not None and sides is not None:
        mean = _numbers("--latent-mean", latent_mean)
        std = _numbers("--latent-std", latent_std)
        spec = released_spec(tokenizer, sides, latent_multiplier, mean, std)
    count = import_released(source, output, config, spec)
    typer.echo(f"{count:,} parameters in {output}")


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers between commas."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text[:60]!r} is not numbers between commas: 0.5,-1") from None
