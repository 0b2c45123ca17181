"""Checkpoints to plain safetensors and back, and released checkpoints to this project's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from data_pipelines.errors import UserError
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.open import open_storage
from data_pipelines.storage.outputs import Writer, claim
from ifsq_train.artifacts.networks import build_generator, build_tokenizer
from ifsq_train.artifacts.token_meaning import spec_of_images
from ifsq_train.artifacts.trained import load_tokenizer
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
    written = []
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
    recipe = {"recipe": checkpoint.header["recipe"], "task": checkpoint.header.get("task")}
    write_atomically(output / "recipe.json", json.dumps(recipe, indent=1).encode())
    return written


def released_spec(tokenizer: str, grid: int, latent_multiplier: float = 1.0) -> GeneratorSpec:
    """What a released generator speaks; its file does not say.

    Args:
        tokenizer: run folder of the tokenizer its tokens or latents come from.
        grid: side of the token or latent grid.
        latent_multiplier: DiT: latents were multiplied by it in training.

    Raises:
        UserError: no complete checkpoint of a tokenizer.
    """
    spec = spec_of_images(load_tokenizer(tokenizer), (grid, grid))
    channels = spec.latent_channels
    return spec.scaled((0.0,) * channels, (1.0 / latent_multiplier,) * channels)


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
    if (output / "checkpoints").exists():
        raise UserError(f"{output}: holds checkpoints already; give a new folder")
    if not source.is_file():
        raise UserError(f"{source}: no such file; give a released checkpoint")
    claim(open_storage(output), IMPORTER, {"file": source.name, "task": config.task.kind})
    name, live, described = _build(config, spec)
    _, average, _ = _build(config, spec)
    load = load_released_tokenizer if name == AUTOENCODER else load_released_generator
    try:
        load(live, source, averaged=False)
        load(average, source, averaged=True)
    except ValueError as error:
        raise UserError(str(error)) from error
    header = {
        "recipe": to_dict(config),
        "task": described,
        "engine": {"strategy": "imported", "zero_stage": None, "world_size": 1},
        "data": {"kind": "imported", "file": source.name},
        "train_state": {},
        "optimizer_steps": {},
        "versions": library_versions(),
    }
    pieces = _pieces(name, live, MASTER) + _pieces(name, average, AVERAGE)
    buffers = _buffers(f"live/{name}", live) | _buffers(f"ema/{name}", average)
    writer = CheckpointWriter(
        output / "checkpoints", rank=0, world_size=1, attempt="import", retention=Retention(1)
    )
    writer.save(0, pieces, buffers, header)
    writer.close()
    return sum(parameter.numel() for parameter in live.parameters())


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
