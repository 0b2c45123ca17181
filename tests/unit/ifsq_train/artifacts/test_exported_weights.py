"""What `ifsq checkpoint export` writes comes back bit by bit, or is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from data_pipelines.errors import UserError
from ifsq_train.artifacts.exchange import export_weights, import_exported
from ifsq_train.artifacts.trained import load_generator, load_tokenizer
from tests.support.written_runs import generator_run, tokenizer_run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A tokenizer's run and that of a generator of its tokens."""
    tokenizer = tokenizer_run(tmp_path / "tokenizer", 0)
    generator = generator_run(tmp_path / "generator", tokenizer, "autoregressive")
    return tokenizer, generator


def exported(run: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Type and bytes of every tensor of every file, and recipe.json without checksums.

    The order of a safetensors file's metadata is not always the same, that of its tensors is.
    """
    written = export_weights(run, folder)
    tensors = {
        f"{path.stem}/{name}": (value.dtype, value.shape, value.numpy().tobytes())
        for path in written
        for name, value in load_file(path).items()
    }
    return tensors, json.loads((folder / "recipe.json").read_text()) | {"sha256": None}


@pytest.mark.parametrize("which", [0, 1])
def test_exported_weights_come_back_bit_by_bit(
    tmp_path: Path, runs: tuple[Path, Path], which: int
) -> None:
    first = exported(runs[which], tmp_path / "first")
    import_exported(tmp_path / "first", tmp_path / "back", str(runs[0]) if which else None)
    again = exported(tmp_path / "back", tmp_path / "again")
    assert any(name.partition("/")[0].endswith("-ema") for name in first[0])
    assert again == first
    load = load_generator if which else load_tokenizer
    assert load(tmp_path / "back").fingerprint == load(runs[which]).fingerprint


def test_a_tokenizer_that_is_not_the_generators_is_refused(
    tmp_path: Path, runs: tuple[Path, Path]
) -> None:
    export_weights(runs[1], tmp_path / "out")
    other = tokenizer_run(tmp_path / "other", 1)
    larger = tokenizer_run(tmp_path / "larger", 0, quantizer={"kind": "ifsq", "levels": [9, 9, 9]})
    with pytest.raises(UserError, match="does not belong to the tokenizer"):
        import_exported(tmp_path / "out", tmp_path / "new", str(other))
    with pytest.raises(UserError, match=r"codebook sizes \(125,\), not \(729,\)"):
        import_exported(tmp_path / "out", tmp_path / "new", str(larger))
    with pytest.raises(UserError, match="makes a grid of 4 x 4, not 8 x 8"):
        import_exported(tmp_path / "out", tmp_path / "new", str(runs[0]), (8, 8))
    assert not (tmp_path / "new").exists()


def cut(folder: Path) -> None:
    path = folder / "autoencoder.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def flip(folder: Path) -> None:
    path = folder / "autoencoder-ema.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def lose(folder: Path) -> None:
    (folder / "autoencoder-ema.safetensors").unlink()


def put_nan(folder: Path) -> None:
    path = folder / "autoencoder.safetensors"
    tensors = load_file(path)
    next(value for value in tensors.values() if value.is_floating_point()).view(-1)[0] = float(
        "nan"
    )
    save_file(tensors, path)
    forget_checksums(folder)


def forget_checksums(folder: Path) -> None:
    place = folder / "recipe.json"
    place.write_text(
        json.dumps({k: v for k, v in json.loads(place.read_text()).items() if k != "sha256"})
    )


def other_architecture(folder: Path) -> None:
    forget_checksums(folder)
    place = folder / "recipe.json"
    place.write_text(place.read_text().replace('"base_channels": 8', '"base_channels": 16'))


def no_recipe(folder: Path) -> None:
    (folder / "recipe.json").write_text("[]")


DAMAGES = {
    cut: "not the bytes that were exported",
    flip: "not the bytes that were exported",
    lose: "is missing",
    put_nan: "not finite",
    other_architecture: "not the weights of this architecture",
    no_recipe: "valid dictionary",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_export_is_refused(tmp_path: Path, damage: Any) -> None:
    export_weights(tokenizer_run(tmp_path / "run", 0), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=DAMAGES[damage]):
        import_exported(tmp_path / "out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
