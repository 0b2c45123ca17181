"""The whole pipeline on small real images: pack, train, precompute, train, sample, evaluate.

Every stage is the one its command runs, with the shipped ``demo/*`` recipes; only the folders and
the number of classes are filled in. Stages that are done are found done, so an interrupted demo
goes on where it was.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data_pipelines.documents import Finite, checked, read_json
from data_pipelines.errors import UserError
from data_pipelines.manifest import ShardManifest
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.open import open_storage
from data_pipelines.storage.outputs import Writer, claim
from ifsq_train.config import (
    EvaluateConfig,
    LaunchConfig,
    PrecomputeConfig,
    SampleConfig,
    TrainConfig,
)
from ifsq_train.config.load import load_recipe
from ifsq_train.versions import library_versions
from launchers.demo.peak_memory import PeakMemory
from launchers.first_steps.digits import write_digits
from launchers.on_ray.cluster import ray_session
from launchers.stages import (
    evaluate_images,
    held_out,
    pack_images,
    precompute_tokens,
    sample_images,
)

logger = logging.getLogger(__name__)

SHARD_BYTES = 1 << 20
MAX_BAD_SAMPLES = 20
HELD_OUT_PERCENT = 20
DEMO = Writer(
    "ifsq demo",
    ("used.json", "result.json", "report.html"),
    lambda storage: storage.exists("used.json"),
    result="demo",
)
_USED: TypeAdapter[dict[str, float]] = TypeAdapter(dict[str, Finite])
MAX_SAMPLES = 1000
"""Drawn in all, of a folder with many classes."""


def _used_before(path: Path) -> dict[str, float]:
    """Seconds and memory of earlier starts; none where that cannot be read."""
    if not path.is_file():
        return {}
    try:
        return checked(_USED, read_json(path), str(path))
    except UserError as error:
        logger.warning("%s; what earlier starts used is not counted", error)
        return {}


def run_demo(
    output: Path,
    images: Path | None = None,
    workers: int = 2,
    changes: Mapping[str, Sequence[str]] | None = None,
    launch: LaunchConfig | None = None,
) -> dict[str, Any]:
    """Run all stages and write ``result.json`` and ``report.html`` into `output`.

    Args:
        output: folder of everything the demo makes.
        images: folder of class folders with images; None takes scikit-learn's digits.
        workers: Ray Train workers of both trainings, and precompute actors.
        changes: further ``key=value`` changes by recipe: tokenizer, tokens, generator, samples,
            evaluation.
        launch: worker group on a cluster; None is `workers` on this machine.

    Returns:
        What ``result.json`` holds.

    Raises:
        UserError: missing or unusable images, or a folder used for another demo.
        TrainingFailed: a training failed more often than it is restarted.
    """
    launch = launch or LaunchConfig(num_workers=workers)
    demo = Demo(output.absolute(), images, launch.num_workers, changes or {}, launch)
    with demo.measured():
        with demo.stage("pack"):
            demo.pack()
        with demo.ray():
            with demo.stage("tokenizer"):
                demo.train("tokenizer")
            with demo.stage("precompute"):
                demo.precompute()
            with demo.stage("generator"):
                demo.train("generator")
        with demo.stage("sample"):
            demo.sample()
        with demo.stage("evaluate"):
            demo.evaluate()
    result = demo.result()
    write_atomically(demo.folder / "result.json", json.dumps(result, indent=1).encode())
    demo.report(result)
    return result


@dataclass
class Demo:
    """One demo in its folder; a method per stage.

    Attributes:
        folder: where everything is written.
        images: the user's folder, or None for the digits.
        workers: of both trainings.
        changes: see `run_demo`.
        launch: worker group of the trainings.
        stages: what `result.json` says of each stage, in the order they ran.
        used: time by stage and of the whole, and peak memory, over all starts of this demo:
            an interrupted one that is run again says what it took altogether.
    """

    folder: Path
    images: Path | None
    workers: int
    changes: Mapping[str, Sequence[str]]
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count time and memory of the block to what earlier starts used."""
        storage, job = open_storage(self.folder), {"data": str(self.images or "digits")}
        finished = (self.folder / "report.html").exists()
        claim(storage, DEMO, job, finished=finished, overwrite=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "used.json"
        self.used = _used_before(path)
        began = time.monotonic()
        memory = PeakMemory()
        try:
            with memory:
                yield
        finally:
            self._add("wall_seconds", time.monotonic() - began)
            peak = max(self.used.get("peak_memory_bytes", 0.0), memory.peak_bytes)
            self.used["peak_memory_bytes"] = peak
            write_atomically(path, json.dumps(self.used).encode())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        began = time.monotonic()
        self.stages[name] = {}
        try:
            yield
        finally:
            self._add(name, time.monotonic() - began)
            self.stages[name]["seconds"] = self.used[name]

    def _add(self, name: str, seconds: float) -> None:
        self.used[name] = self.used.get(name, 0.0) + seconds

    @contextmanager
    def ray(self) -> Iterator[None]:
        """One local Ray for all stages that need it; none if they are finished."""
        from ifsq_train.training.preflight import finished_result

        manifest = self.folder / "tokens" / "tokens.json"
        if manifest.is_file() and finished_result(self._train_config("generator")) is not None:
            yield
            return
        with ray_session(self.launch.address, min_cpus=self.workers):
            yield

    # ------------------------------------------------------------ stages

    def pack(self) -> None:
        """Images to two datasets: one to train on, one to measure on."""
        source = self.images
        if source is None:
            source = self.folder / "digits"
            write_digits(source)
        for part, wanted in (("train", False), ("held-out", True)):
            manifest = pack_images(
                source,
                str(self.folder / "data" / part),
                shard_bytes=SHARD_BYTES,
                seed=0,
                max_bad_samples=MAX_BAD_SAMPLES,
                keep=lambda name, wanted=wanted: held_out(name, HELD_OUT_PERCENT) == wanted,
            )
            self.stages["pack"][f"{part.replace('-', '_')}_images"] = manifest.num_samples
            self.stages["pack"][f"{part.replace('-', '_')}_shards"] = manifest.num_shards
        self.stages["pack"]["classes"] = len(self._class_names())

    def train(self, name: str) -> None:
        """Tokenizer or generator, on Ray Train with DeepSpeed."""
        from launchers.on_ray.train import train_on_ray

        config = self._train_config(name)
        result = train_on_ray(config, self.launch)
        kept = ("strategy", "zero_stage", "world_size", "steps", "final_loss", "resumed_from")
        self.stages[name] |= {key: result[key] for key in kept}

    def precompute(self) -> None:
        """Tokens of the training images, on Ray actors."""
        config = self._recipe("tokens", PrecomputeConfig, **self._view())
        report = precompute_tokens(
            config,
            num_actors=self.workers,
            gpus_per_actor=float(self.launch.gpus),
            address=self.launch.address,
        )
        kept = ("rows", "expected_rows", "missing_rows", "duplicate_rows", "digest")
        self.stages["precompute"] |= {key: getattr(report, key) for key in kept}

    def sample(self) -> None:
        """Images of every class."""
        self.stages["sample"]["num_samples"] = sample_images(self._sample_config())

    def evaluate(self) -> None:
        """Reconstructions, code usage, samples; and what an independent classifier says."""
        from launchers.demo.classifier import judge_samples
        from launchers.demo.held_out_loss import held_out_loss

        config = self._evaluate_config()
        assert config.view is not None
        metrics = evaluate_images(config)["metrics"]
        self.stages["tokenizer"] |= {
            key: metrics[key] for key in ("psnr_db", "ssim", "code_entropy_bits")
        }
        self.stages["evaluate"] |= {"frechet_distance": metrics.get("frechet_distance")}
        self.stages["generator"] |= held_out_loss(
            Path(self._train_config("generator").output),
            Path(self._train_config("tokenizer").output),
            self.folder / "data" / "held-out",
            config.view,
        )
        self.stages["evaluate"] |= judge_samples(
            self.folder / "data" / "train",
            self.folder / "data" / "held-out",
            self._sample_config().output,
            config.view,
        )

    # ------------------------------------------------------------ result

    def result(self) -> dict[str, Any]:
        """What ``result.json`` says."""
        return {
            "data": "digits" if self.images is None else str(self.images),
            "workers": self.workers,
            "stages": self.stages,
            "wall_seconds": self.used["wall_seconds"],
            "peak_memory_bytes": int(self.used["peak_memory_bytes"]),
            "versions": library_versions(),
        }

    def report(self, result: dict[str, Any]) -> None:
        """Write the page."""
        from launchers.demo.report import write_demo_report

        write_demo_report(
            self.folder,
            result,
            evaluation=self._evaluate_config(),
            curves={name: Path(self._train_config(name).output) for name in TRAININGS},
            class_names=self._class_names(),
        )

    # ------------------------------------------------------------ recipes

    def _recipe(self, name: str, kind: type, **changes: Any) -> Any:
        folders = {
            "source": "data/train",
            "tokenizer": "tokenizer",
            "generator": "generator",
            "samples": "samples",
            "data": "data/held-out",
        }
        outputs = {"tokens": "tokens", "samples": "samples", "evaluation": "evaluation.json"}
        values = {key: folders[key] for key in folders if key in kind.model_fields}
        values["output"] = outputs[name]
        overrides = [f"{key}={self.folder / value}" for key, value in values.items()]
        overrides += [f"{key}={value}" for key, value in changes.items()]
        overrides += self.changes.get(name, [])
        config = load_recipe(f"demo/{name}", overrides)
        assert isinstance(config, kind)
        return config

    def _view(self) -> dict[str, Any]:
        """Changes that show a user's images as the tokenizer was trained on them."""
        if self.images is None:
            return {}
        view = self._train_config("tokenizer").data.view  # pyright: ignore
        return {f"view.{key}": value for key, value in view.to_dict().items()}

    def _train_config(self, name: str) -> TrainConfig:
        changes = {"output": self.folder / name}
        if name == "tokenizer":
            changes["data.url"] = self.folder / "data" / "train"
        else:
            changes["data.url"] = self.folder / "tokens"
            changes["data.tokenizer"] = self.folder / "tokenizer"
        overrides = [f"{key}={value}" for key, value in changes.items()]
        if name == "generator":
            overrides.append(f"task.model.num_classes={len(self._class_names())}")
        overrides += self.changes.get(name, [])
        recipe = f"demo/{name}" if self.images is None else f"demo/images-{name}"
        config = load_recipe(recipe, overrides)
        assert isinstance(config, TrainConfig)
        return config

    def _sample_config(self) -> SampleConfig:
        per_class = max(1, MAX_SAMPLES // len(self._class_names()))
        changes = {} if self.images is None else {"samples_per_class": per_class}
        return self._recipe("samples", SampleConfig, **changes)

    def _evaluate_config(self) -> EvaluateConfig:
        return self._recipe("evaluation", EvaluateConfig, **self._view())

    def _class_names(self) -> list[str]:
        manifest = ShardManifest.open(str(self.folder / "data" / "train"))
        if len(manifest.classes) < 2:
            raise UserError(
                f"{self.images} has {len(manifest.classes)} class folders; the demo trains a"
                " class-conditional generator and a classifier that judges it: put the images"
                " into two or more folders, one per class"
            )
        return manifest.classes


TRAININGS = ("tokenizer", "generator")
