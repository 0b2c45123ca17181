"""A set of samples as a job: what is drawn, in which parts, how far it is, when it is finished.

    job.json             first file: what the folder is being filled with
    parts/part-00000000  one finished batch of samples each, gone when the set is finished
    samples.npz, images/ or shards/   the samples
    preview.png          a few of them
    samples.json         last file: what made them; a set without it is not finished

What a part holds is a function of the job and its index, so any process may make it, at any time.
A killed job goes on where it stopped; a folder begun with other settings or networks is begun anew.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.array_files import open_npz
from data_pipelines.documents import parse_json
from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.open import Storage
from data_pipelines.storage.outputs import Writer, claim, refuse_other_settings, remove_own
from data_pipelines.work_items import WorkItem
from ifsq_train.config import SampleConfig, to_dict
from ifsq_train.sampling.files import IMAGE_FILES, write_images, write_preview

logger = logging.getLogger(__name__)

JOB_JSON, SAMPLES_JSON = "job.json", "samples.json"
PART_FOLDER = "parts/"
PART_FILES = "parts/part-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9].npz"
_PLACES = ("generator", "tokenizer", "output")
"""Where things lie does not decide what is drawn; the fingerprints do."""


@dataclass(frozen=True)
class SampleSpec:
    """Everything that decides the samples; JSON-able facts by name.

    Attributes:
        facts: settings of the recipe, fingerprints, number of samples, precision and device kind.
        labels: class of every sample.
    """

    facts: dict[str, Any]
    labels: tuple[int, ...]

    def differences(self, other: SampleSpec) -> list[str]:
        """Facts that differ, as "name: own value, not other value"."""
        return [
            f"{name}: {value}, not {other.facts.get(name)}"
            for name, value in self.facts.items()
            if value != other.facts.get(name)
        ]


def describe_samples(config: SampleConfig, labels: NDArray[np.int64], **made_by: Any) -> SampleSpec:
    """The spec of a recipe's samples; `made_by` are the facts of the networks."""
    settings = {key: value for key, value in to_dict(config).items() if key not in _PLACES}
    facts = {"num_samples": len(labels), **made_by, "recipe": settings}
    return SampleSpec(json.loads(json.dumps(facts)), tuple(labels.tolist()))


@dataclass(frozen=True)
class SamplePart:
    """A finished batch: images uint8 [N, H, W, 3], labels int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def part_name(index: int) -> str:
    """Path of the part of work item `index`."""
    return f"{PART_FOLDER}part-{index:08d}.npz"


def publish_part(storage: Storage, item: WorkItem, part: SamplePart) -> None:
    """Write the part whole or not at all; where it is there already nothing happens."""
    buffer = io.BytesIO()
    np.savez(buffer, images=part.images, labels=part.labels)
    storage.put_if_absent(part_name(item.index), buffer.getvalue())


def _holds_samples(storage: Storage) -> bool:
    """Whether a folder holds samples, finished or not; ``job.json`` is their marker."""
    found = _read_json(storage, SAMPLES_JSON) or _read_json(storage, JOB_JSON) or {}
    recipe = found.get("recipe")
    return isinstance(recipe, dict) and recipe.get("kind") == "sample"


SAMPLER = Writer(
    "ifsq sample", (SAMPLES_JSON, JOB_JSON, PART_FILES, *IMAGE_FILES), _holds_samples, marks=False,
    result="set of samples",
)  # fmt: skip


class SampleJob:
    """The parts of a job and where they lie.

    Args:
        storage: the output folder.
        spec: what is drawn.
        config: batch size, format and preview.
    """

    def __init__(self, storage: Storage, spec: SampleSpec, config: SampleConfig) -> None:
        self.storage, self.spec = storage, spec
        self._config = config
        count, size = len(spec.labels), config.batch_size
        self.items = [
            WorkItem(index, first, min(size, count - first))
            for index, first in enumerate(range(0, count, size))
        ]

    def is_finished(self) -> bool:
        """Whether the folder holds exactly these samples already."""
        facts = read_facts(self.storage)
        return facts is not None and {key: facts.get(key) for key in self.spec.facts} == (
            self.spec.facts
        )

    def claim(self, overwrite: bool | None) -> None:
        """Make sure that the samples may be written to the folder.

        Args:
            overwrite: True removes samples drawn there before; False refuses to replace a finished
                set of other settings; None replaces it.

        Raises:
            UserError: the folder holds something else than samples, or see `overwrite`.
        """
        claim(self.storage, SAMPLER, overwrite=overwrite)
        was = read_facts(self.storage)
        if was is not None and overwrite is False:
            was.pop("sha256", None)
            refuse_other_settings(self.storage, SAMPLER, was, self.spec.facts)

    def begin(self) -> list[WorkItem]:
        """The items left to do; the parts of a job with other settings are removed."""
        if _read_json(self.storage, JOB_JSON) != self.spec.facts:
            remove_own(self.storage, SAMPLER)
            self.storage.write(JOB_JSON, _json_bytes(self.spec.facts))
        present = set(self.storage.list(PART_FOLDER))
        left = [item for item in self.items if part_name(item.index) not in present]
        if len(left) < len(self.items):
            logger.info("%d of %d batches are there already", len(present), len(self.items))
        return left

    def samples_done(self, left: int) -> int:
        """Samples in all parts but `left` of them (the last part may be smaller)."""
        done = len(self.items) - left
        return min(done * self._config.batch_size, len(self.spec.labels))

    def finish(self) -> None:
        """Join the parts to the final files, say what made them, remove the parts.

        Raises:
            DataError: a part is missing or damaged; running again makes it anew.
        """
        digest = write_images(
            self.storage, self._config.format, len(self.spec.labels), self._parts()
        )
        write_preview(self.storage, self._config.preview, len(self.spec.labels), self._parts())
        self.storage.write(SAMPLES_JSON, _json_bytes({**self.spec.facts, "sha256": digest}))
        for name in self.storage.list(PART_FOLDER):
            self.storage.delete(name)

    def _parts(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        for item in self.items:
            name = part_name(item.index)
            try:
                with open_npz(self.storage.read(name), name) as stored:
                    images, labels = stored["images"], stored["labels"]
            except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
                self.storage.delete(name)
                raise DataError(
                    f"{self.storage.url}/{name} is damaged ({error}) and was removed; run again, it"
                    " is drawn anew"
                ) from error
            yield images, labels


def read_facts(storage: Storage) -> dict[str, Any] | None:
    """What a finished set says of itself; None where there is none."""
    return _read_json(storage, SAMPLES_JSON)


def _with_defaults(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of an earlier release's samples, with the settings that it did not have."""
    recipe = facts.get("recipe")
    if not isinstance(recipe, dict) or recipe.get("kind") != "sample":
        return facts
    return {**facts, "recipe": {"weights": "averaged"} | recipe}


def _read_json(storage: Storage, name: str) -> dict[str, Any] | None:
    if not storage.exists(name):
        return None
    try:
        found = parse_json(storage.read(name), name, allow_nan=True)
    except UserError:
        return None
    return _with_defaults(found) if isinstance(found, dict) else None


def _json_bytes(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()
