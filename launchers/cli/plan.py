"""`ifsq plan`: what a recipe will need, before anything is asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipelines.errors import UserError
from launchers.cli.options import Grid, Overrides, Plugins, RecipeName, both_sides, finite

if TYPE_CHECKING:
    from ifsq_train.config import TrainConfig
    from ifsq_train.models.generator_spec import GeneratorSpec
    from ifsq_train.planning.estimate import Estimate

GIB = 2.0**30
DEFAULT_PEAK_TFLOPS = 989.0
"""H100 SXM, dense bf16."""


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    plugin: Plugins = None,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1)] = 8,
    peak_tflops: Annotated[
        float,
        typer.Option(
            callback=finite, min=0.001, help="Of one GPU; the default is an H100 in bf16."
        ),
    ] = DEFAULT_PEAK_TFLOPS,
    efficiency: Annotated[
        float,
        typer.Option(callback=finite, min=0.01, max=1.0, help="Part of the peak that is reached."),
    ] = 0.35,
    grid: Grid = None,
    codebook_size: Annotated[
        list[int] | None, typer.Option(min=2, help="Generators: once per token group.")
    ] = None,
    latent_channels: Annotated[int | None, typer.Option(min=1, help="Diffusion.")] = None,
    link_gb_per_s: Annotated[
        float,
        typer.Option(
            callback=finite, min=0.001, help="What one GPU sends; the default is a 400 Gb/s link."
        ),
    ] = 50.0,
) -> None:
    """Memory per GPU by ZeRO stage, FLOPs, communication and days, from arithmetic."""
    from ifsq_train.artifacts.recipe_faults import recipe_faults
    from ifsq_train.config import TrainConfig
    from ifsq_train.config.load import load_recipe
    from ifsq_train.models.generator_spec import GeneratorSpec
    from ifsq_train.planning.estimate import estimate

    config = load_recipe(recipe, overrides or [], recipe_faults)
    if not isinstance(config, TrainConfig):
        raise UserError(f"{recipe}: kind '{config.kind}', `ifsq plan` needs a 'train' recipe")
    spec = _spec(config)
    if grid is not None:
        sides = both_sides("--grid", grid)
        spec = GeneratorSpec(sides, tuple(codebook_size or ()), latent_channels or 0)
    found = estimate(
        config,
        workers=nodes * gpus_per_node,
        peak_flops=peak_tflops * 1e12,
        efficiency=efficiency,
        spec=spec,
    )
    lines = describe(found, config, efficiency)
    lines += memory_lines(found, config, spec)
    computing = found.flops_per_step / found.workers / (peak_tflops * 1e12 * efficiency)
    lines.append(step_line(found, config, computing, link_gb_per_s * 1e9))
    lines += world_lines(found, config, computing, link_gb_per_s * 1e9)
    for line in lines:
        sys.stdout.write(f"{line}\n")


def memory_lines(found: Estimate, config: TrainConfig, spec: GeneratorSpec | None) -> list[str]:
    """The most a worker holds: state, gradients in transit, and what one micro-batch makes."""
    from ifsq_train.training.fake_step import activation_bytes

    passing = activation_bytes(config, spec, found.micro_batch_size)
    if passing is None:
        return ["activations come on top; the dry run of a start measures them"]
    stage = _stage(config)
    total = found.state_bytes[stage] + found.bucket_bytes[stage] + passing
    return [
        f"activations        {passing / GIB:.2f} GiB for {found.micro_batch_size} samples at once,"
        " frozen networks included, by eager kernels; compiled blocks keep less",
        f"peak memory        {total / GIB:.2f} GiB with the state above and"
        f" {found.bucket_bytes[stage] / GIB:.2f} GiB of gradients being sent",
    ]


def world_lines(found: Estimate, config: TrainConfig, computing: float, link: float) -> list[str]:
    """A warning where there are too many workers for the batch; none otherwise."""
    sending = found.communication_bytes[_stage(config)] / link
    if sending <= computing or found.workers == 1:
        return []
    # Computing shrinks with the workers while sending stays about the same.
    enough = max(1, int(found.workers * computing / sending))
    return [
        f"warning            {found.workers} workers are too many for a batch of"
        f" {config.data.global_batch_size:,}: sending takes longer than computing; use about"
        f" {enough}, or a larger batch (optim.NAME.lr_scaling has rules for its learning rate)"
    ]


def _stage(config: TrainConfig) -> int:
    return config.strategy.zero_stage if config.strategy.kind == "deepspeed" else 0


def step_line(found: Estimate, config: TrainConfig, computing: float, link: float) -> str:
    """Seconds of a step by what takes them, and which is the bottleneck; `link` in bytes/s."""
    sending = found.communication_bytes[_stage(config)] / link
    name = "the network" if sending > computing else "computing"
    return (
        f"step               {1e3 * computing:.3g} ms computing, {1e3 * sending:.3g} ms sending"
        f" (overlapped at best): the bottleneck is {name}"
    )


def _spec(config: TrainConfig) -> GeneratorSpec | None:
    """Of the recipe's token dataset, where it exists."""
    from data_pipelines.tokens.reader import TokenDataset
    from ifsq_train.artifacts.token_meaning import spec_of_tokens

    if config.data.kind != "tokens":
        return None
    try:
        return spec_of_tokens(TokenDataset.open(config.data.url).spec)
    except UserError:
        return None


def duration(days: float) -> str:
    """Days in the unit a reader would use."""
    for unit, per_day in (("days", 1.0), ("hours", 24.0), ("minutes", 1440.0)):
        if days * per_day >= 1.0:
            return f"{days * per_day:.3g} {unit}"
    return f"{days * 86400.0:.3g} seconds"


def describe(found: Estimate, config: TrainConfig, efficiency: float) -> list[str]:
    """The estimate for a reader."""
    sizes = ", ".join(f"{name} {count:,}" for name, count in found.parameters.items())
    lines = [
        f"parameters         {sizes}",
        f"FLOPs              {found.flops_per_sample:.3g} per sample,"
        f" {found.flops_per_step:.3g} per step of {config.data.global_batch_size}",
        f"workers            {found.workers}, each {found.micro_batches} micro-batch(es) of up to"
        f" {found.micro_batch_size}",
        "ZeRO stage         state per GPU        sent per GPU and step",
    ]
    for stage, size in found.state_bytes.items():
        chosen = config.strategy.kind == "deepspeed" and stage == config.strategy.zero_stage
        mark = "  <- recipe" if chosen else ""
        sent = found.communication_bytes[stage]
        lines.append(f"{stage:<18} {size / GIB:8.2f} GiB {sent / GIB:18.2f} GiB{mark}")
    if found.days is not None:
        lines.append(
            f"time               {duration(found.days)} for {config.steps:,} steps at"
            f" {efficiency:.0%} of the peak"
        )
    return lines
