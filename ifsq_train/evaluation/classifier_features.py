"""Samples judged by a trained classifier: Frechet and kernel distances of its features, accuracy.

The numbers carry the classifier's name. They compare with each other where the classifier and the
number of images are the same, and with no published FID.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.errors import UserError
from ifsq_train.artifacts.classifiers import TrainedClassifier, load_classifier
from ifsq_train.config import EvaluateConfig
from ifsq_train.config.evaluate import Metric
from ifsq_train.distributed.context import RunContext
from ifsq_train.evaluation.generation import FeatureMoments, frechet_distance
from ifsq_train.evaluation.image_sets import HeldOutImages, StoredImages
from ifsq_train.evaluation.kernel_distance import kernel_distance
from ifsq_train.evaluation.result import FeatureNetwork
from ifsq_train.sampling.draw import read_samples

CLASSIFIER = "classifier"
MEASURES: tuple[Metric, ...] = (
    "classifier_frechet_distance",
    "classifier_kid",
    "classifier_accuracy",
)


@dataclass(frozen=True)
class Judged:
    """What a classifier makes of a set of images.

    Attributes:
        features: fp32 [N, D] on the CPU.
        classes: int64 [N], the likeliest class.
    """

    features: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Judge:
    """A classifier that samples are judged by, and what they were drawn as.

    Attributes:
        classifier: in eval mode.
        labels: int64 [N] of the samples; None where they are not known.
    """

    classifier: TrainedClassifier
    labels: NDArray[np.int64] | None

    @classmethod
    def open(cls, config: EvaluateConfig) -> Judge | None:
        """The recipe's, if it has one and wants what it measures.

        Raises:
            UserError: no classifier there.
        """
        if config.classifier is None or config.samples is None or not config.wants(*MEASURES):
            return None
        return cls(load_classifier(config.classifier), sample_labels(config.samples))

    def networks(self, metrics: Mapping[str, Any]) -> dict[str, FeatureNetwork]:
        """The classifier, for each of its measures among `metrics`."""
        network = FeatureNetwork(CLASSIFIER, self.classifier.fingerprint)
        return {name: network for name in MEASURES if name in metrics}


def measure_samples_by(
    judge: Judge,
    images: HeldOutImages | None,
    samples: StoredImages | None,
    context: RunContext,
) -> dict[str, Any]:
    """Samples against data in a classifier's features.

    Raises:
        UserError: fewer than two images, or more than one rank.
    """
    assert images is not None
    assert samples is not None
    if context.world_size > 1:
        raise UserError("a classifier judges on one rank; run the evaluation without torchrun")
    real, fake = (
        look_at(judge.classifier, part.batches(context), context.device)
        for part in (images, samples)
    )
    return {**compare(real, fake, judge.labels), "num_generated": samples.num_samples}


@torch.no_grad()
def look_at(
    classifier: TrainedClassifier, batches: Iterable[Tensor], device: torch.device
) -> Judged:
    """Features and classes of images float [B, 3, H, W] in [-1, 1]."""
    network = classifier.network.to(device)
    features, classes = [], []
    for images in batches:
        found = network.features(images.to(device)).float()
        features.append(found.cpu())
        classes.append(network.head(found).argmax(1).cpu())
    return Judged(torch.cat(features), torch.cat(classes))


def compare(real: Judged, fake: Judged, labels: NDArray[np.int64] | None) -> dict[str, Any]:
    """Distances of two sets, and how many samples are taken for what they were drawn as.

    Args:
        real: held-out images.
        fake: samples.
        labels: int64 [N] the samples were drawn for; None where they are not known.

    Raises:
        UserError: fewer than two images in a set.
    """
    if min(len(real.features), len(fake.features)) < 2:
        raise UserError("distances of a classifier's features need at least two images of each")
    moments = [FeatureMoments(one.features.shape[1]) for one in (real, fake)]
    for moment, one in zip(moments, (real, fake), strict=True):
        moment.add(one.features)
    found: dict[str, Any] = {
        "classifier_frechet_distance": frechet_distance(*moments),
        "classifier_kid": kernel_distance(real.features, fake.features),
    }
    if labels is not None:
        hits = fake.classes == torch.from_numpy(labels)
        found["classifier_accuracy"] = float(hits.float().mean())
    return found


def sample_labels(place: str) -> NDArray[np.int64] | None:
    """Labels of a folder of `ifsq sample`; None for a bare .npz file."""
    return None if place.endswith(".npz") else read_samples(place).labels
