"""What stages left behind, read as one kind of object: recipe, numbers, curves, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipelines.documents import read_object
from data_pipelines.errors import UserError
from ifsq_train.report.charts import Curve

Kind = Literal["training", "samples", "tokens", "evaluation"]

RESULT_JSON = "result.json"
METRICS_JSONL = "metrics.jsonl"
SAMPLES_JSON = "samples.json"
TOKENS_JSON = "tokens.json"
_DEMO_PARTS = ("tokenizer", "tokens", "generator", "samples", "evaluation.json")
_BESIDE_THE_EXPERIMENT = (
    "seed",
    "output",
    "name",
    "log_every_steps",
    "checkpoint",
    "data.url",
    "data.tokenizer",
)
"""Recipe keys that do not tell one experiment from another."""


@dataclass(frozen=True)
class StoredRun:
    """One finished or unfinished run.

    Attributes:
        path: folder or file it was read from, as the user gave it.
        kind: what made it.
        name: for tables.
        recipe: resolved recipe as nested dictionaries; empty where none is stored.
        numbers: final numbers by name.
        details: nested results that are shown in their own way, such as histograms.
        curves: (step, value) pairs by logged name.
        environment: versions, hardware, commit, date and command, as far as they are stored.
    """

    path: Path
    kind: Kind
    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float | int | str | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> Any:
        """Seed of the recipe; None where none is stored."""
        return self.recipe.get("seed")

    @property
    def label(self) -> str:
        """What it may be compared with: the kind, and for trainings the task."""
        task = self.recipe.get("task", {}).get("kind")
        return f"{self.kind} of {task}" if task else self.kind

    def experiment(self) -> str:
        """Equal for runs that differ only in seed and place."""
        flat = flatten(self.recipe)
        kept = {k: v for k, v in flat.items() if not _is_beside(k)}
        return json.dumps([self.kind, kept or str(self.path)], sort_keys=True)


def _is_beside(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _BESIDE_THE_EXPERIMENT)


def open_runs(paths: Sequence[Path]) -> list[StoredRun]:
    """Read runs; a folder of `ifsq demo` stands for its parts.

    Raises:
        UserError: a path is none of the kinds, or holds nothing yet.
    """
    found: list[StoredRun] = []
    for path in paths:
        found += [open_run(part) for part in _parts(path)]
    return found


def _parts(path: Path) -> list[Path]:
    result = _json(path / RESULT_JSON) if (path / RESULT_JSON).is_file() else {}
    if "stages" in result:
        return [path / name for name in _DEMO_PARTS if (path / name).exists()]
    return [path]


def open_run(path: Path) -> StoredRun:
    """Read one run.

    Raises:
        UserError: not a run, or damaged.
    """
    if path.is_file():
        return _evaluation(path)
    if (path / SAMPLES_JSON).is_file():
        return _samples(path)
    if (path / TOKENS_JSON).is_file():
        return _tokens(path)
    if any((path / name).exists() for name in (METRICS_JSONL, RESULT_JSON, "checkpoints")):
        return _training(path)
    what = "holds no run" if path.is_dir() else "does not exist"
    raise UserError(
        f"{path} {what}; give run folders of `ifsq train`, `ifsq sample`, `ifsq precompute` or"
        " `ifsq demo`, or result files of `ifsq evaluate`"
    )


def _training(path: Path) -> StoredRun:
    from ifsq_train.checkpoint.reader import newest_checkpoint
    from ifsq_train.metrics.jsonl import read_jsonl

    result = _json(path / RESULT_JSON) if (path / RESULT_JSON).is_file() else {}
    checkpoint = newest_checkpoint(path / "checkpoints")
    header = checkpoint.header if checkpoint is not None else {}
    records = read_jsonl(path / METRICS_JSONL)
    # A step that updates one network of two logs no loss of the other.
    last = {key: value for record in records for key, value in record.items()}
    numbers = {
        "steps": result.get("steps", last.get("step")),
        "finished": "yes" if result else "no",
        "seconds": result.get("seconds"),
        "workers": result.get("world_size"),
        "engine": result.get("strategy") or header.get("engine", {}).get("strategy"),
        "resumed from step": result.get("resumed_from") or "started fresh",
    } | {name: last[name] for name in sorted(last) if name == "loss" or "entropy" in name}
    return StoredRun(
        path,
        "training",
        result.get("name") or header.get("recipe", {}).get("name") or path.name,
        recipe=header.get("recipe", {}),
        numbers=numbers,
        curves=_curves(records),
        environment={**result.get("environment", {}), **result.get("versions", {})},
    )


def _curves(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    names = sorted({name for record in records for name in record} - {"step", "time"})
    return {
        name: [
            (int(record["step"]), float(record[name]))
            for record in records
            if isinstance(record.get(name), int | float)
        ]
        for name in names
    }


def _evaluation(path: Path) -> StoredRun:
    from ifsq_train.evaluation.result import read_result

    result = read_result(path)
    numbers = {k: v for k, v in result.metrics.items() if not isinstance(v, list | dict)}
    numbers["images"] = result.num_samples
    details = {k: v for k, v in result.metrics.items() if isinstance(v, list | dict)}
    details["networks"] = {name: one.name for name, one in result.networks.items()}
    recipe = {"subject": result.subject, "preprocessing": result.preprocessing}
    return StoredRun(
        path, "evaluation", path.stem, recipe, numbers, details, environment=result.versions
    )


def _samples(path: Path) -> StoredRun:
    facts = _json(path / SAMPLES_JSON)
    numbers = {k: v for k, v in facts.items() if isinstance(v, int | float) and k != "format"}
    return StoredRun(path, "samples", path.name, facts.get("recipe", {}), numbers)


def _tokens(path: Path) -> StoredRun:
    from data_pipelines.tokens.reader import TokenDataset

    summary = TokenDataset.open(str(path)).summary()
    numbers = {key: value for key, value in summary.items() if key not in ("kind", "url")}
    return StoredRun(path, "tokens", path.name, numbers=numbers)


def _json(path: Path) -> dict[str, Any]:
    return read_object(path, allow_nan=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat
