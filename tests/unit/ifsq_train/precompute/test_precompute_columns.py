"""Latents and teacher features: from the same shards, of the very view the tokens show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import DataError, UserError
from data_pipelines.images.decoders.cpu import CpuDecoder
from data_pipelines.images.source import ImageSource
from data_pipelines.manifest import ShardManifest
from data_pipelines.tokens.features import decode_features
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.verify import verify_tokens
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.models.quantizers.continuous import split_moments
from ifsq_train.models.repa import SIZES, DinoTeacher, load_dino
from ifsq_train.precompute.job import run_precompute_local
from tests.support.precompute_parts import (
    NUM_IMAGES,
    NUM_VIEWS,
    configure,
    make_parts,
    write_tokenizer,
)

pytestmark = pytest.mark.heavy

IDS = np.repeat(np.arange(NUM_IMAGES), NUM_VIEWS)
VIEWS = np.tile(np.arange(NUM_VIEWS), NUM_IMAGES)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_parts(tmp_path_factory.mktemp("columns"))


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DINOv2-S with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "dino.pth"
    torch.save(DinoTeacher(**SIZES["S"], grid=(37, 37)).state_dict(), path)
    return path


def made(parts: dict[str, Any], folder: Path, **changes: Any) -> TokenDataset:
    run_precompute_local(configure(parts, folder, **changes), device="cpu")
    assert verify_tokens(folder).ok
    return TokenDataset.open(folder)


def pixels(config_parts: dict[str, Any], **changes: Any) -> torch.Tensor:
    """Every view, float32 [N, 3, S, S]."""
    config = configure(config_parts, Path("unused"), **changes)
    decoder = CpuDecoder(config.view.size)
    manifest = ShardManifest.open(str(config.source))
    source = ImageSource(manifest, config.view, decoder, ErrorBudget(0), seed=0)
    return source.batch(IDS, 0, VIEWS).images


@pytest.mark.parametrize("kind", ["ifsq", "lfq"])
def test_latents_of_tokens_are_the_quantizers_and_normalised(
    parts: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    write_tokenizer(tmp_path / "tokenizer", kind=kind)
    dataset = made(parts, tmp_path / "tokens", tokenizer=str(tmp_path / "tokenizer"))
    quantizer = load_tokenizer(tmp_path / "tokenizer").network.quantize
    tokens = torch.from_numpy(dataset.read(IDS, VIEWS).tokens).reshape(len(IDS), 8, 8, -1)
    expected = quantizer.indices_to_latents(tokens)
    assert np.array_equal(dataset.latents(IDS, VIEWS, normalized=False), expected.numpy())

    latents, statistics = dataset.latents(IDS, VIEWS), dataset.spec.latent_statistics
    assert statistics is not None
    assert np.allclose(latents.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    varying = np.array(statistics.std) > 0
    assert np.allclose(latents.std(axis=(0, 2, 3))[varying], 1, atol=1e-5)
    back = statistics.denormalize(torch.from_numpy(latents))
    assert torch.allclose(back, expected, atol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("auto", 0.0), ("fp16", 1e-3)])
def test_continuous_tokenizer_has_latents_only(
    parts: dict[str, Any], tmp_path: Path, precision: str, tolerance: float
) -> None:
    write_tokenizer(tmp_path / "ae", kind="ae")
    changes = {"tokenizer": str(tmp_path / "ae"), "latents": precision, "batch_size": 42}
    dataset = made(parts, tmp_path / "tokens", **changes)
    images, network = pixels(parts), load_tokenizer(tmp_path / "ae").network
    with torch.inference_mode():
        expected = network.encode(images).latents.numpy()
    found = dataset.latents(IDS, VIEWS, normalized=False)
    assert np.abs(found - expected).max() <= tolerance + 1e-5  # another number of threads
    assert dataset.read(IDS[:3]).tokens.shape == (3, 64, 0)
    assert np.allclose(dataset.latents(IDS, VIEWS).mean(axis=(0, 2, 3)), 0, atol=1e-5)


def test_posterior_is_sampled_with_the_readers_noise(parts: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "vae", kind="vae")
    dataset = made(parts, tmp_path / "tokens", tokenizer=str(tmp_path / "vae"))
    images, network = pixels(parts), load_tokenizer(tmp_path / "vae").network
    with torch.inference_mode():
        moments = network.quant_conv(network.encoder(images))
    mean, logvar = (values.numpy() for values in split_moments(moments))
    noise = np.random.default_rng(0).normal(size=mean.shape).astype(np.float32)
    found = dataset.latents(IDS, VIEWS, noise=noise, normalized=False)
    assert np.allclose(found, mean + np.exp(0.5 * logvar) * noise, atol=1e-5)
    statistics = dataset.spec.latent_statistics
    assert statistics is not None
    variance = mean.var(axis=(0, 2, 3)) + np.exp(logvar).mean(axis=(0, 2, 3))
    assert np.allclose(np.square(statistics.std), variance, rtol=1e-4)


def test_learned_codebook_needs_stored_latents(parts: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "vq", kind="vq")
    tokenizer = {"tokenizer": str(tmp_path / "vq")}
    with pytest.raises(DataError, match="precompute with latents=fp16 or fp32"):
        made(parts, tmp_path / "without", **tokenizer).latents(IDS)
    dataset = made(parts, tmp_path / "with", **tokenizer, latents="fp32")
    tokens = torch.from_numpy(dataset.read(IDS, VIEWS).tokens).reshape(len(IDS), 8, 8, -1)
    expected = load_tokenizer(tmp_path / "vq").network.quantize.indices_to_latents(tokens)
    assert np.array_equal(dataset.latents(IDS, VIEWS, normalized=False), expected.detach().numpy())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("int8", 2e-2)])
def test_stored_features_are_the_teachers(
    parts: dict[str, Any], teacher_file: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    teacher = {"weights": str(teacher_file), "size": "S", "precision": precision}
    view = {"kind": "center_flip", "image_size": 8}
    dataset = made(parts, tmp_path / "tokens", teacher=teacher, view=view, batch_size=14)
    columns = dataset.read(IDS[:6], VIEWS[:6], dataset.feature_columns).extra
    images = pixels(parts, view=view)[:6]
    expected = load_dino(teacher_file, size="S", grid=(4, 4))(images).numpy()
    scale = np.abs(expected).max()
    assert np.abs(decode_features(columns) - expected).max() <= tolerance * scale
    assert dataset.spec.teacher is not None
    assert dataset.spec.teacher["precision"] == precision


def test_missing_teacher_is_named(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher.weights: no file '.*dino.pth'"):
        made(parts, tmp_path, teacher={"weights": str(tmp_path / "dino.pth"), "size": "S"})


def test_shards_too_large_for_memory_are_refused(
    parts: dict[str, Any], teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ifsq_train.precompute.job.MAX_SHARD_BYTES", 300_000)
    with pytest.raises(UserError, match=r"makes shards of .* use at most 3"):
        made(parts, tmp_path, teacher={"weights": str(teacher_file), "size": "S"})


def test_half_precision_encoding_is_another_job(parts: dict[str, Any], tmp_path: Path) -> None:
    made(parts, tmp_path / "tokens")
    with pytest.raises(UserError, match="numerics"):
        made(parts, tmp_path / "tokens", precision="bf16")
