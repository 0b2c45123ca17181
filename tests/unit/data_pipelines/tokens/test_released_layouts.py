"""Feature folders of the released code are read as its own readers read them."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import DataError
from data_pipelines.tokens.released import read_released_codes, read_released_latents


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    return load_file(golden_dir / "formats.safetensors")


def test_latents_and_their_normalization(golden: dict, golden_dir: Path) -> None:
    found = read_released_latents(golden_dir / "formats" / "latents")
    np.testing.assert_allclose(found.mean, golden["stats.mean"], rtol=1e-6)
    np.testing.assert_allclose(found.std, golden["stats.std"], rtol=1e-6)
    np.testing.assert_array_equal(found.labels, golden["read.label"])
    features = found.features(golden["read.flip"] == 1, 0.7)
    np.testing.assert_allclose(features, golden["read.feature"], rtol=1e-5, atol=1e-6)


def test_codes(golden: dict, golden_dir: Path) -> None:
    folder = golden_dir / "formats" / "codes_flip_ten_crop"
    for number, crop in enumerate(golden["codes.aug"]):
        tokens, label = read_released_codes(
            folder / "imagenet256_codes", folder / "imagenet256_labels", number
        )
        assert tokens.shape == (10, 16)
        np.testing.assert_array_equal(tokens[crop], golden["codes.read"][number])
        assert label >= 0


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.safetensors shard"):
        read_released_latents(tmp_path)
    save_file({"latents": np.zeros((1, 1, 1, 1), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"has no \['latents_flip', 'labels'\]"):
        read_released_latents(tmp_path)
    with pytest.raises(DataError, match=r"7\.npy: no code file"):
        read_released_codes(tmp_path, tmp_path, 7)
