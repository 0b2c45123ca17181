"""The rooms that a sample over the core draws from, and which tests are asked about them."""

from __future__ import annotations

from dataclasses import dataclass

SUITE = ["tests/unit", "tests/goldens", "tests/plugins"]
NOT_ASKED = [
    "tests/unit/k8s",
    "tests/unit/test_repository.py",
    "tests/unit/test_import_rules.py",
    "tests/unit/test_gpu_script.py",
]
"""Nothing of the core runs in these."""


@dataclass(frozen=True)
class Room:
    """A part of the core.

    Attributes:
        paths: Folders and modules.
        share: Mutants of it in the sample.
    """

    paths: tuple[str, ...]
    share: int


ROOMS = {
    "order": Room(("data_pipelines/order", "data_pipelines/views"), 60),
    "manifest and storage": Room(
        (
            "data_pipelines/storage",
            "data_pipelines/manifest.py",
            "data_pipelines/manifest_shape.py",
            "data_pipelines/hashing.py",
            "data_pipelines/prefetch.py",
            "data_pipelines/bad_samples.py",
        ),
        55,
    ),
    "images": Room(("data_pipelines/images",), 70),
    "tokens": Room(("data_pipelines/tokens", "ifsq_train/precompute"), 75),
    "quantizers": Room(("ifsq_train/models/quantizers",), 50),
    "models": Room(
        tuple(
            f"ifsq_train/models/{name}.py"
            for name in (
                "autoencoder", "classifier", "discriminator", "dit", "fused", "generator_spec",
                "inference", "key_value_cache", "llamagen", "perceptual", "released", "repa",
                "token_head", "transformer",
            )
        ),
        60,
    ),
    "losses": Room(("ifsq_train/losses",), 30),
    "tasks and data": Room(("ifsq_train/tasks", "ifsq_train/data", "ifsq_train/assembly"), 50),
    "strategies": Room(("ifsq_train/strategy", "ifsq_train/distributed"), 35),
    "checkpoints": Room(("ifsq_train/checkpoint", "ifsq_train/artifacts"), 60),
    "training": Room(
        ("ifsq_train/train.py", "ifsq_train/training", "ifsq_train/randomness.py"), 40
    ),
    "configuration": Room(("ifsq_train/config",), 30),
    "sampling": Room(("ifsq_train/sampling",), 45),
    "evaluation": Room(("ifsq_train/evaluation",), 45),
    "launchers' objects": Room(
        (
            "launchers/on_kubernetes/rayjob.py",
            "launchers/on_kubernetes/objects.py",
            "launchers/on_kubernetes/pods.py",
            "launchers/on_kubernetes/profile.py",
            "launchers/on_kubernetes/quantities.py",
            "launchers/on_kubernetes/reasons.py",
            "launchers/on_kubernetes/volumes.py",
            "launchers/jobs",
        ),
        45,
    ),
}  # fmt: skip

RUN_ELSEWHERE = {
    "ifsq_train/strategy/deepspeed.py": ["tests/distributed/test_strategies.py"],
    "ifsq_train/distributed": ["tests/distributed/test_strategies.py"],
}
"""Tests whose processes run a module that none of the suite's own processes calls."""


def mirror_of(module: str) -> str:
    """Where the tests of a module's folder lie."""
    return f"tests/unit/{module.rsplit('/', 1)[0]}/"
