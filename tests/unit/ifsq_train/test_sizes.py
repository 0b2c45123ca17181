"""Images that are not square, and grey ones, through every stage from pixels to samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.errors import UserError
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.tokens.reader import TokenDataset
from ifsq_train import Generator, Tokenizer
from ifsq_train.artifacts.recipe_faults import recipe_faults
from ifsq_train.config import EvaluateConfig, SampleConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.evaluation.evaluate import evaluate
from ifsq_train.precompute.job import run_precompute_local
from ifsq_train.publishing.model_folder import ExportOptions, export_model
from ifsq_train.sampling.draw import draw_samples, read_samples
from tests.plugins.runs import recipe, tokenizer_task, train
from tests.support.precompute_parts import configure, write_images

HEIGHT, WIDTH = 8, 12
VIEW = {"kind": "adm_center", "image_size": [HEIGHT, WIDTH]}
MODEL = {"size": "custom", "num_layers": 1, "num_heads": 2, "dim": 16, "num_classes": 3}


@dataclass(frozen=True)
class Stages:
    """Folders of everything that was made, and the channels of its images."""

    folder: Path
    channels: int

    def place(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    made = Stages(tmp_path_factory.mktemp("sizes"), request.param)
    write_images(made.folder / "images")
    pack_folder(made.folder / "images", made.folder / "dataset")
    task = tokenizer_task({"kind": "ifsq", "levels": [3, 3]})
    task["model"]["image_channels"] = request.param
    task["adversarial"] = {"num_layers": 1, "start_step": 1, "base_channels": 4}
    data: dict[str, Any] = {"kind": "images", "url": made.place("dataset"), "view": VIEW}
    values = recipe(made.folder / "tokenizer", data, task, "autoencoder")
    values["optim"]["discriminator"] = {"lr": 1e-3}
    train({**values, "track_images": {"every_steps": 2, "count": 2}}, steps=2)
    tokens = {"source": made.place("dataset"), "tokenizer": made.place("tokenizer"), "view": VIEW}
    job = configure({"kind": "precompute", **tokens}, made.folder / "tokens", decoder="cpu")
    run_precompute_local(job, device="cpu")
    for kind, more in (("autoregressive", {}), ("diffusion", {"patch_size": 2})):
        data = {"kind": "tokens", "url": made.place("tokens")}
        generator = {"kind": kind, "model": MODEL | more}
        train(recipe(made.folder / kind, data, generator, "generator"), steps=1)
    return made


def test_tokens_lie_on_a_grid_of_height_and_width(stages: Stages) -> None:
    spec = TokenDataset.open(stages.place("tokens")).spec
    assert spec.grid == (4, 6)
    assert spec.view["image_size"] == [HEIGHT, WIDTH]


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_samples_have_the_size_of_the_images(stages: Stages, tmp_path: Path, kind: str) -> None:
    values = {"generator": stages.place(kind), "tokenizer": stages.place("tokenizer")}
    settings = {"kind": "sample", "samples_per_class": 1, "flow": {"num_steps": 1}}
    draw_samples(SampleConfig.model_validate(settings | values | {"output": str(tmp_path / "s")}))
    images = read_samples(tmp_path / "s").images
    assert images.shape == (3, HEIGHT, WIDTH, 3)
    if stages.channels == 1:
        assert np.array_equal(images[..., 0], images[..., 2])


def test_reconstructions_are_measured(stages: Stages, tmp_path: Path) -> None:
    values = {"tokenizer": stages.place("tokenizer"), "data": stages.place("dataset")}
    output = {"kind": "evaluate", "output": str(tmp_path / "result.json"), "view": VIEW}
    found = evaluate(EvaluateConfig.model_validate(values | output))["metrics"]
    assert np.isfinite(found["psnr_db"])


def test_an_export_encodes_and_draws_the_same(stages: Stages, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    image = Image.fromarray(pixels)
    options = ExportOptions(tokenizer=stages.place("tokenizer"))
    export_model(stages.place("autoregressive"), tmp_path / "hub", options)
    opened = Tokenizer.from_pretrained(tmp_path / "hub" / "tokenizer")
    tokens = Tokenizer.from_pretrained(stages.place("tokenizer")).encode(image)
    assert tokens.shape == (4, 6, 1)
    assert torch.equal(opened.encode(image), tokens)
    decoded = opened.decode(tokens)
    assert (decoded.size, decoded.mode) == (image.size, "RGB" if stages.channels == 3 else "L")
    assert opened.decode(tokens, output_type="np").shape == (HEIGHT, WIDTH, stages.channels)
    drawn = Generator.from_pretrained(tmp_path / "hub").sample([0, 1])
    assert drawn.images[1].size == image.size
    if stages.channels == 1:
        assert torch.equal(opened.encode(decoded), opened.encode(decoded.convert("RGB")))
        grey = image.convert("L")
        assert torch.equal(opened.encode(grey), opened.encode(np.array(grey)[..., None]))


def test_a_network_of_other_channels_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="image_channels: found 4; input should be 1 or 3") as said:
        load_recipe("demo/tokenizer", ["task.model.image_channels=4"])
    assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("[32,30]", "found 32 x 30, not a multiple of the 4 .*; use 32 or 32 x 28"),
        ("[32]", r"give pixels per side, or height and width such as \[256, 384\]"),
        ("[0,32]", "image_size=.* is not allowed; use 1 to 65535 pixels, .*"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size: str, said: str) -> None:
    changes = [
        f"data.view.image_size={size}",
        "task.model.channel_multipliers=[1,2,2]",
        "task.adversarial=null",
    ]
    with pytest.raises(UserError, match=rf"data\.view(\.image_size)?: {said}(\n|$)"):
        load_recipe("demo/tokenizer", changes, recipe_faults)
