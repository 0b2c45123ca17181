"""Precision, recall and KID of a recipe: over the images and neighbours that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from ifsq_train.config import EvaluateConfig
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.evaluation import evaluate as module
from ifsq_train.evaluation.evaluate import measure_samples_by_inception
from ifsq_train.evaluation.image_sets import HeldOutImages, open_samples
from ifsq_train.evaluation.inception_statistics import NUM_FEATURES, NUM_SPATIAL
from ifsq_train.evaluation.kernel_distance import kernel_distance
from ifsq_train.evaluation.manifold import precision_recall
from ifsq_train.evaluation.tools import Tools
from ifsq_train.models.inception import FidInception, InceptionFeatures
from tests.support.small_run import VIEW, write_images

CHANGES: list[dict[str, Any]] = [
    {},
    {"neighbors": 1},
    {"manifold_images": 12},
    {"manifold_images": 9, "neighbors": 2, "batch_size": 4},
    {"reference": "reference.npz"},
    {"reference": "reference.npz", "manifold_images": 9},
]


class Pixels:
    """In Inception's place, in its widths: the mean colours."""

    def features(self, images: Tensor) -> InceptionFeatures:
        small = torch.nn.functional.adaptive_avg_pool2d(images, 1).flatten(1)
        wide = torch.nn.functional.pad(small, (0, NUM_FEATURES - small.shape[1]))
        return InceptionFeatures(wide, wide[:, :NUM_SPATIAL], None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    write_images(folder, 16)
    random = np.random.default_rng(5)
    for name, count in (("samples", 20), ("reference", 14)):
        pictures = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        arrays: dict[str, Any] = {"arr_0": pictures}
        for suffix, width in (("", NUM_FEATURES), ("_s", NUM_SPATIAL)):
            arrays |= {f"mu{suffix}": np.zeros(width), f"sigma{suffix}": np.eye(width)}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def rows_of(images: Any) -> Tensor:
    return torch.cat([Pixels().features(b).pooled for b in images.batches(InProcessContext())])


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_a_recipe_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "distance", lambda *_: 0.0)  # of 2,048 features: too long here
    values = {
        "kind": "evaluate",
        "output": "unused",
        "data": str(folder / "data"),
        "view": VIEW,
        "samples": str(folder / "samples.npz"),
        "inception": "unused",
        **change,
    }
    if "reference" in change:
        values["reference"] = str(folder / change["reference"])
    config = EvaluateConfig.model_validate(values)
    assert config.data is not None
    assert config.view is not None
    real = HeldOutImages(config.data, config.view, config.batch_size)
    fake = open_samples(str(folder / "samples.npz"), config.batch_size)
    tools = Tools(config, InProcessContext(), real, fake, None, None, None)
    found = measure_samples_by_inception(tools, cast(FidInception, Pixels()))
    against = open_samples(values["reference"], 64) if "reference" in change else real
    count = change.get("manifold_images", 10_000)
    a, b = rows_of(against)[:count], rows_of(fake)[:count]
    expected = precision_recall(a, b, change.get("neighbors", 3))
    assert (found["precision"], found["recall"]) == expected
    assert found["kid"] == pytest.approx(kernel_distance(a, b))
    # What the comparison is worth: other settings give other numbers.
    assert (len(a), len(b)) == (min(count, len(rows_of(against))), min(count, 20))
    assert any(precision_recall(a, b, other) != expected for other in (1, 5))
