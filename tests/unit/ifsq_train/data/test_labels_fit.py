"""Labels that a network has no class for are refused, the largest that it has are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipelines.errors import UserError
from data_pipelines.images.packing.pack import pack_folder
from ifsq_train.config import ImageDataConfig, TokenDataConfig
from ifsq_train.data.base import TrainData
from ifsq_train.data.classes import classes_of
from ifsq_train.data.labels import check_labels
from ifsq_train.data.open import open_train_data
from tests.support.image_samples import write_class_folder
from tests.support.known_tokens import write_dataset


def opened(folder: Path, kind: str) -> TrainData:
    if kind == "tokens":
        write_dataset(folder / "tokens")
        config: ImageDataConfig | TokenDataConfig = TokenDataConfig(
            url=str(folder / "tokens"), global_batch_size=2
        )
    else:
        pack_folder(write_class_folder(folder / "source", per_class=2), folder / "images")
        view = {"kind": "adm_center", "image_size": 16}
        values = {"url": str(folder / "images"), "view": view, "global_batch_size": 2}
        config = ImageDataConfig.model_validate(values)
    device = torch.device("cpu")
    return open_train_data(config, seed=0, run_folder=folder, rank=0, device=device)


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_three_classes(tmp_path: Path, kind: str) -> None:
    data = opened(tmp_path, kind)
    check_labels(data, 3)
    with pytest.raises(UserError, match=r"num_classes=2, but .* the label 2; set .* to 3 or more"):
        check_labels(data, 2)
    seen = classes_of(data)
    assert seen is not None
    assert (seen.labels, seen.known, seen.complete) == ((0, 1, 2), (0, 1, 2), True)


def test_the_labels_of_the_first_and_of_the_last_shard_are_looked_at(tmp_path: Path) -> None:
    """Shards of 4, 4 and 2 samples, one of them with a label that is too large."""
    for highest in range(3):
        folder = tmp_path / str(highest)
        write_dataset(folder, labels=[9 if n // 4 == highest else 0 for n in range(10)])
        config = TokenDataConfig(url=str(folder), global_batch_size=2)
        device = torch.device("cpu")
        data = open_train_data(config, seed=0, run_folder=folder, rank=0, device=device)
        check_labels(data, 10)
        with pytest.raises(UserError, match="has the label 9"):
            check_labels(data, 9)
