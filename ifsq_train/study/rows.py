"""The numbers of a study, variant by variant and seed by seed, from the stages' records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import UserError
from ifsq_train.config.study import MeasureConfig, Scalar, StudyConfig
from ifsq_train.study.expand import Expansion, Variant
from ifsq_train.study.store import read_record

Records = Mapping[str, Mapping[str, Any]]
"""Record by digest of the stage."""


@dataclass(frozen=True)
class Point:
    """A generator in the middle of its training.

    Attributes:
        step, samples, flops, seconds: how far it was.
        measures: number by name, for those that depend on it.
    """

    step: int
    samples: float
    flops: float
    seconds: float
    measures: dict[str, float]

    def x(self, name: str) -> float:
        """One of the first four by name."""
        return float(getattr(self, name))


@dataclass(frozen=True)
class Row:
    """One variant with one seed.

    Attributes:
        variant: labels, facts, digests.
        measures: number by name; missing where its stage is not done or gives none.
        curve: points in the order of steps; empty without a curve.
    """

    variant: Variant
    measures: dict[str, float]
    curve: tuple[Point, ...] = field(default=())


def read_records(expansion: Expansion, folder: Path) -> dict[str, dict[str, Any]]:
    """Records of the study's stages in a folder of results, or in a store.

    Raises:
        DataError: a damaged record.
    """
    found = {}
    for digest, stage in expansion.stages.items():
        for path in (folder / f"{stage.folder}.json", folder / stage.folder / "record.json"):
            record = read_record(path, digest)
            if record is not None:
                found[digest] = record
                break
    return found


def collect_rows(expansion: Expansion, records: Records) -> list[Row]:
    """A row per variant and seed, in the order of the study.

    A number counts once: where a stage is the same for several seeds of a variant, as it depends on
    none, the first of them has it.

    Raises:
        UserError: a measure's key leads to something that is no number, or to nothing anywhere.
    """
    config = expansion.config
    rows, seen = [], set()
    for variant in expansion.variants:
        measures = _measures(config, variant.stages, records)
        for name in list(measures):
            source = (variant.title, name, variant.stages[config.measures[name].stage])
            if source in seen:
                del measures[name]
            seen.add(source)
        rows.append(Row(variant, measures, _curve(config, variant, records)))
    _refuse_unknown_keys(expansion, rows, records)
    return rows


def _refuse_unknown_keys(expansion: Expansion, rows: Sequence[Row], records: Records) -> None:
    for name, measure in expansion.config.measures.items():
        stages = (row.variant.stages[measure.stage] for row in rows)
        found = next((records[digest] for digest in stages if digest in records), None)
        if found is not None and not any(name in row.measures for row in rows):
            raise UserError(
                f"{expansion.config.name}: measures.{name}: no record of stage '{measure.stage}'"
                f" has the number '{measure.key}'; there are {', '.join(sorted(found['numbers']))}"
            )


def _measures(
    config: StudyConfig, digests: Mapping[str, str], records: Records
) -> dict[str, float]:
    found = {}
    for name, measure in config.measures.items():
        record = records.get(digests.get(measure.stage, ""))
        value = None if record is None else number_at(record["numbers"], measure)
        if value is not None:
            found[name] = value
    return found


def number_at(numbers: Mapping[str, Any], measure: MeasureConfig) -> float | None:
    """The number a measure names; None where the record has none.

    Raises:
        UserError: it is no number and no list of numbers.
    """
    node: Any = numbers
    for part in measure.key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if node is None:
        return None
    values = node if isinstance(node, list) else [node]
    if not values or not all(isinstance(value, int | float) for value in values):
        raise UserError(f"measure '{measure.key}' of stage '{measure.stage}' is no number")
    return float(np.mean(values))


def _curve(config: StudyConfig, variant: Variant, records: Records) -> tuple[Point, ...]:
    if config.curve is None:
        return ()
    record = records.get(variant.stages[config.curve.stage])
    if record is None:
        return ()
    numbers, points = record["numbers"], []
    for step, digests in sorted(variant.points.items()):
        logged = min(numbers["curve"], key=lambda one: abs(one["step"] - step))
        scale = step / logged["step"]
        point = Point(
            step,
            logged["samples"] * scale,
            step * numbers["flops_per_step"],
            logged["seconds"] * scale,
            _measures(config, digests, records),
        )
        points.append(point)
    return tuple(points)


def matching(rows: Sequence[Row], where: Mapping[str, Scalar]) -> list[Row]:
    """Rows whose labels are those named.

    Raises:
        UserError: an axis or a label that the study has not.
    """
    for axis, label in where.items():
        known = {row.variant.labels.get(axis) for row in rows}
        if label not in known:
            shown = ", ".join(sorted(str(one) for one in known if one is not None))
            raise UserError(f"no '{axis}: {label}' in the study; there are {shown or 'none'}")
    return [
        row
        for row in rows
        if all(row.variant.labels.get(axis) == label for axis, label in where.items())
    ]


def by_seed(rows: Sequence[Row], measure: str) -> dict[int, float]:
    """Mean over rows of each seed; seeds with a row that lacks the number are left out."""
    found: dict[int, list[float | None]] = {}
    for row in rows:
        found.setdefault(row.variant.seed, []).append(row.measures.get(measure))
    return {
        seed: float(np.mean([value for value in values if value is not None]))
        for seed, values in found.items()
        if None not in values
    }
