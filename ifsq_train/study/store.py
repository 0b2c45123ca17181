"""Where stages leave what they make, and the small record of each that a report is made from."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from data_pipelines.documents import Finite, checked, read_object
from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.local import write_atomically
from ifsq_train.checkpoint.format import step_folder
from ifsq_train.config import EvaluateConfig, TrainConfig, to_dict
from ifsq_train.config.paths import with_absolute_paths
from ifsq_train.study.stage import FORMAT_VERSION, Stage, StageConfig, references, replaced, science
from ifsq_train.versions import library_versions

RECORD, FAILURE, OUTPUT, RESULT = "record.json", "failure.json", "out", "result.json"
_DIGITS = 6
"""Significant digits of stored numbers."""


class _Record(TypedDict):
    """Of a stage's record, what is calculated with."""

    digest: str
    format_version: int
    numbers: dict[str, Any]
    seconds: Finite
    cpu_seconds: Finite
    stage: str


_RECORD: TypeAdapter[_Record] = TypeAdapter(_Record)


@dataclass(frozen=True)
class Store:
    """A folder with one folder per stage, shared by all studies that name it."""

    root: Path
    base: Path = Path()
    """What relative paths of recipes are below, for tasks that run in another folder."""
    study: str = ""

    def folder(self, stage: Stage) -> Path:
        """Of one stage."""
        return self.root / stage.folder

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """What a finished stage left; None if it is not finished."""
        return read_record(self.folder(stage) / RECORD, stage.digest)

    def failure(self, stage: Stage) -> str | None:
        """Why it failed the last time, if it did."""
        path = self.folder(stage) / FAILURE
        try:
            return str(read_object(path)["error"]) or "not said"
        except (UserError, KeyError):
            return None

    def finish(self, stage: Stage, numbers: Mapping[str, Any], seconds: float, cpu: float) -> None:
        """Record a stage as done."""
        record = make_record(stage, numbers, seconds, cpu)
        folder = self.folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILURE).unlink(missing_ok=True)
        write_atomically(folder / RECORD, record_bytes(record))

    def fail(self, stage: Stage, error: str) -> None:
        """Record why a stage failed; it is tried again by the next run."""
        folder = self.folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FAILURE, json.dumps({"error": error}).encode())

    def runnable(self, stage: Stage, stages: Mapping[str, Stage]) -> StageConfig:
        """The stage's recipe with folders in place of references, and its output."""
        values = to_dict(stage.recipe)
        change = {}
        for _, reference in references(values):
            digest, _, step = reference.partition("@")
            folder = self.root.absolute() / stages[digest].folder / OUTPUT
            path = step_folder(folder / "checkpoints", int(step)) if step else folder
            change[reference] = str(path)
        values = replaced(values, change)
        output = self.folder(stage).absolute() / OUTPUT
        if isinstance(stage.recipe, EvaluateConfig):
            output = output / RESULT
        if "output" in values:
            values["output"] = str(output)
        if isinstance(stage.recipe, TrainConfig):
            values["name"] = f"{stage.name}-{stage.digest[:8]}"
            values["tags"] = {"study": self.study, "variant": stage.variant, **values["tags"]}
        return with_absolute_paths(type(stage.recipe).model_validate(values), self.base.absolute())

    def is_driven(self) -> bool:
        """Whether an `ifsq study run` on this machine works here."""
        import fcntl

        path = self.root / ".lock"
        if not path.is_file():
            return False
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One driver at a time; a lock dies with its process.

        Raises:
            UserError: another one works in this folder.
        """
        import fcntl

        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.root}: another `ifsq study run` works here; wait for it, or name"
                    " another --store"
                ) from None
            yield


def make_record(
    stage: Stage, numbers: Mapping[str, Any], seconds: float, cpu: float
) -> dict[str, Any]:
    """What is kept of a finished stage."""
    return {
        "format_version": FORMAT_VERSION,
        "digest": stage.digest,
        "stage": stage.name,
        "recipe": {**science(stage.recipe)},
        "numbers": rounded(dict(numbers)),
        "seconds": rounded(seconds),
        "cpu_seconds": rounded(cpu),
        "machine": {"cpus": os.cpu_count(), "processor": _processor()},
        "versions": library_versions(),
    }


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as it is stored."""
    return (json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_record(path: Path, digest: str) -> dict[str, Any] | None:
    """A stage's record; None where there is none.

    Raises:
        DataError: damaged, or of another stage.
    """
    if not path.is_file():
        return None
    record = read_object(path)
    if record.get("digest") != digest or record.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{path}: the record of another stage; remove it")
    checked(_RECORD, record, str(path))
    return record


def rounded(value: Any) -> Any:
    """Numbers to six significant digits, None for those that are not finite."""
    if isinstance(value, dict):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
