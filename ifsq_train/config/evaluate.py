"""What `ifsq evaluate` measures, and what each measure needs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ifsq_train.config.base import Config
from ifsq_train.config.data import ViewConfig
from ifsq_train.config.paths import RunPath
from ifsq_train.config.sources import ImagePlace

Metric = Literal[
    "psnr", "ssim", "l1", "lpips", "code_use", "cknna", "rfid",
    "frechet_distance", "fid", "sfid", "kid", "inception_score", "precision", "recall",
    "classifier_frechet_distance", "classifier_kid", "classifier_accuracy",
]  # fmt: skip

NEEDS: dict[Metric, tuple[str, ...]] = {
    "psnr": ("tokenizer",),
    "ssim": ("tokenizer",),
    "l1": ("tokenizer",),
    "lpips": ("tokenizer", "lpips"),
    "code_use": ("tokenizer",),
    "cknna": ("tokenizer", "teacher"),
    "rfid": ("tokenizer", "inception"),
    "frechet_distance": ("tokenizer", "samples"),
    "fid": ("samples", "inception"),
    "sfid": ("samples", "inception"),
    "kid": ("samples", "inception"),
    "inception_score": ("samples", "inception"),
    "precision": ("samples", "inception"),
    "recall": ("samples", "inception"),
    "classifier_frechet_distance": ("samples", "classifier"),
    "classifier_kid": ("samples", "classifier"),
    "classifier_accuracy": ("samples", "classifier"),
}
"""Entries of the recipe without which a measure cannot be taken."""


class EvaluateConfig(Config):
    """Measure a tokenizer's reconstructions, samples against a reference, or both."""

    kind: Literal["evaluate"]
    output: RunPath
    """Result JSON to write."""
    tokenizer: RunPath | None = None
    """Run folder or checkpoint; reconstructs the data, and its encoder is the feature network of
    `frechet_distance`."""
    weights: Literal["averaged", "live"] = "averaged"
    """Of the tokenizer: the averaged weights where the run keeps some, or those being trained."""
    data: ImagePlace | None = None
    """Held-out image dataset folder; samples are compared with it unless `reference` is given."""
    view: ViewConfig | None = None
    """How the data are seen; goes with `data`."""
    samples: RunPath | None = None
    """Folder of `ifsq sample`, or an .npz file with uint8 images `arr_0` [N, H, W, 3]."""
    reference: RunPath | None = None
    """ADM's reference .npz (`mu`, `sigma`, `mu_s`, `sigma_s`, images `arr_0`) for the samples."""
    inception: RunPath | None = None
    """FID-Inception weight file in pytorch-fid's layout; adds rFID, FID, sFID and so on."""
    classifier: RunPath | None = None
    """Run folder or checkpoint of a classifier (task `classifier`); adds Frechet and kernel
    distances of its features between samples and data, and how many samples it takes for the
    class they were drawn for. No published numbers compare with these."""
    lpips: tuple[RunPath, ...] = ()
    """Weight files of LPIPS: backbone and linear heads."""
    lpips_backbone: Literal["alexnet", "vgg16"] = "alexnet"
    """`alexnet`, as spatial maps, is the released evaluation."""
    neighbors: int = Field(default=3, ge=1)
    """Precision and recall: a manifold reaches to this many-th nearest neighbour."""
    manifold_images: int = Field(default=10_000, ge=2)
    """Precision and recall: images of each set that are used, the first ones."""
    teacher: RunPath | None = None
    """Weight file of a DINOv2 backbone; adds CKNNA of the tokenizer's encoder with it."""
    teacher_size: Literal["S", "B", "L"] = "B"
    cknna_neighbors: int = Field(default=10, ge=1)
    """CKNNA: nearest neighbours that count; 10 is the released evaluation."""
    cknna_images: int = Field(default=2048, ge=4)
    """CKNNA: held-out images that are compared at once, the first ones."""
    metrics: tuple[Metric, ...] | None = None
    """What to measure and report; all that the given parts allow when not given."""
    batch_size: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> EvaluateConfig:
        problems = {
            "give a tokenizer, samples or both": not (self.tokenizer or self.samples),
            "data and view go together": (self.data is None) != (self.view is None),
            "a tokenizer needs data to reconstruct": bool(self.tokenizer) and not self.data,
            "samples need data or a reference to be compared with": bool(self.samples)
            and not (self.data or self.reference),
            "samples need a tokenizer, inception or classifier as feature network": bool(
                self.samples
            )
            and not (self.tokenizer or self.inception or self.classifier),
            "classifier compares samples with data: give both": bool(self.classifier)
            and not (self.samples and self.data),
            "reference is Inception's: it needs inception and samples": bool(self.reference)
            and not (self.inception and self.samples),
            "lpips needs a tokenizer": bool(self.lpips) and not self.tokenizer,
            "teacher is for CKNNA of a tokenizer: give one": bool(self.teacher)
            and not self.tokenizer,
        }
        problems |= {
            f"metrics: {name} needs {', '.join(missing)}": True
            for name in self.metrics or ()
            if (missing := [part for part in NEEDS[name] if not getattr(self, part)])
        }
        if found := [text for text, wrong in problems.items() if wrong]:
            raise ValueError("; ".join(found))
        return self

    def wants(self, *names: Metric) -> bool:
        """Whether one of these is to be measured."""
        return self.metrics is None or any(name in self.metrics for name in names)
