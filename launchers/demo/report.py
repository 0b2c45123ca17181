"""What the demo shows: gathers images, curves and histograms for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ifsq_train.artifacts.trained import load_tokenizer, to_pixels
from ifsq_train.config import EvaluateConfig
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.evaluation.image_sets import HeldOutImages
from ifsq_train.evaluation.result import read_result
from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.report.charts import padded_histograms
from ifsq_train.report.page import write_report
from ifsq_train.sampling.draw import read_samples

PAIRS, SAMPLES_PER_CLASS, MAX_CLASSES = 24, 10, 12
_CURVES = {
    "tokenizer": ("loss", "adversarial", "discriminator", "code_entropy"),
    "generator": ("loss",),
}


def write_demo_report(
    folder: Path,
    result: Mapping[str, Any],
    *,
    evaluation: EvaluateConfig,
    curves: Mapping[str, Path],
    class_names: Sequence[str],
) -> None:
    """Write ``report.html`` into the demo's folder.

    Args:
        folder: the demo's folder.
        result: contents of ``result.json``.
        evaluation: names tokenizer, held-out images, samples and the evaluation's result.
        curves: run folder by training.
        class_names: by label.
    """
    assert evaluation.samples is not None
    originals, reconstructions = _reconstructions(evaluation)
    samples = read_samples(evaluation.samples)
    shown = range(min(len(class_names), MAX_CLASSES))
    metrics = read_result(Path(evaluation.output)).metrics
    write_report(
        folder / "report.html",
        result,
        originals=originals,
        reconstructions=reconstructions,
        samples=np.stack(
            [samples.images[samples.labels == label][:SAMPLES_PER_CLASS] for label in shown]
        ),
        class_names=[class_names[label] for label in shown],
        curves={
            f"{training} {term}": curve
            for training, run in curves.items()
            for term, curve in _curves(run, _CURVES[training])
        },
        histograms=padded_histograms(metrics["digit_histograms"]),
    )


def _reconstructions(config: EvaluateConfig) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    assert config.tokenizer is not None
    assert config.data is not None
    assert config.view is not None
    held_out = HeldOutImages(config.data, config.view, config.batch_size)
    images = next(held_out.batches(InProcessContext()))[:PAIRS].cpu()
    with torch.inference_mode():
        reconstructions, _ = load_tokenizer(config.tokenizer).network(images)
    return to_pixels(images), to_pixels(reconstructions)


def _curves(run: Path, terms: Sequence[str]) -> list[tuple[str, list[tuple[int, float]]]]:
    records = read_jsonl(run / "metrics.jsonl")
    found = [(term, [(int(r["step"]), r[term]) for r in records if term in r]) for term in terms]
    return [(term, curve) for term, curve in found if curve]
