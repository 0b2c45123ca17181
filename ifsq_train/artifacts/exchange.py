"""Checkpoints to plain safetensors and back, and released checkpoints to this project's form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.open import open_storage
from data_pipelines.storage.outputs import Writer, claim
from ifsq_train.artifacts.exported import (
    RECIPE,
    Export,
    file_digest,
    read_export,
)
from ifsq_train.artifacts.networks import build_generator, build_tokenizer
from ifsq_train.artifacts.pretrained import fill, read_weights
from ifsq_train.artifacts.token_meaning import spec_of_images
from ifsq_train.artifacts.trained import TrainedTokenizer, load_tokenizer
from ifsq_train.checkpoint.format import AVERAGE, MASTER, Piece
from ifsq_train.checkpoint.reader import open_checkpoint
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.config import GeneratorTaskConfig, TokenizerTaskConfig, TrainConfig, to_dict
from ifsq_train.config.tasks import AUTOENCODER, GENERATOR
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.models.released import load_released_generator, load_released_tokenizer
from ifsq_train.versions import library_versions

EXPORTER = Writer("ifsq checkpoint export", ("*.safetensors", "recipe.json"))
IMPORTER = Writer("ifsq checkpoint import", ("checkpoints/*",))


def export_weights(path: str | Path, output: Path, *, overwrite: bool = False) -> list[Path]:
    """Every network of a checkpoint as safetensors with plain parameter names.

    Args:
        path: run folder or checkpoint folder.
        output: folder; gets ``NETWORK.safetensors``, ``NETWORK-ema.safetensors`` where averages
            were kept, and ``recipe.json``.
        overwrite: remove weights that were exported to the folder before.

    Returns:
        The weight files.

    Raises:
        CheckpointError: nothing intact is there.
        UserError: the folder holds something else, or weights of another checkpoint.
    """
    checkpoint = open_checkpoint(path)
    job = {"step": checkpoint.step, "files": checkpoint.header["files"]}
    claim(open_storage(output), EXPORTER, job, finished=True, overwrite=overwrite)
    output.mkdir(parents=True, exist_ok=True)
    facts = {"step": str(checkpoint.step), "format": "pt"}
    written: list[Path] = []
    for name in checkpoint.networks():
        files = {name: (MASTER, {})}
        if checkpoint.has_average(name):
            files[f"{name}-ema"] = (AVERAGE, checkpoint.buffers(f"ema/{name}"))
        for stem, (state, averaged_buffers) in files.items():
            buffers = checkpoint.buffers(f"live/{name}") | averaged_buffers
            tensors = checkpoint.weights(name, state) | buffers
            target = output / f"{stem}.safetensors"
            write_atomically(target, save(tensors, metadata=facts | {"weights": stem}))
            written.append(target)
    recipe = {
        "recipe": checkpoint.header["recipe"],
        "task": checkpoint.header.get("task"),
        "step": checkpoint.step,
        "sha256": {target.name: file_digest(target) for target in written},
    }
    write_atomically(output / RECIPE, json.dumps(recipe, indent=1).encode())
    return written


def released_spec(
    tokenizer: str,
    grid: tuple[int, int],
    latent_multiplier: float = 1.0,
    latent_mean: Sequence[float] | None = None,
    latent_std: Sequence[float] | None = None,
) -> GeneratorSpec:
    """What a released generator speaks; its file does not say.

    Args:
        tokenizer: run folder of the tokenizer its tokens or latents come from.
        grid: height and width in tokens or latent cells.
        latent_multiplier: DiT: latents were multiplied by it in training, after what follows.
        latent_mean: DiT: per channel, what was subtracted from the latents; zeros if None.
        latent_std: DiT: per channel, what they were divided by; ones if None.

    Raises:
        UserError: no complete checkpoint of a tokenizer, or statistics that do not fit it.
    """
    spec = spec_of_images(load_tokenizer(tokenizer), grid)
    channels = spec.latent_channels
    mean, std = latent_mean or (0.0,) * channels, latent_std or (1.0,) * channels
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise UserError(
                f"--latent-{name} has {len(values)} numbers; the tokenizer has {channels} channels:"
                " give one finite number for each"
            )
    if not math.isfinite(latent_multiplier) or min(std) <= 0:
        raise UserError("--latent-std and --latent-multiplier have to be above 0 and finite")
    return spec.scaled(tuple(mean), tuple(value / latent_multiplier for value in std))


def import_released(
    source: Path, output: Path, config: TrainConfig, spec: GeneratorSpec | None = None
) -> int:
    """A released tokenizer, LlamaGen or DiT checkpoint as a run folder of this project.

    The result can be encoded with, sampled from and evaluated; it holds no optimizer state, so it
    is not for resuming. Torch files are read restricted to tensors and containers.

    Args:
        source: ``.ckpt``, ``.pt`` or ``.safetensors`` file in the released layout.
        output: run folder to make.
        config: training recipe of the same architecture.
        spec: of generators, see `released_spec`.

    Returns:
        Number of parameters taken over.

    Raises:
        UserError: another kind of file or architecture, or `output` holds a run already.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file; give a released checkpoint")
    claim_run(output, config, source.name)
    name, live, described = _build(config, spec)
    _, average, _ = _build(config, spec)
    load = load_released_tokenizer if name == AUTOENCODER else load_released_generator
    try:
        load(live, source, averaged=False)
        load(average, source, averaged=True)
    except ValueError as error:
        raise UserError(str(error)) from error
    return write_run(output, _header(config, described, source.name), name, live, average)


def claim_run(output: Path, config: TrainConfig, source: str) -> None:
    """Take a new run folder for what is imported.

    Raises:
        UserError: it holds a run, or something else.
    """
    _refuse_a_run(output)
    claim(open_storage(output), IMPORTER, {"file": source, "task": config.task.kind})


def _refuse_a_run(output: Path) -> None:
    if (output / "checkpoints").exists():
        raise UserError(f"{output}: holds checkpoints already; give a new folder")


def import_tokenizer(
    tensors: Mapping[str, Tensor], output: Path, config: TrainConfig, source: str
) -> int:
    """Weights by this program's names as a run folder; returns the number of parameters.

    Raises:
        UserError: weights of another architecture, or `output` holds a run already.
    """
    name, network, described = _build(config, None)
    try:
        network.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise UserError(f"{source}: {' '.join(str(error).split())[:300]}") from error
    claim_run(output, config, source)
    return write_run(output, _header(config, described, source), name, network)


def write_run(
    output: Path,
    header: Mapping[str, Any],
    name: str,
    live: nn.Module,
    average: nn.Module | None = None,
) -> int:
    """A checkpoint of a network and its average; returns the number of parameters."""
    pieces, buffers = _pieces(name, live, MASTER), _buffers(f"live/{name}", live)
    if average is not None:
        pieces += _pieces(name, average, AVERAGE)
        buffers |= _buffers(f"ema/{name}", average)
    _write_checkpoint(output, 0, pieces, buffers, dict(header))
    return sum(parameter.numel() for parameter in live.parameters())


def import_exported(
    source: Path, output: Path, tokenizer: str | None = None, grid: tuple[int, int] | None = None
) -> int:
    """A folder of `export_weights` as a run folder; exporting it gives the same bits again.

    Args:
        source: the folder.
        output: run folder to make.
        tokenizer: of a generator: run folder of the tokenizer it is to be used with.
        grid: of a generator: height and width its grid is expected to have.

    Returns:
        Number of parameters taken over, averages not counted twice.

    Raises:
        UserError: damaged weights, those of another architecture, a tokenizer the generator was
            not trained with, or `output` holds a run already.
    """
    _refuse_a_run(output)
    export = read_export(source)
    config, spec = export.recipe, None
    if isinstance(config.task, GeneratorTaskConfig):
        spec = _spec_in(export)
        if grid is not None and spec.grid != grid:
            raise UserError(
                f"{source} makes a grid of {spec.grid[0]} x {spec.grid[1]}, not"
                f" {grid[0]} x {grid[1]}; leave --grid out"
            )
        if tokenizer is not None:
            refuse_foreign(spec, load_tokenizer(tokenizer), tokenizer, str(source))
    name, module, described = _build(config, spec)
    if name not in export.files:
        raise DataError(f"{source}: {name}.safetensors is missing; export the weights again")
    pieces: list[Piece] = []
    buffers: dict[str, Tensor] = {}
    parameters = {key for key, _ in module.named_parameters()}
    for stem, path in export.files.items():
        network, averaged = stem.removesuffix("-ema"), stem.endswith("-ema")
        tensors = read_weights(path)
        if network == name:
            fill(module, path)
        for key, value in tensors.items():
            of_network = key in parameters if network == name else value.dtype == torch.float32
            if of_network:
                state = AVERAGE if averaged else MASTER
                pieces.append(
                    Piece(network, key, state, tuple(value.shape), 0, value.float().reshape(-1))
                )
            else:
                buffers[f"{'ema' if averaged else 'live'}/{network}/{key}"] = value
    claim_run(output, config, source.name)
    header = _header(config, export.task or described, source.name)
    _write_checkpoint(output, export.step, pieces, buffers, header)
    return sum(math.prod(piece.shape) for piece in pieces if piece.state == MASTER)


def _spec_in(export: Export) -> GeneratorSpec:
    try:
        return GeneratorSpec.from_dict(export.task)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{export.folder}/{RECIPE} does not say what the generator speaks ({error!r});"
            " export the weights again"
        ) from error


def refuse_foreign(
    spec: GeneratorSpec, tokenizer: TrainedTokenizer, place: str, source: str
) -> None:
    """Raise UserError if a generator was not trained with a tokenizer; names what differs."""
    mine = spec_of_images(tokenizer, spec.grid)
    differ = [
        f"{what} {wanted}, not {found}"
        for what, wanted, found in (
            ("codebook sizes", spec.codebook_sizes, mine.codebook_sizes),
            ("latent channels", spec.latent_channels, mine.latent_channels),
            ("tokenizer", spec.tokenizer_fingerprint[:12], tokenizer.fingerprint[:12]),
        )
        if wanted and wanted != found
    ]
    if differ:
        raise UserError(
            f"{source} does not belong to the tokenizer {place}: it was trained with"
            f" {'; '.join(differ)}. Give the tokenizer its tokens or latents came from"
        )


def _header(config: TrainConfig, described: Mapping[str, Any], source: str) -> dict[str, Any]:
    return {
        "recipe": to_dict(config),
        "task": dict(described),
        "engine": {"strategy": "imported", "zero_stage": None, "world_size": 1},
        "data": {"kind": "imported", "file": source},
        "train_state": {},
        "optimizer_steps": {},
        "versions": library_versions(),
    }


def _write_checkpoint(
    output: Path,
    step: int,
    pieces: list[Piece],
    buffers: dict[str, Tensor],
    header: dict[str, Any],
) -> None:
    writer = CheckpointWriter(
        output / "checkpoints", rank=0, world_size=1, attempt="import", retention=Retention(1)
    )
    writer.save(step, pieces, buffers, header)
    writer.close()


def _build(
    config: TrainConfig, spec: GeneratorSpec | None
) -> tuple[str, nn.Module, Mapping[str, Any]]:
    """Name, network and what a checkpoint's header says of the task."""
    task = config.task
    if isinstance(task, TokenizerTaskConfig):
        return AUTOENCODER, build_tokenizer(task.model), {}
    if not isinstance(task, GeneratorTaskConfig):
        raise UserError(f"task '{task.kind}' has no released checkpoints; use a tokenizer's recipe")
    if spec is None:
        raise UserError("a generator's import needs --tokenizer and --grid")
    return GENERATOR, build_generator(task, spec), spec.speaking(task.speaks).to_dict()


def _pieces(network: str, module: nn.Module, state: str) -> list[Piece]:
    return [
        Piece(network, name, state, tuple(value.shape), 0, value.detach().float().reshape(-1))
        for name, value in module.named_parameters()
    ]


def _buffers(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    parameters = {name for name, _ in module.named_parameters()}
    saved = module.state_dict()
    return {f"{prefix}/{name}": value for name, value in saved.items() if name not in parameters}
