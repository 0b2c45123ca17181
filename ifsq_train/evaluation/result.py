"""The one form in which a measurement is stored: the numbers, and all that decides them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from data_pipelines.documents import read_object
from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.outputs import claim_file
from ifsq_train.models.fingerprint import update_with_tensors
from ifsq_train.versions import library_versions

FORMAT_VERSION = 1


@dataclass(frozen=True)
class FeatureNetwork:
    """The network whose features a number depends on.

    Attributes:
        name: such as ``inception-fid`` or ``tokenizer-encoder``.
        digest: `network_digest` of it, or a tokenizer's fingerprint.
    """

    name: str
    digest: str


@dataclass(frozen=True)
class Reference:
    """The real images a number was measured against.

    Attributes:
        digest: of their dataset's manifest.
        num_samples: how many of them were used; a Frechet distance depends on it. 0 where a file of
            statistics does not say.
    """

    digest: str
    num_samples: int


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers that may be compared wherever everything but `subject` and `metrics` is equal.

    Attributes:
        kind: what was measured, such as ``reconstruction`` or ``generation``.
        metrics: number by name; lists of them for values per token group or channel.
        num_samples: images measured, each once.
        reference: the real images compared with.
        preprocessing: view, image size, value range and decoder the images went through.
        subject: what was measured, such as a tokenizer's fingerprint and step.
        networks: feature networks by metric, for those that use one.
        versions: libraries, see `ifsq_train.versions`.
        recipe: the settings of the evaluation; not part of what makes numbers comparable.
    """

    kind: str
    metrics: dict[str, Any]
    num_samples: int
    reference: Reference
    preprocessing: dict[str, Any]
    subject: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, FeatureNetwork] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=library_versions)
    recipe: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; infinite numbers (PSNR of equal images) become None.

        Raises:
            DataError: a metric is not a number; names it.
        """
        for name, value in self.metrics.items():
            if _holds_nan(value):
                raise DataError(
                    f"{name} is not a number: a network or its inputs gave values that are not"
                    " finite; nothing is written"
                )
        return {"format_version": FORMAT_VERSION, **_finite(asdict(self))}

    def write(self, path: Path) -> None:
        """Write as JSON; a kill leaves the old file or the new one."""
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (text + "\n").encode())


def read_result(path: Path) -> EvaluationResult:
    """Read what `EvaluationResult.write` wrote; None stands for a number that was not finite.

    Raises:
        DataError: not such a file, or of another format version.
    """
    stored = read_object(path)
    try:
        version = stored.pop("format_version")
        networks = {name: FeatureNetwork(**one) for name, one in stored.pop("networks").items()}
        reference = Reference(**stored.pop("reference"))
        known = {part.name for part in fields(EvaluationResult)}
        unknown = set(stored) - known
        missing = {"kind", "metrics", "num_samples", "preprocessing"} - set(stored)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not an evaluation result ({error!r})") from error
    if version != FORMAT_VERSION or unknown or missing:
        raise DataError(
            f"{path}: evaluation result of format {version} with unknown fields {sorted(unknown)}"
            f" and without {sorted(missing)}; this version reads format {FORMAT_VERSION}"
        )
    return EvaluationResult(**stored, networks=networks, reference=reference)


def claim_result(path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make sure that a result may be written to `path`.

    Raises:
        UserError: another file is there, or a result of other settings.
    """
    was: dict[str, Any] | None = None
    with contextlib.suppress(UserError):
        found = read_object(path)
        if {"format_version", "kind", "metrics"} <= set(found):
            recipe = found.get("recipe")
            was = recipe if isinstance(recipe, dict) else {}
    claim_file(path, "ifsq evaluate", was, settings, overwrite=overwrite)


def network_digest(network: nn.Module, description: Mapping[str, Any]) -> str:
    """sha256 (hex) over a description and all saved tensors of a network."""
    digest = hashlib.sha256(json.dumps(dict(description), sort_keys=True).encode())
    update_with_tensors(digest, network.state_dict())
    return digest.hexdigest()


def _holds_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_nan, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_nan, value))
    return isinstance(value, float) and math.isnan(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
