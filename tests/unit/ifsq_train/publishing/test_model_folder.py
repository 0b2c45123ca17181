"""`ifsq export`: a folder that needs nothing else, and says no more than it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from data_pipelines.errors import UserError
from data_pipelines.images.packing.pack import pack_folder
from ifsq_train import Tokenizer
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config import TrainConfig
from ifsq_train.publishing.diffusers_folder import (
    diffusers_name,
    export_diffusers,
    import_diffusers,
    is_diffusers,
)
from ifsq_train.publishing.model_folder import ExportOptions, export_model
from tests.support.precompute_parts import (
    published_bytes,
    tokenizer_recipe,
    write_images,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publishing") / "tokenizer"
    write_tokenizer(folder, levels=5)
    return folder


def test_the_folder_is_the_tokenizer_bit_for_bit(run: Path, tmp_path: Path) -> None:
    written = export_model(run, tmp_path / "out", ExportOptions(license="cc-by-nc-4.0"))
    assert written[-1].name == "config.json"
    moved = tmp_path / "elsewhere"
    (tmp_path / "out").rename(moved)
    original, found = load_tokenizer(run), load_tokenizer(moved)
    assert found.fingerprint == original.fingerprint
    assert (found.step, found.weights, found.config) == (1, "live", original.config)
    expected = original.network.state_dict()
    assert list(found.network.state_dict()) == list(expected)
    assert all(torch.equal(v, expected[name]) for name, v in found.network.state_dict().items())
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    tokens = [Tokenizer.from_pretrained(place).encode(images) for place in (run, moved)]
    assert torch.equal(*tokens)
    _, header, text = (moved / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "cc-by-nc-4.0"
    assert "ifsq with levels [5, 5, 5, 5]" in text
    assert "No licence" not in text


def test_nothing_of_this_machine_is_published(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path.name


def test_pictures_are_of_the_dataset_named(run: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    pack_folder(tmp_path / "images", tmp_path / "dataset", shard_bytes=20_000)
    options = ExportOptions(images=str(tmp_path / "dataset"), pictures=3)
    export_model(run, tmp_path / "out", options)
    with Image.open(tmp_path / "out" / "preview.png") as picture:
        assert picture.size == (3 * (96 + 4) + 4, 2 * (96 + 4) + 4)
    assert "](preview.png)" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="nowhere"):
        export_model(run, tmp_path / "two", ExportOptions(images=str(tmp_path / "nowhere")))


def test_damage_and_foreign_folders_are_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export_model(run, folder)
    export_model(run, folder)
    write_tokenizer(tmp_path / "other", seed=1, levels=5)
    with pytest.raises(UserError, match=r"other settings.*--overwrite"):
        export_model(tmp_path / "other", folder)
    export_model(tmp_path / "other", folder, ExportOptions(overwrite=True))
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"fingerprint": "0" * 64}))
    with pytest.raises(UserError, match="do not belong together or are damaged"):
        Tokenizer.from_pretrained(folder)
    changed = facts | {"model": facts["model"] | {"base_channels": 16}}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="not the weights of this architecture"):
        Tokenizer.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"format_version None \(model_type bert\)"):
        Tokenizer.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        Tokenizer.from_pretrained(folder)


def test_diffusers_names() -> None:
    names = {
        "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0"
        ".conv_shortcut.weight",
        "encoder.down.0.downsample.conv.bias": "encoder.down_blocks.0.downsamplers.0.conv.bias",
        "decoder.up.2.attn.0.proj_out.bias": "decoder.up_blocks.0.attentions.0.to_out.0.bias",
        "decoder.up.1.upsample.conv.bias": "decoder.up_blocks.1.upsamplers.0.conv.bias",
        "encoder.mid_block.1.norm.weight": "encoder.mid_block.attentions.0.group_norm.weight",
        "encoder.mid_block.2.norm1.weight": "encoder.mid_block.resnets.1.norm1.weight",
        "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
        "post_quant_conv.bias": "post_quant_conv.bias",
    }
    assert {name: diffusers_name(name, 3) for name in names} == names


def test_an_autoencoderkl_comes_back_bit_for_bit(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"num_res_blocks": 2, "attention": True, "image_channels": 1}
    write_tokenizer(tmp_path / "run", kind="vae", **shape)
    export_diffusers(tmp_path / "run", tmp_path / "out")
    assert is_diffusers(tmp_path / "out")
    values = tokenizer_recipe(tmp_path / "unused", kind="vae", **shape)
    recipe = TrainConfig.model_validate(values)
    import_diffusers(tmp_path / "out", tmp_path / "back", recipe)
    found, wanted = (load_tokenizer(tmp_path / name) for name in ("back", "run"))
    assert found.fingerprint == wanted.fingerprint
    export_diffusers(tmp_path / "back", tmp_path / "again")
    first, again = (published_bytes(tmp_path / name) for name in ("out", "again"))
    assert {"config.json", "diffusion_pytorch_model.safetensors"} <= set(first)
    assert first == again
    values["task"]["model"]["channel_multipliers"] = [1, 1]
    other = TrainConfig.model_validate(values)
    with pytest.raises(UserError, match=r"block_out_channels \[8, 16\], not \[8, 8\]"):
        import_diffusers(tmp_path / "out", tmp_path / "new", other)
    (tmp_path / "out" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        import_diffusers(tmp_path / "out", tmp_path / "new", recipe)
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_autoencoderkl_is_not_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quantizer 'ifsq' \(ae and vae are\)"):
        export_diffusers(run, tmp_path / "out")
    write_tokenizer(tmp_path / "vae", kind="vae", z_channels=8)
    with pytest.raises(UserError, match=r"z_channels 8 and 4 .*; num_res_blocks 1 \(2\)"):
        export_diffusers(tmp_path / "vae", tmp_path / "out")
    assert not (tmp_path / "out").exists()
