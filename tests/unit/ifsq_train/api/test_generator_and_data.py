"""`Generator`, `load_dataset` and `evaluate` against what the commands make."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data_pipelines.errors import UserError
from ifsq_train import Generator, Tokenizer, evaluate, load_dataset
from ifsq_train.config import ImageDataConfig, TokenDataConfig
from ifsq_train.data.open import open_train_data
from ifsq_train.publishing.model_folder import ExportOptions, export_model
from ifsq_train.sampling.draw import draw_samples, read_samples
from tests.support.generator_parts import make_generators, sampling
from tests.support.precompute_parts import write_tokenizer
from tests.support.repository import REPOSITORY

pytestmark = pytest.mark.heavy
VIEW = {"kind": "center_flip", "image_size": 16}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("api")
    return {**make_generators(folder), "folder": str(folder)}


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_samples_are_those_of_the_command(parts: dict[str, str], tmp_path: Path, kind: str) -> None:
    config = sampling(parts, kind, tmp_path / "out", samples_per_class=1, seed=5)
    draw_samples(config)
    generator = Generator.from_pretrained(parts[kind], tokenizer=parts["tokenizer"])
    settings: dict[str, Any] = {"cfg_scale": 1.5, "flow": {"num_steps": 4}}
    found = generator.sample([0, 1, 2], seed=5, output_type="np", **settings)
    expected = read_samples(tmp_path / "out").images
    assert np.abs(found.images.astype(int) - expected).max() <= 1
    assert found.classes == (0, 1, 2)
    again = generator.sample([0, 1, 2], seed=5, output_type="np", batch_size=2, **settings)
    assert np.abs(found.images.astype(int) - again.images).max() <= 1
    if kind == "autoregressive":
        assert found.tokens is not None
        decoded = generator.tokenizer.decode(found.tokens, output_type="np")
        assert np.abs(decoded.astype(int) - found.images).max() <= 1
    else:
        assert found.tokens is None
    assert generator.sample(1, **settings).images[0].size == (16, 16)


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_an_exported_generator_needs_nothing_else(
    parts: dict[str, str], tmp_path: Path, kind: str
) -> None:
    with pytest.raises(UserError, match="give --tokenizer RUN"):
        export_model(parts[kind], tmp_path / "out")
    export_model(parts[kind], tmp_path / "out", ExportOptions(tokenizer=parts["tokenizer"]))
    (tmp_path / "out").rename(tmp_path / "moved")
    original = Generator.from_pretrained(parts[kind], tokenizer=parts["tokenizer"])
    found = Generator.from_pretrained(tmp_path / "moved")
    assert found.fingerprint == original.fingerprint
    settings: dict[str, Any] = {"seed": 3, "flow": {"num_steps": 4}, "output_type": "pt"}
    drawn = [one.sample([0, 2], **settings) for one in (original, found)]
    assert torch.equal(drawn[0].images, drawn[1].images)
    assert (tmp_path / "moved" / "preview.png").is_file()
    config = sampling(parts, kind, tmp_path / "samples", samples_per_class=1)
    places = {"generator": str(tmp_path / "moved"), "tokenizer": str(tmp_path / "moved/tokenizer")}
    assert draw_samples(config.model_copy(update=places)) == 3


def test_the_examples_of_the_documentation_run(
    parts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, made = tmp_path / "runs" / "demo", Path(parts["folder"])
    (demo / "data").mkdir(parents=True)
    places = {
        "tokenizer": "tokenizer",
        "generator": "autoregressive",
        "tokens": "tokens",
        "data/held-out": "dataset",
    }
    for place, name in places.items():
        (demo / place).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "docs" / "api.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(examples) >= 4
    found: dict[str, Any] = {}
    for example in examples:
        exec(example, found)
    assert found["again"].size == found["image"].size
    assert found["tokens"].shape[0] == found["labels"].shape[0] == 8
    assert found["grid"].size == (48, 16)
    assert found["result"]["metrics"]


def test_wrong_classes_settings_and_tokenizers_are_refused(
    parts: dict[str, str], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_pretrained(parts["tokenizer"])
    generator = Generator.from_pretrained(parts["autoregressive"], tokenizer=tokenizer)
    with pytest.raises(UserError, match="found 3; the generator knows classes 0 to 2"):
        generator.sample([3])
    with pytest.raises(UserError, match="found none"):
        generator.sample([])
    with pytest.raises(UserError, match=r"cfg: not a setting of sampling; these are .*cfg_scale"):
        generator.sample([0], cfg=2.0)
    with pytest.raises(UserError, match="temperature"):
        generator.sample([0], temperature=-1)
    with pytest.raises(UserError, match="seed"):
        generator.sample([0], seed=-1)
    with pytest.raises(UserError, match="batch_size"):
        generator.sample([0], batch_size=0)
    write_tokenizer(tmp_path / "other", seed=1, levels=5)
    with pytest.raises(UserError, match="give the tokenizer its tokens were made with"):
        Generator.from_pretrained(parts["autoregressive"], tokenizer=tmp_path / "other")


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_a_loader_gives_the_batches_of_training(parts: dict[str, str], kind: str) -> None:
    url = parts["folder"] + ("/dataset" if kind == "images" else "/tokens")
    values: dict[str, Any] = {"url": url, "global_batch_size": 4}
    if kind == "images":
        config: Any = ImageDataConfig.model_validate({**values, "view": VIEW})
        dataset = load_dataset(url, view=VIEW, batch_size=4, seed=3)
    else:
        config = TokenDataConfig.model_validate(values)
        dataset = load_dataset(url, batch_size=4, seed=3)
    training = open_train_data(
        config, seed=3, run_folder=Path("unused"), rank=0, device=torch.device("cpu")
    )
    assert (len(dataset), dataset.num_samples) == (20, 21)
    name = "image" if kind == "images" else "tokens"
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        for step, batch in enumerate(DataLoader(dataset, batch_size=4)):
            expected = training.load(5 * epoch + step, 0, 1)
            assert torch.equal(batch[name].flatten(1), expected.inputs.flatten(1))
            assert torch.equal(batch["label"], expected.labels)
    assert torch.equal(dataset[-1][name], dataset[19][name])
    with pytest.raises(IndexError):
        dataset[20]


def test_latents_of_tokens_and_faults(parts: dict[str, str], tmp_path: Path) -> None:
    url = parts["folder"] + "/tokens"
    tokens, latents = load_dataset(url), load_dataset(url, codes="latents")
    (book,) = Tokenizer.from_pretrained(parts["tokenizer"]).codebook
    assert torch.equal(book[tokens[2]["tokens"][..., 0]].permute(2, 0, 1), latents[2]["latents"])
    with pytest.raises(UserError, match="images need a view"):
        load_dataset(parts["folder"] + "/dataset")
    with pytest.raises(UserError, match="its views were chosen at precompute"):
        load_dataset(url, view=VIEW)
    with pytest.raises(UserError, match="batch_size"):
        load_dataset(url, batch_size=0)
    with pytest.raises(UserError):
        load_dataset(tmp_path / "nothing", view=VIEW)


def test_evaluating_without_a_file(parts: dict[str, str], tmp_path: Path) -> None:
    view = {"kind": "adm_center", "image_size": 16}
    data: dict[str, Any] = {"data": parts["folder"] + "/dataset", "view": view}
    result = evaluate(tokenizer=Path(parts["tokenizer"]), metrics=["psnr"], **data)
    kept = evaluate(tokenizer=parts["tokenizer"], output=tmp_path / "r.json", **data)
    assert result["metrics"]
    assert result["metrics"].items() < kept["metrics"].items()
    assert (tmp_path / "r.json").is_file()
    with pytest.raises(UserError, match="data and view go together"):
        evaluate(tokenizer=parts["tokenizer"], data=data["data"])
