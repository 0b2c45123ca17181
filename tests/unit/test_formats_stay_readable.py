"""Datasets and checkpoints made earlier still open, and hold what was put into them.

The files were written once by the first version of their formats and are never made anew.
"""

import shutil
from pathlib import Path

import numpy as np
import torch

from data_pipelines.images.decoders.pixels import decode_rgb
from data_pipelines.images.reader import ImageReader
from data_pipelines.images.verify import verify_dataset
from data_pipelines.manifest import ShardManifest
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.verify import verify_tokens
from ifsq_train.checkpoint.reader import newest_checkpoint

DIGEST_TOKENS = "0218ec4aad4c9b67418ff139290cda18b19a673f9738314c6e4d88c50521d8ef"
SUM_OF_TOKENS = 7003618
FORMATS = Path(__file__).resolve().parents[1] / "support" / "formats"


def test_tokens(tmp_path: Path):
    shutil.copytree(FORMATS / "tokens", tmp_path / "tokens")
    dataset = TokenDataset.open(tmp_path / "tokens")
    assert dataset.digest == DIGEST_TOKENS
    tokens = dataset.read(np.arange(10), np.ones(10, np.int64)).tokens
    assert (tokens.shape, int(tokens.sum())) == ((10, 16), SUM_OF_TOKENS)
    assert verify_tokens(tmp_path / "tokens").ok


def test_images(tmp_path: Path):
    shutil.copytree(FORMATS / "images", tmp_path / "images")
    manifest = ShardManifest.open(tmp_path / "images")
    batch = ImageReader(manifest, verify=True).read(np.arange(4))
    pixels = [int(decode_rgb(data)[0, 0, 0]) for data in batch.data]
    found = dict(zip(pixels, batch.labels.tolist(), strict=True))
    assert found == {0: 0, 40: 0, 100: 1, 140: 1}
    assert verify_dataset(tmp_path / "images").ok


def test_checkpoints(tmp_path: Path):
    shutil.copytree(FORMATS / "checkpoints", tmp_path / "checkpoints")
    found = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 3
    assert torch.equal(found.weights("net")["w"], torch.arange(6.0).reshape(2, 3))
    assert found.read("net", "w", "exp_avg", 1, 3).tolist() == [2.0, 4.0, 6.0]
    assert found.buffers("live/net")["mean"].tolist() == [1.0, 1.0]
    assert found.header["train_state"]["last_record"] == {"loss": 0.5}
