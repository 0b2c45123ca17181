"""What a result says of how it was made: reference, preprocessing, subject and networks."""

from __future__ import annotations

from typing import Any

from ifsq_train.config import EvaluateConfig
from ifsq_train.evaluation.image_sets import (
    VIEW_SEED,
    file_digest,
)
from ifsq_train.evaluation.result import (
    FeatureNetwork,
    Reference,
    network_digest,
)
from ifsq_train.evaluation.tools import SAMPLE_METRICS, TEACHER_GRID, Tools

TOKENIZER_ENCODER, INCEPTION = "tokenizer-encoder", "inception-fid"
_INCEPTION_METRICS = ("rfid", "rfid_8bit", *SAMPLE_METRICS)


def kind_of(config: EvaluateConfig) -> str:
    """Which of reconstruction and generation was measured."""
    parts = {"reconstruction": config.tokenizer, "generation": config.samples}
    return "+".join(name for name, given in parts.items() if given)


def reference_of(config: EvaluateConfig, tools: Tools) -> Reference:
    """Digest and number of the images measured against; 0 images for stored statistics."""
    if tools.images is not None:
        return Reference(tools.images.digest, tools.images.num_samples)
    assert config.reference is not None
    return Reference(file_digest(config.reference), 0)


def preprocessing_of(config: EvaluateConfig, tools: Tools) -> dict[str, Any]:
    """Everything besides the networks that the numbers depend on."""
    found: dict[str, Any] = {"range": "[-1, 1]"}
    if tools.images is not None:
        found |= {
            "view": tools.images.view.to_dict(),
            "view_seed": VIEW_SEED,
            "decoder": tools.images.decoder,
        }
    if config.reference is not None:
        found["reference_statistics"] = file_digest(config.reference)
    if tools.inception is not None:
        found |= {"inception_resize": "bilinear 299, no antialias", "precision": "fp32"}
        found |= {"neighbors": config.neighbors, "manifold_images": config.manifold_images}
    if tools.teacher is not None:
        found |= {"teacher_grid": list(TEACHER_GRID), "cknna_neighbors": config.cknna_neighbors}
    return found


def subject_of(config: EvaluateConfig, tools: Tools) -> dict[str, Any]:
    """What was measured, by fingerprints and digests."""
    found: dict[str, Any] = {}
    if tools.tokenizer is not None:
        tokenizer = tools.tokenizer
        found = {"tokenizer": tokenizer.fingerprint, "step": tokenizer.step}
        found["weights"] = tokenizer.weights
    if config.samples is not None and config.samples.endswith(".npz"):
        found["samples"] = file_digest(config.samples)
    return found


def networks_of(tools: Tools, metrics: dict[str, Any]) -> dict[str, FeatureNetwork]:
    """Which network each number depends on."""
    found: dict[str, FeatureNetwork] = {}
    if tools.tokenizer is not None and "frechet_distance" in metrics:
        found["frechet_distance"] = FeatureNetwork(TOKENIZER_ENCODER, tools.tokenizer.fingerprint)
    if tools.inception is not None:
        network = FeatureNetwork(INCEPTION, network_digest(tools.inception, {"name": INCEPTION}))
        found |= {name: network for name in _INCEPTION_METRICS if name in metrics}
    if tools.teacher is not None:
        name = f"dinov2-{tools.config.teacher_size}"
        found["cknna"] = FeatureNetwork(name, network_digest(tools.teacher, {"name": name}))
    found |= tools.judge.networks(metrics) if tools.judge is not None else {}
    if tools.lpips is not None:
        name = f"lpips-{tools.config.lpips_backbone}"
        network = FeatureNetwork(name, network_digest(tools.lpips, {"name": name}))
        found |= dict.fromkeys(("lpips", "lpips_8bit"), network)
    return found
