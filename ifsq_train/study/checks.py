"""What is wrong with a study before anything runs: names that lead nowhere, numbers that decide
nothing. One line per fault: what was found, what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from data_pipelines.errors import UserError
from ifsq_train.config import TrainConfig
from ifsq_train.config.study import (
    FACT_PREFIX,
    BestClaim,
    BetterClaim,
    ClaimConfig,
    CrossingClaim,
    Scalar,
    StudyConfig,
    TrendClaim,
    ValueClaim,
    Where,
)

VARIANT = "variant"
TOKENIZER_FACTS = ("compression", "bits_per_channel", "channels")
CURVE_X = ("flops", "steps", "seconds")
_MOST_SEED = 2**31 - 1
_STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# What the last part of a key that names another stage expects it to be.
_EXPECTED = {
    "tokenizer": ("train",), "generator": ("train",), "classifier": ("train",),
    "teacher": ("train",), "samples": ("sample",), "source": ("images",), "images": ("images",),
    "data": ("images",), "url": ("images", "precompute"),
}  # fmt: skip


def check_study(config: StudyConfig) -> None:
    """Refuse a study that cannot mean what it says.

    Raises:
        UserError: one line per fault.
    """
    check: tuple[Callable[[StudyConfig], Iterator[str]], ...] = (
        _stages, _seeds, _axes, _budget, _curve, _claims, _drawings,
    )  # fmt: skip
    faults = [f"{config.name}: {fault}" for part in check for fault in part(config)]
    if faults:
        raise UserError(*dict.fromkeys(faults))


def labels_of(config: StudyConfig) -> dict[str, list[Scalar]]:
    """All labels by axis, that of the named variants included."""
    found: dict[str, list[Scalar]] = {VARIANT: list(config.variants)} if config.variants else {}
    return found | {axis: list(values) for axis, values in config.axes.items()}


def _changes(config: StudyConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Axis and the changes of each of its labels."""
    for changes in config.variants.values():
        yield VARIANT, changes
    for axis, values in config.axes.items():
        if isinstance(values, dict):
            yield from ((axis, changes) for changes in values.values())
        else:
            yield axis, {axis: values}


def _facts(config: StudyConfig) -> set[str]:
    own = {key for _, changes in _changes(config) for key in changes if key.startswith(FACT_PREFIX)}
    return {*TOKENIZER_FACTS, *(key.removeprefix(FACT_PREFIX) for key in own)}


def _stages(config: StudyConfig) -> Iterator[str]:
    for name in config.stages:
        if not _STAGE_NAME.fullmatch(name) or f"{name}." == FACT_PREFIX:
            yield (
                f"stages: the name '{name}' cannot be used; letters, digits, _ and -, a letter"
                " first, and not 'facts'"
            )


def _seeds(config: StudyConfig) -> Iterator[str]:
    if repeated := _repeated(config.seeds):
        yield f"seeds: {repeated} is there twice; the same seed is no second sample"
    for seed in config.seeds:
        if not 0 <= seed <= _MOST_SEED:
            yield f"seeds: found {seed}; allowed are 0 to {_MOST_SEED}"
    if len(config.seeds) > 1 and config.seeded is not None and not config.seeded:
        yield f"seeded: no stage gets the {len(config.seeds)} seeds; name some, or give one seed"


def _axes(config: StudyConfig) -> Iterator[str]:
    owner: dict[str, str] = {}
    for axis, values in config.axes.items():
        if not values:
            yield f"axes.{axis}: has no values; add some or remove it"
        elif isinstance(values, list) and (repeated := _repeated(values)):
            yield f"axes.{axis}: {repeated} is there twice"
    for axis, changes in _changes(config):
        for key, value in changes.items():
            if owner.setdefault(key, axis) != axis:
                yield f"'{key}' is changed by '{owner[key]}' and by '{axis}'; the last would win"
            if key.startswith(FACT_PREFIX):
                yield from _fact(key, value)


def _fact(key: str, value: Any) -> Iterator[str]:
    values = value if isinstance(value, list) and key in value else [value]
    for one in values:
        number = isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)
        if key == FACT_PREFIX or not number:
            yield f"'{key}': found {one!r}; a fact is a name and a finite number"


def _kind(config: StudyConfig, stage: str) -> Any:
    return config.stages[stage].get("kind")


def _budget(config: StudyConfig) -> Iterator[str]:
    budget = config.budget
    if budget.equal == "steps" and (budget.stage or budget.amount):
        yield "budget: equal 'steps' takes no stage and no amount; remove them"
    if budget.stage and _kind(config, budget.stage) != "train":
        yield f"budget.stage: '{budget.stage}' is no training; name one of kind train"


def _curve(config: StudyConfig) -> Iterator[str]:
    curve = config.curve
    if curve is None:
        return
    if _kind(config, curve.stage) != "train":
        yield f"curve.stage: '{curve.stage}' is no training; name one of kind train"
    if repeated := _repeated(curve.steps):
        yield f"curve.steps: {repeated} is there twice"
    for step in curve.steps:
        if step < 1:
            yield f"curve.steps: found {step}; the first is 1"


def _claims(config: StudyConfig) -> Iterator[str]:
    if repeated := _repeated([claim.id for claim in config.claims]):
        yield f"claims: the id {repeated} is there twice"
    for claim in config.claims:
        where = f"claims.{claim.id}"
        yield from _claim(config, claim, where)
        directed = not isinstance(claim, ValueClaim)
        if directed and config.measures[claim.measure].better is None:
            yield (
                f"{where}: measure '{claim.measure}' does not say what is better; add better:"
                " higher or lower"
            )


def _claim(config: StudyConfig, claim: ClaimConfig, where: str) -> Iterator[str]:
    if isinstance(claim, BetterClaim | CrossingClaim):
        yield from _where(config, claim.first, f"{where}.first")
        yield from _where(config, claim.second, f"{where}.second")
        if claim.first == claim.second:
            yield f"{where}: first and second are the same"
        if isinstance(claim, CrossingClaim) and config.curve is None:
            yield f"{where}: a crossing is of curves, and the study has none; add curve"
        return
    yield from _where(config, claim.where, f"{where}.where")
    if isinstance(claim, BestClaim):
        named = (claim.expected, *(claim.among or ()))
        for label in named:
            yield from _where(config, {claim.axis: label}, where)
        if claim.among is not None and claim.expected not in claim.among:
            yield f"{where}: expected '{claim.expected}' is not among those compared"
    elif isinstance(claim, TrendClaim) and claim.x not in _facts(config):
        yield f"{where}.x: no fact '{claim.x}'; there are {_listed(_facts(config))}"


def _where(config: StudyConfig, where: Where, key: str) -> Iterator[str]:
    known = labels_of(config)
    for axis, label in where.items():
        if axis not in known:
            yield f"{key}: no axis '{axis}'; there are {_listed(known)}"
        elif label not in known[axis]:
            yield f"{key}: no '{axis}: {label}' in the study; there are {_listed(known[axis])}"


def _drawings(config: StudyConfig) -> Iterator[str]:
    titles = [plot.title for plot in config.plots] + [one.title for one in config.histograms]
    if repeated := _repeated([slug(title) for title in titles]):
        yield f"plots: two titles give the file name {repeated}.svg; change one"
    axes, facts = labels_of(config), _facts(config)
    for plot in config.plots:
        key = f"plots.{plot.title}"
        yield from _where(config, plot.where, f"{key}.where")
        if plot.series is not None and plot.series not in axes:
            yield f"{key}.series: no axis '{plot.series}'; there are {_listed(axes)}"
        if plot.x in CURVE_X and config.curve is None:
            yield f"{key}.x: '{plot.x}' is of curves, and the study has none; add curve"
        elif plot.x not in (*axes, *facts, *CURVE_X):
            yield f"{key}.x: found '{plot.x}'; there are {_listed([*axes, *sorted(facts)])}"
    for one in config.histograms:
        key = f"histograms.{one.title}"
        yield from _where(config, one.where, f"{key}.where")
        for label in one.labels:
            yield from _where(config, {one.axis: label}, f"{key}.labels")
        if one.stage not in config.stages:
            yield f"{key}.stage: no stage '{one.stage}'; there are {_listed(config.stages)}"
        if one.low >= one.high:
            yield f"{key}: low {one.low:g} is not below high {one.high:g}"


def slug(title: str) -> str:
    """A title as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def check_reference(key: str, reference: str, recipe: Any, stages: str) -> None:
    """Refuse a key that names a stage of the wrong kind, or a checkpoint that will not be there.

    Args:
        key: dotted key of the recipe that has the reference.
        reference: without its prefix, ``NAME`` or ``NAME@STEP``.
        recipe: of the stage it names.
        stages: where it stands, for the message.

    Raises:
        UserError: see above.
    """
    name, at, step = reference.partition("@")
    wanted = _EXPECTED.get(key.rpartition(".")[2])
    if wanted and recipe.kind not in wanted:
        raise UserError(
            f"{stages}: {key}: 'stage:{name}' is of kind {recipe.kind}, needed is"
            f" {' or '.join(wanted)}"
        )
    if not at:
        return
    if not isinstance(recipe, TrainConfig) or not step.isdigit():
        raise UserError(
            f"{stages}: {key}: 'stage:{reference}' names no checkpoint; after @ stands a step of a"
            " training"
        )
    check_step(f"{stages}: {key}: 'stage:{reference}'", int(step), recipe)


def check_step(where: str, step: int, recipe: TrainConfig) -> None:
    """Refuse a step whose checkpoint a training does not keep.

    Raises:
        UserError: see above.
    """
    kept, every = recipe.checkpoint.keep_every_steps, recipe.checkpoint.every_steps
    if step == recipe.steps:
        return
    if not 1 <= step < recipe.steps:
        raise UserError(f"{where}: the training has {recipe.steps} steps; name one of 1 to those")
    if kept is None or step % kept or step % every:
        raise UserError(
            f"{where}: the checkpoint of step {step} is not kept; set checkpoint.every_steps and"
            " checkpoint.keep_every_steps to a divisor of it"
        )


def _repeated(values: Iterable[Any]) -> str:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return repr(value)
        seen.add(value)
    return ""


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"
