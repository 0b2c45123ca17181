"""What an evaluation opened before it measures: images, samples and frozen networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError
from ifsq_train.artifacts.trained import TrainedTokenizer, load_tokenizer
from ifsq_train.config import EvaluateConfig
from ifsq_train.config.evaluate import Metric
from ifsq_train.distributed.context import RunContext
from ifsq_train.evaluation.classifier_features import Judge
from ifsq_train.evaluation.image_sets import (
    HeldOutImages,
    StoredImages,
    open_samples,
)
from ifsq_train.evaluation.inception_statistics import (
    GaussianStatistics,
    InceptionStatistics,
)
from ifsq_train.models.inception import FidInception, load_fid_inception
from ifsq_train.models.inference import optimize_for_inference
from ifsq_train.models.perceptual import Lpips, load_lpips
from ifsq_train.models.repa import DinoTeacher, load_dino

TEACHER_GRID = (16, 16)
SAMPLE_METRICS: tuple[Metric, ...] = (
    "fid", "sfid", "kid", "inception_score", "precision", "recall",
)  # fmt: skip


@dataclass
class Tools:
    """Everything an evaluation opened: images, samples and frozen networks on the device."""

    config: EvaluateConfig
    context: RunContext
    images: HeldOutImages | None
    samples: StoredImages | None
    tokenizer: TrainedTokenizer | None
    inception: FidInception | None
    lpips: Lpips | None
    teacher: DinoTeacher | None = None
    judge: Judge | None = None
    # What of the data a reconstruction pass has counted already.
    real: InceptionStatistics | None = None
    real_pooled: GaussianStatistics | None = None

    @classmethod
    def open(cls, config: EvaluateConfig, context: RunContext) -> Tools:
        """Find out about missing files before anything is computed.

        Raises:
            UserError: as `evaluate`.
        """
        size, device = config.batch_size, context.device
        tokenizer = load_tokenizer(config.tokenizer, config.weights) if config.tokenizer else None
        if tokenizer is not None:
            optimize_for_inference(tokenizer.network.to(device))
        images = samples = inception = lpips = teacher = None
        if config.data is not None and config.view is not None:
            images = HeldOutImages(config.data, config.view, size)
        if config.samples is not None:
            samples = open_samples(config.samples, size)
        try:
            if config.inception is not None and config.wants("rfid", *SAMPLE_METRICS):
                path = existing_file("inception", config.inception)
                inception = optimize_for_inference(load_fid_inception(path).to(device))
            if config.teacher is not None and config.wants("cknna"):
                path = existing_file("teacher", config.teacher)
                dino = load_dino(path, size=config.teacher_size, grid=TEACHER_GRID)
                teacher = optimize_for_inference(dino.to(device))
            if config.lpips and config.wants("lpips"):
                files = [existing_file("lpips", path) for path in config.lpips]
                distance = load_lpips(
                    *files,
                    backbone=config.lpips_backbone,
                    spatial=config.lpips_backbone == "alexnet",
                )
                lpips = optimize_for_inference(distance.to(device))
        except ValueError as error:
            raise UserError(str(error)) from error
        own = (tokenizer, inception, lpips, teacher, Judge.open(config))
        return cls(config, context, images, samples, *own)

    def new_statistics(self) -> InceptionStatistics:
        """Empty, keeping as many features as precision and recall want."""
        return InceptionStatistics(self.config.manifold_images if self.samples else 0)


def existing_file(key: str, path: str) -> Path:
    """The path of a local file that the recipe names under `key`.

    Raises:
        UserError: there is no such file.
    """
    if not Path(path).is_file():
        raise UserError(f"{key}: no file '{path}'; give a local weight file or leave {key} out")
    return Path(path)
