"""diffusers' AutoencoderKL: a tokenizer without a quantizer is written as one, and read from one.

The networks are equal layer by layer where the conditions of `_differences` hold, so weights are
renamed and never computed: what diffusers decodes is what this program decodes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from data_pipelines.documents import read_object
from data_pipelines.errors import UserError
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.open import open_storage
from data_pipelines.storage.outputs import Writer, claim
from ifsq_train.artifacts.exchange import import_tokenizer
from ifsq_train.artifacts.networks import build_tokenizer
from ifsq_train.artifacts.pretrained import read_weights
from ifsq_train.artifacts.trained import TrainedTokenizer, Weights, load_tokenizer
from ifsq_train.config import TokenizerConfig, TokenizerTaskConfig, TrainConfig

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
EXPORTER = Writer("ifsq export --layout diffusers", (CONFIG, WEIGHTS))
CLASS_NAME = "AutoencoderKL"
_NO_SHAPE = ("_class_name", "scaling_factor", "force_upcast")
_MIDDLE_BLOCKS = 2
"""AutoencoderKL's middle has two residual blocks, whatever the levels have."""

_NORMS_AND_SHORTCUT = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def export_diffusers(
    path: str | Path, output: Path, weights: str = "averaged", *, overwrite: bool = False
) -> list[Path]:
    """Write a tokenizer of kind ae or vae as diffusers' AutoencoderKL.

    An ae's latents are the mean of the posterior that AutoencoderKL has; its variance was never
    trained, so take ``latent_dist.mode()``.

    Args:
        path: run folder, checkpoint, or folder of ``ifsq export``.
        output: folder to write.
        weights: averaged or live.
        overwrite: replace what was exported to the folder before.

    Raises:
        UserError: no tokenizer there, or one that AutoencoderKL is not.
    """
    wanted: Weights = "live" if weights == "live" else "averaged"
    trained = load_tokenizer(path, wanted)
    if differences := _differences(trained.config):
        raise UserError(
            f"{path}: diffusers' AutoencoderKL is another network: {'; '.join(differences)};"
            " use --layout hf"
        )
    job = {"layout": "diffusers", "fingerprint": trained.fingerprint}
    finished = (output / CONFIG).is_file()
    claim(open_storage(output), EXPORTER, job, finished=finished, overwrite=overwrite)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / WEIGHTS, save(diffusers_tensors(trained), {"format": "pt"}))
    text = json.dumps(diffusers_config(trained.config), indent=2) + "\n"
    write_atomically(output / CONFIG, text.encode())
    return [output / WEIGHTS, output / CONFIG]


def is_diffusers(folder: Path) -> bool:
    """Whether a folder says that it holds an AutoencoderKL."""
    place = folder / CONFIG
    return place.is_file() and read_object(place).get("_class_name") == CLASS_NAME


def import_diffusers(source: Path, output: Path, config: TrainConfig) -> int:
    """An AutoencoderKL as a run folder of this project.

    Args:
        source: folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``.
        output: run folder to make.
        config: training recipe of the same architecture.

    Returns:
        Number of parameters taken over.

    Raises:
        UserError: another architecture, missing or damaged weights, or `output` holds a run.
    """
    task = config.task
    if not isinstance(task, TokenizerTaskConfig):
        raise UserError(f"{source}: an {CLASS_NAME} needs a recipe of a tokenizer")
    if differences := _differences(task.model):
        raise UserError(f"the recipe is no {CLASS_NAME}: {'; '.join(differences)}")
    found, wanted = read_object(source / CONFIG), diffusers_config(task.model)
    differ = [
        f"{key} {found.get(key)}, not {value}"
        for key, value in wanted.items()
        if key not in _NO_SHAPE and found.get(key) != value
    ]
    if differ:
        raise UserError(f"{source} has another shape than the recipe: {'; '.join(differ)}")
    theirs = read_weights(source / WEIGHTS)
    network = build_tokenizer(task.model)
    ours: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        renamed = diffusers_name(name, len(task.model.channel_multipliers))
        if renamed not in theirs:
            raise UserError(f"{source}: {WEIGHTS} has no {renamed}; it is another architecture")
        given = theirs[renamed].float()
        ours[name] = given[:, :, None, None] if value.dim() == given.dim() + 2 else given
    return import_tokenizer(ours, output, config, source.name)


def _differences(config: TokenizerConfig) -> list[str]:
    """Why the architecture is not that of AutoencoderKL, with what would be."""
    quantizer, found = config.quantizer, []
    if quantizer.kind not in ("ae", "vae"):
        return [f"quantizer '{quantizer.kind}' (ae and vae are)"]
    if quantizer.num_channels != config.z_channels:
        found.append(
            f"z_channels {config.z_channels} and {quantizer.num_channels} latent channels (equal)"
        )
    if config.num_res_blocks != _MIDDLE_BLOCKS:
        found.append(f"num_res_blocks {config.num_res_blocks} ({_MIDDLE_BLOCKS})")
    if not config.double_z:
        found.append("double_z false (true)")
    return found


def diffusers_config(config: TokenizerConfig) -> dict[str, Any]:
    """``config.json`` of the AutoencoderKL that is this network."""
    widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
    plain = len(widths) - 1
    last_down = "AttnDownEncoderBlock2D" if config.attention else "DownEncoderBlock2D"
    first_up = "AttnUpDecoderBlock2D" if config.attention else "UpDecoderBlock2D"
    return {
        "_class_name": CLASS_NAME,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * plain + [last_down],
        "up_block_types": [first_up] + ["UpDecoderBlock2D"] * plain,
        "latent_channels": config.z_channels,
        "layers_per_block": config.num_res_blocks,
        "mid_block_add_attention": config.attention,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": 1.0,
        "force_upcast": True,
    }


def diffusers_tensors(trained: TrainedTokenizer) -> dict[str, Tensor]:
    """The weights by diffusers' names; its attention has matrices where ours has 1x1 kernels."""
    levels, found = len(trained.config.channel_multipliers), {}
    for name, value in trained.network.state_dict().items():
        if name.startswith("quantize."):
            continue
        renamed = diffusers_name(name, levels)
        is_matrix = "attentions" in renamed and value.dim() == 4
        found[renamed] = (value[:, :, 0, 0] if is_matrix else value).contiguous()
    return found


def diffusers_name(name: str, levels: int) -> str:
    """The name in AutoencoderKL of a parameter of this program's tokenizer.

    Args:
        name: such as ``decoder.up.0.block.1.conv1.weight``.
        levels: of the tokenizer; diffusers counts the decoder's from the deepest.
    """
    name = name.replace(".norm_out.", ".conv_norm_out.")
    if found := re.match(r"(encoder|decoder)\.(down|up)\.(\d+)\.(.*)", name):
        side, way, level, rest = found.groups()
        index = int(level) if way == "down" else levels - 1 - int(level)
        return f"{side}.{way}_blocks.{index}.{_in_level(rest)}"
    if found := re.match(r"(encoder|decoder)\.mid_block\.(\d+)\.(.*)", name):
        side, index, rest = found.groups()
        return f"{side}.mid_block.{_in_middle(int(index), rest)}"
    return name


def _in_level(rest: str) -> str:
    if found := re.match(r"block\.(\d+)\.(.*)", rest):
        return f"resnets.{found[1]}.{_renamed(found[2], _NORMS_AND_SHORTCUT)}"
    if found := re.match(r"attn\.(\d+)\.(.*)", rest):
        return f"attentions.{found[1]}.{_renamed(found[2], _ATTENTION)}"
    way, _, last = rest.partition(".")
    return f"{way}rs.0.{last}"


def _in_middle(index: int, rest: str) -> str:
    """The middle is two residual blocks, an attention between them where there is one."""
    part = rest.partition(".")[0]
    if part in _ATTENTION:
        return f"attentions.0.{_renamed(rest, _ATTENTION)}"
    return f"resnets.{min(index, 1)}.{_renamed(rest, _NORMS_AND_SHORTCUT)}"


def _renamed(rest: str, names: dict[str, str]) -> str:
    part, _, last = rest.partition(".")
    return f"{names.get(part, part)}.{last}"
