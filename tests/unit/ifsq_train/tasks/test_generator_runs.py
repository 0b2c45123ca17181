"""Generators train through the one loop, from tokens and from images, and open again afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_pipelines.errors import UserError
from data_pipelines.images.packing.pack import pack_folder
from ifsq_train.artifacts.trained import load_generator, load_tokenizer
from ifsq_train.assembly.task import build_task
from ifsq_train.config import FlowConfig, TokenDataConfig, TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.data.base import Extras
from ifsq_train.data.open import extras_for, open_train_data
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.models import repa
from ifsq_train.precompute.job import run_precompute_local
from ifsq_train.randomness import BatchRandom
from ifsq_train.tasks.diffusion import draw_times
from ifsq_train.tasks.frozen import ImageEncoder, TokenInputs
from ifsq_train.train import run
from tests.support.precompute_parts import configure, make_parts, write_images, write_tokenizer

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
SMALL = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 32, "num_classes": 3}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Images, an untrained tokenizer, and the tokens it makes of them."""
    folder = tmp_path_factory.mktemp("generators")
    parts = make_parts(folder, levels=5)
    run_precompute_local(configure(parts, folder / "tokens"), device="cpu")
    return {**parts, "tokens": str(folder / "tokens")}


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of a DINOv2 that is too small to be true."""
    monkeypatch.setitem(repa.SIZES, "S", {"num_layers": 1, "dim": 32, "num_heads": 2})
    torch.manual_seed(3)
    network = repa.DinoTeacher(**repa.SIZES["S"], grid=(37, 37))
    weights = {name: torch.randn_like(value) * 0.1 for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "dino.safetensors")
    return str(tmp_path / "dino.safetensors")


def precomputed(parts: dict[str, Any], output: Path, **changes: Any) -> dict[str, Any]:
    """The parts with tokens made anew."""
    settings = {key: value for key, value in parts.items() if key != "tokens"}
    run_precompute_local(configure(settings, output, **changes), device="cpu")
    return {**parts, "tokens": str(output)}


def recipe(
    parts: dict[str, Any], output: Path, kind: str, data: str, **task: Any
) -> dict[str, Any]:
    """Values of a two-step run of a small generator."""
    sources = {
        "tokens": {"kind": "tokens", "url": parts["tokens"]},
        "images": {"kind": "images", "url": parts["source"], "view": parts["view"]},
    }
    if data == "images":
        task["tokenizer"] = parts["tokenizer"]
    return {
        "kind": "train",
        "name": kind,
        "output": str(output),
        "steps": 2,
        "data": {**sources[data], "global_batch_size": 4},
        "task": {"kind": kind, "model": SMALL, **task},
        "optim": {"generator": {"lr": 1e-3}},
        "strategy": {"kind": "torch"},
        "ema_decay": 0.5,
        "log_every_steps": 1,
    }


def train(values: dict[str, Any]) -> dict[str, Any]:
    config = validate_recipe(values, "test")
    assert isinstance(config, TrainConfig)
    return run(config, InProcessContext(device=CPU))


@pytest.mark.parametrize("data", ["tokens", "images"])
@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_a_run_can_be_opened(parts: dict[str, Any], tmp_path: Path, kind: str, data: str) -> None:
    result = train(recipe(parts, tmp_path / "run", kind, data))
    assert result["steps"] == 2
    assert np.isfinite(result["final_loss"])
    trained = load_generator(tmp_path / "run")
    assert trained.spec.grid == (8, 8)
    assert trained.num_classes == 3
    assert trained.spec.tokenizer_fingerprint == load_tokenizer(parts["tokenizer"]).fingerprint
    assert trained.spec.codebook_sizes == ((5**4,) if kind == "autoregressive" else ())
    assert (trained.scaling is None) == (kind == "autoregressive")


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_a_compiled_run_takes_the_same_steps(
    parts: dict[str, Any], tmp_path: Path, teacher: str, kind: str
) -> None:
    """`strategy.compile` really compiles, and changes no number but by rounding."""
    aligned = {"teacher": teacher, "size": "S", "weight": 2.0, "depth": 1, "projector_width": 16}
    # Dropout draws other numbers in a compiled network.
    still = {"token_dropout": 0.0, "residual_dropout": 0.0, "feed_forward_dropout": 0.0}
    records = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        values = recipe(parts, tmp_path / f"{compiled}", kind, "tokens", repa=aligned)
        values["data"]["images"] = parts["source"]
        values["task"]["model"] = SMALL | (still if kind == "autoregressive" else {})
        values["strategy"]["compile"] = compiled
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        train(values)
        made = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
        # The network and the loss that aligns it, which the dry run has called before.
        assert made >= 2 if compiled else made == 0
        lines = (tmp_path / f"{compiled}" / "metrics.jsonl").read_text().splitlines()
        records[compiled] = [record for record in map(json.loads, lines) if "loss" in record]
    assert len(records[True]) == 2
    for plain, compiled in zip(records[False], records[True], strict=True):
        for name in ("loss", "alignment", "grad_norm/generator"):
            assert compiled[name] == pytest.approx(plain[name], rel=1e-5)


def test_tokens_of_images_are_the_precomputed_ones(parts: dict[str, Any], tmp_path: Path) -> None:
    """Encoding the pixels of a stored view gives its tokens, and a teacher sees those pixels."""
    config = TokenDataConfig(url=parts["tokens"], images=parts["source"], global_batch_size=8)
    data = open_train_data(
        config, seed=0, run_folder=tmp_path, rank=0, device=CPU, extras=Extras(pixels=True)
    )
    tokenizer = load_tokenizer(parts["tokenizer"]).network
    for step in range(3):
        batch = data.load(step, 0, 1)
        assert batch.images is not None
        tokens = TokenInputs(ImageEncoder(tokenizer))(replace(batch, inputs=batch.images))
        # Another batch size rounds the encoder's sums differently: a border may be crossed.
        assert (tokens == batch.inputs).float().mean() > 0.99


def test_pixels_of_another_dataset_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "images" / "class0" / "000.jpg").unlink()
    pack_folder(tmp_path / "images", tmp_path / "other", shard_bytes=20_000)
    config = TokenDataConfig(
        url=parts["tokens"], images=str(tmp_path / "other"), global_batch_size=8
    )
    with pytest.raises(UserError, match=r"the tokens of .* were made of"):
        open_train_data(
            config, seed=0, run_folder=tmp_path, rank=0, device=CPU, extras=Extras(pixels=True)
        )


def test_latents_are_brought_to_unit_variance(parts: dict[str, Any], tmp_path: Path) -> None:
    """Measured on the images once, kept, and used again by a resumed run."""
    values = recipe(parts, tmp_path / "run", "diffusion", "images")
    values["task"]["latents"] = {"measure_images": 16}
    train(values)
    stored = json.loads((tmp_path / "run" / "latents.json").read_text())
    scaling = load_generator(tmp_path / "run").scaling
    assert scaling is not None
    assert scaling.std == tuple(stored["std"])
    config = validate_recipe(values, "test")
    assert isinstance(config, TrainConfig)
    data = open_train_data(config.data, seed=0, run_folder=tmp_path, rank=0, device=CPU)
    task: Any = build_task(config, data, InProcessContext(device=CPU))
    latents = torch.cat([task.inputs(data.load(step, 0, 1)) for step in range(4)])
    assert scaling.mean == tuple(stored["mean"])
    assert stored["count"] == 16 * latents[0, 0].numel()
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-2)


def test_statistics_of_the_token_dataset_are_used(parts: dict[str, Any], tmp_path: Path) -> None:
    values = recipe(parts, tmp_path / "run", "diffusion", "tokens")
    values["task"]["latents"] = {"multiplier": 2.0}
    train(values)
    stored = json.loads((Path(parts["tokens"]) / "tokens.json").read_text())
    expected = stored["spec"]["latent_statistics"]["std"]
    scaling = load_generator(tmp_path / "run").scaling
    assert scaling is not None
    assert np.allclose(scaling.std, np.array(expected) / 2.0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_stored_features_stand_for_the_teacher(
    parts: dict[str, Any], tmp_path: Path, teacher: str, precision: str
) -> None:
    """A run on features stored with the tokens has the losses of one that runs the teacher."""
    stored = {"weights": teacher, "size": "S", "precision": precision}
    other = precomputed(parts, tmp_path / "tokens", teacher=stored)
    aligned: dict[str, Any] = {"size": "S", "weight": 2.0, "depth": 1, "projector_width": 16}
    ours = train(recipe(other, tmp_path / "a", "diffusion", "tokens", repa=aligned))
    values = recipe(
        other, tmp_path / "b", "diffusion", "tokens", repa=aligned | {"teacher": teacher}
    )
    values["data"]["images"] = parts["source"]
    theirs = train(values)
    tolerance = {"fp32": 1e-4, "int8": 1e-2}[precision]
    for term in ("alignment", "velocity", "loss"):
        assert ours["final"][term] == pytest.approx(theirs["final"][term], abs=tolerance)


@pytest.mark.parametrize("kind", ["ae", "vae", "vq"])
def test_stored_latents_are_flowed_to(parts: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """Bottlenecks whose latents no table gives: continuous, or with a learned codebook."""
    write_tokenizer(tmp_path / kind, kind=kind)
    tokenizer = {**parts, "tokenizer": str(tmp_path / kind)}
    other = precomputed(tokenizer, tmp_path / "tokens", latents="fp32")
    values = recipe(other, tmp_path / "run", "diffusion", "tokens")
    assert np.isfinite(train(values)["final_loss"])
    config = validate_recipe(values, "test")
    assert isinstance(config, TrainConfig)
    data = open_train_data(
        config.data, seed=0, run_folder=tmp_path, rank=0, device=CPU, extras=extras_for(config.task)
    )
    task: Any = build_task(config, data, InProcessContext(device=CPU))
    latents = torch.cat([task.inputs(data.load(step, 0, 1)) for step in range(5)])
    assert latents.dtype == torch.float32
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=0.2)
    again = task.inputs(data.load(0, 0, 1))
    assert torch.equal(latents[:4], again)


def test_tokens_of_a_learned_codebook_need_their_tokenizer(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    write_tokenizer(tmp_path / "vq", kind="vq")
    other = precomputed({**parts, "tokenizer": str(tmp_path / "vq")}, tmp_path / "tokens")
    values = recipe(other, tmp_path / "run", "diffusion", "tokens")
    with pytest.raises(UserError, match=r"name data\.tokenizer or task\.tokenizer"):
        train(values)
    values["data"]["tokenizer"] = other["tokenizer"]
    assert np.isfinite(train(values)["final_loss"])


@pytest.mark.parametrize("data", ["images", "tokens"])
@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_the_teacher_is_aligned_with_and_never_trained(
    parts: dict[str, Any], tmp_path: Path, teacher: str, kind: str, data: str
) -> None:
    aligned = {"teacher": teacher, "size": "S", "weight": 2.0, "depth": 1, "projector_width": 16}
    values = recipe(parts, tmp_path / "run", kind, data, repa=aligned)
    if data == "tokens":
        values["data"]["images"] = parts["source"]
    config = validate_recipe(values, "test")
    assert isinstance(config, TrainConfig)
    result = run(config, InProcessContext(device=CPU))
    assert -1.0 <= result["final"]["alignment"] <= 1.0
    network = load_generator(tmp_path / "run").network
    assert [name for name, _ in network.named_parameters() if name.startswith("projectors.0")]
    opened = open_train_data(config.data, seed=0, run_folder=tmp_path, rank=0, device=CPU)
    task = build_task(config, opened, InProcessContext(device=CPU))
    assert not any(p.requires_grad for p in task.auxiliary()["teacher"].parameters())
    assert "teacher" not in task.modules()


def test_resuming_is_the_same_run(parts: dict[str, Any], tmp_path: Path) -> None:
    """Times, noise and label dropout are functions of the step."""
    straight = train({**recipe(parts, tmp_path / "a", "diffusion", "tokens"), "steps": 4})
    halves = recipe(parts, tmp_path / "b", "diffusion", "tokens")
    train(halves)
    resumed = train({**halves, "steps": 4})
    assert resumed["resumed_from"] == 2
    assert resumed["final_loss"] == straight["final_loss"]


def test_draws_do_not_depend_on_the_number_of_workers() -> None:
    whole = draw_times(FlowConfig(), BatchRandom(1, 5, np.arange(8)))
    shares = [draw_times(FlowConfig(), BatchRandom(1, 5, np.arange(r, r + 4))) for r in (0, 4)]
    assert torch.equal(whole, torch.cat(shares))


def test_times_are_logit_normal_and_shift_moves_them_to_the_noise() -> None:
    random = BatchRandom(0, 0, np.arange(4000))
    t = draw_times(FlowConfig(), random)
    normal = torch.logit(t)
    assert abs(float(normal.mean())) < 0.06
    assert abs(float(normal.std()) - 1.0) < 0.05
    assert draw_times(FlowConfig(shift=0.3), random).median() < t.median() - 0.2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"repa": {"weight": 1.0}}, "stores no teacher_features, which the task reads"),
        ({"repa": {"weight": 1.0, "teacher": "x"}}, "name data.images, the dataset the tokens"),
        ({"model": {**SMALL, "patch_size": 3}}, "does not divide the 8 x 8 latents"),
        ({"latents": {"mean": [0], "std": [1]}}, "the latents have 4 channels"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    parts: dict[str, Any], tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        train(recipe(parts, tmp_path / "run", "diffusion", "tokens", **change))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"depth": 1}, "no file 'none.pth'; give a local DINOv2 weight file"),
        ({"depth": 3}, "depth=3 is beyond the model's 2 blocks"),
    ],
)
def test_teachers_that_do_not_fit_are_named(
    parts: dict[str, Any], tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    aligned = {"weight": 1.0, "teacher": "none.pth", **change}
    with pytest.raises(UserError, match=expected):
        train(recipe(parts, tmp_path / "run", "autoregressive", "images", repa=aligned))


def test_continuous_latents_have_no_tokens_but_a_flow(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    write_tokenizer(tmp_path / "ae", kind="ae")
    other = {**parts, "tokenizer": str(tmp_path / "ae")}
    with pytest.raises(UserError, match="needs tokens, but this tokenizer's latents"):
        train(recipe(other, tmp_path / "ar", "autoregressive", "images"))
    assert np.isfinite(train(recipe(other, tmp_path / "dit", "diffusion", "images"))["final_loss"])


def test_recipes_without_a_tokenizer_for_images_are_refused(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    values = recipe(parts, tmp_path, "diffusion", "images")
    del values["task"]["tokenizer"]
    with pytest.raises(UserError, match=r"needs task\.tokenizer to encode"):
        validate_recipe(values, "test")
