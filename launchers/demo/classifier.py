"""An independent judge of the demo's samples: a classifier that saw real images only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data_pipelines.views import ViewSpec
from ifsq_train.data.images import open_image_source
from ifsq_train.sampling.draw import read_samples

SIDE = 16
"""Images are reduced to at most this many pixels per side before they are classified."""


def judge_samples(
    train: Path, test: Path, samples: str | Path, view: ViewSpec
) -> dict[str, float | int]:
    """Train a support vector classifier on real images and let it classify the samples.

    Args:
        train, test: image datasets; the second is only used to measure the classifier.
        samples: folder of `ifsq sample`.
        view: how the datasets are seen.

    Returns:
        ``classifier_accuracy`` on the real images of `test`, ``class_accuracy``: share of
        samples classified as the class they were drawn for, ``chance_accuracy`` of guessing,
        ``num_samples``.
    """
    from sklearn.svm import SVC

    classifier = SVC(C=10.0)
    classifier.fit(*_real(train, view))
    features, labels = _real(test, view)
    drawn = read_samples(samples)
    pixels = torch.from_numpy(drawn.images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    hits = classifier.predict(_features(pixels)) == drawn.labels
    return {
        "class_accuracy": float(hits.mean()),
        "classifier_accuracy": float((classifier.predict(features) == labels).mean()),
        "chance_accuracy": 1.0 / len(set(labels.tolist())),
        "num_samples": len(hits),
    }


def _real(dataset: Path, view: ViewSpec) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    source = open_image_source(
        str(dataset), view, decoder="cpu", seed=0, device=torch.device("cpu")
    )
    try:
        batch = source.batch(np.arange(source.manifest.num_samples, dtype=np.int64))
    finally:
        source.close()
    return _features(batch.images), batch.labels.numpy()


def _features(images: torch.Tensor) -> NDArray[np.float32]:
    """Pixels float32 [B, features] of images [B, 3, H, W]."""
    if images.shape[-1] > SIDE:
        images = F.interpolate(images, size=(SIDE, SIDE), mode="area")
    return images.flatten(1).numpy()
