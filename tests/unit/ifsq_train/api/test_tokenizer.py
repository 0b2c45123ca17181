"""`ifsq_train.Tokenizer`: kinds of images in and out, and the same numbers as the network's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ifsq_train
import ifsq_train.api
from data_pipelines.errors import UserError
from ifsq_train import Tokenizer
from ifsq_train.artifacts.exchange import export_weights
from ifsq_train.artifacts.trained import load_tokenizer, to_uint8
from tests.support.precompute_parts import write_tokenizer
from tests.support.repository import REPOSITORY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "tokenizer"
    write_tokenizer(folder, levels=5)
    return folder


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def test_importing_is_light_and_names_are_found() -> None:
    script = (
        "import sys, ifsq_train\n"
        "assert not {'torch', 'ray', 'deepspeed', 'pydantic'} & set(sys.modules)\n"
        "from ifsq_train import Tokenizer, Generator, load_dataset, evaluate\n"
        "assert not {'ray', 'deepspeed', 'kubernetes'} & set(sys.modules)\n"
        "assert set(ifsq_train.__all__) <= set(dir(ifsq_train))\n"
        "assert not hasattr(ifsq_train, 'Tokeniser')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_in_the_reference() -> None:
    page = (REPOSITORY / "docs" / "reference.md").read_text()
    names = ifsq_train.api.__all__
    assert [name for name in names if f".{name}\n" not in page] == []
    assert set(ifsq_train.__all__) <= set(names)


def test_every_kind_of_image_gives_the_networks_own_tokens(run: Path, pixels: np.ndarray) -> None:
    network = load_tokenizer(run).network
    with torch.no_grad():
        expected = network.encode(as_tensor(pixels))
    tokenizer = Tokenizer.from_pretrained(run)
    pictures = [Image.fromarray(one) for one in pixels]
    for images in (pixels, list(pixels), pictures, as_tensor(pixels), list(as_tensor(pixels))):
        tokens = tokenizer.encode(images)
        assert tokens.shape == (3, 4, 6, 1)
        assert torch.equal(tokens, expected.indices)
    assert torch.equal(tokenizer.encode(pixels, to="latents"), expected.latents)
    assert torch.equal(tokenizer.encode(pictures[1], batch_size=1), expected.indices[1])
    assert torch.equal(tokenizer.encode(pixels, batch_size=2), expected.indices)


def test_decoding_gives_the_networks_own_images_in_every_kind(
    run: Path, pixels: np.ndarray
) -> None:
    network = load_tokenizer(run).network
    with torch.no_grad():
        images, quantized = network(as_tensor(pixels))
    tokenizer = Tokenizer.from_pretrained(run)
    for codes in (quantized.indices, quantized.indices.numpy(), quantized.latents):
        assert torch.equal(tokenizer.decode(codes, output_type="pt"), images)
    expected = to_uint8(images).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(tokenizer.decode(quantized.indices, output_type="np"), expected)
    pictures = tokenizer.decode(quantized.indices)
    assert [np.array(one).tolist() for one in pictures] == expected.tolist()
    single = tokenizer.decode(tokenizer.encode(pictures[0]))
    assert isinstance(single, Image.Image)
    assert single.size == (12, 8)


def test_the_codebook_holds_the_latents_of_every_token(run: Path, pixels: np.ndarray) -> None:
    tokenizer = Tokenizer.from_pretrained(run)
    (book,) = tokenizer.codebook
    assert book.shape == (5**4, 4)
    tokens, latents = tokenizer.encode(pixels), tokenizer.encode(pixels, to="latents")
    assert torch.equal(book[tokens[..., 0]].permute(0, 3, 1, 2), latents)


@pytest.mark.parametrize("kind", ["vq", "vae"])
def test_other_bottlenecks(tmp_path: Path, pixels: np.ndarray, kind: str) -> None:
    write_tokenizer(tmp_path / kind, kind=kind)
    tokenizer = Tokenizer.from_pretrained(tmp_path / kind)
    codes, latents = tokenizer.encode(pixels), tokenizer.encode(pixels, to="latents")
    if kind == "vq":
        (book,) = tokenizer.codebook
        assert torch.equal(book[codes[..., 0]].permute(0, 3, 1, 2), latents)
    else:
        assert tokenizer.codebook == ()
        assert torch.equal(codes, latents)
        with pytest.raises(UserError, match="'vae' has no tokens; use to='latents'"):
            tokenizer.encode(pixels, to="tokens")
    one = tokenizer.decode(codes[0], output_type="pt")
    assert torch.allclose(one, tokenizer.decode(codes, output_type="pt")[0], atol=1e-5)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((9, 8, 3), np.uint8), "found 9 x 8 pixels.* multiples of .* 2 pixels per token"),
        (np.zeros((8, 8), np.uint8), r"an array uint8 \[8, 8\]; give PIL images"),
        (np.zeros((8, 8, 3), np.float32), r"an array float32 \[8, 8, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "an empty array"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"a tensor torch.uint8 \[3, 8, 8\]"),
        (torch.zeros(8, 8, 3), r"a tensor torch.float32 \[8, 8, 3\]"),
        (torch.full((3, 8, 8), 255.0), r"values up to 255; a tensor's are in \[-1, 1\]"),
        (torch.full((3, 8, 8), torch.nan), "values up to nan"),
        ([], "found none"),
        ("cat.png", "found a str"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 4, 3), np.uint8)], "sizes 8 x 4, 8 x 8"),
    ],
)
def test_other_images_are_refused_in_one_line(run: Path, images: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        Tokenizer.from_pretrained(run).encode(images)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (torch.zeros(1, 4, 4, 2, dtype=torch.int64), r"tokens are integers \[B, h, w, 1\]"),
        (torch.zeros(1, 3, 4, 4), r"latents floats \[B, 4, h, w\]"),
        (torch.full((4, 4, 1), 625), "token 625; the codebooks have 625 entries"),
        (torch.full((4, 4, 1), -1), "token -1"),
        (torch.zeros(4, dtype=torch.int64), "found torch.int64"),
    ],
)
def test_other_codes_are_refused(run: Path, codes: torch.Tensor, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Tokenizer.from_pretrained(run).decode(codes)


def test_unknown_choices_and_places_are_refused(run: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(run)
    bad: Any = "png"
    with pytest.raises(UserError, match="use pil, np or pt"):
        tokenizer.decode(torch.zeros(4, 4, 1, dtype=torch.int64), output_type=bad)
    with pytest.raises(UserError, match="use averaged or live"):
        Tokenizer.from_pretrained(run, weights=bad)
    with pytest.raises(UserError, match="cannot be used here"):
        tokenizer.to("nonsense")
    (tmp_path / "weights.pt").touch()
    with pytest.raises(UserError, match="ifsq checkpoint import"):
        Tokenizer.from_pretrained(tmp_path / "weights.pt")
    with pytest.raises(UserError, match="no such folder"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")


def test_exported_weights_are_the_same_tokenizer(
    run: Path, tmp_path: Path, pixels: np.ndarray
) -> None:
    export_weights(run, tmp_path / "out")
    exported, original = (Tokenizer.from_pretrained(p) for p in (tmp_path / "out", run))
    assert exported.fingerprint == original.fingerprint
    assert exported.step == original.step == 1
    assert torch.equal(exported.encode(pixels), original.encode(pixels))
    (tmp_path / "out" / "autoencoder.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="not the bytes that were exported"):
        Tokenizer.from_pretrained(tmp_path / "out")
