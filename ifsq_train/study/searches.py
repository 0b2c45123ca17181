"""A value searched for before a comparison: what is tried, and the study that results.

Which trainings are stopped early is decided by whoever runs them (`launchers.study.search`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipelines.errors import UserError
from ifsq_train.config import TrainConfig
from ifsq_train.config.study import BudgetConfig, Scalar, SearchConfig, StudyConfig
from ifsq_train.study.checks import VARIANT, labels_of
from ifsq_train.study.expand import Expansion, expand, with_changes
from ifsq_train.study.stage import Stage

_VALUES = "searched value"
"""The axis of the values; keys hold no blank, so none is called so."""


@dataclass(frozen=True)
class Search:
    """What has to be tried.

    Attributes:
        config: of the study.
        stages: by digest, all trainings that are tried and what they read, inputs first.
        trainings: by label (None for a study without `per`), digest by value.
        steps: of a whole training, the longest of all.
    """

    config: SearchConfig
    stages: dict[str, Stage]
    trainings: dict[Scalar | None, dict[Scalar, str]]
    steps: int

    @property
    def inputs(self) -> dict[str, Stage]:
        """Stages that must be done before anything is tried, inputs first."""
        tried = {digest for by_value in self.trainings.values() for digest in by_value.values()}
        return {digest: stage for digest, stage in self.stages.items() if digest not in tried}


@dataclass(frozen=True)
class Trial:
    """How one training came out.

    Attributes:
        steps: it was given, 0 if it failed before the first rung.
        loss: the searched metric after these steps; None if there is none.
        error: why it failed, if it did.
    """

    steps: int = 0
    loss: float | None = None
    error: str | None = None


def plan_search(study: StudyConfig) -> Search:
    """The trainings of a study's search.

    Raises:
        UserError: the study has no search, or one that cannot be done; see also `expand`.
    """
    found = study.search
    if found is None:
        raise UserError(
            f"{study.name}: the study has no 'search'; add it, with stage, key, values and"
            " first_steps (docs/studies/running.md)"
        )
    _check(study, found)
    expansion = expand(_tried(study, found))
    trainings: dict[Scalar | None, dict[Scalar, str]] = {}
    for variant in expansion.variants:
        label = variant.labels[found.per] if found.per is not None else None
        of_label = trainings.setdefault(label, {})
        of_label[variant.labels[_VALUES]] = variant.stages[found.stage]
    tried = [digest for of in trainings.values() for digest in of.values()]
    recipes = [expansion.stages[digest].recipe for digest in tried]
    steps = max(recipe.steps for recipe in recipes if isinstance(recipe, TrainConfig))
    if found.first_steps > steps:
        raise UserError(
            f"{study.name}: search.first_steps is {found.first_steps}, the training has {steps};"
            " use fewer"
        )
    return Search(found, _needed(expansion, tried), trainings, steps)


def _check(study: StudyConfig, found: SearchConfig) -> None:
    axes = labels_of(study)
    faults = []
    kind = study.stages[found.stage].get("kind")
    if kind != "train":
        faults.append(f"search.stage: '{found.stage}' is of kind '{kind}'; name a training")
    if found.per is not None and found.per not in axes:
        faults.append(
            f"search.per: no axis '{found.per}'; there are {', '.join(axes) or 'none'}; leave it"
            " out for one value"
        )
    if found.seed in study.seeds:
        faults.append(f"search.seed: {found.seed} is one of the study's seeds; use another")
    if len(set(found.values)) < len(found.values):
        faults.append("search.values: a value is given twice; give each once")
    if study.budget.equal == "time" and study.budget.stage == found.stage:
        faults.append("search: a training whose steps are set by a budget of time; use flops")
    if faults:
        raise UserError(*(f"{study.name}: {fault}" for fault in faults))


def _tried(study: StudyConfig, found: SearchConfig) -> StudyConfig:
    """A study of its own: the values as an axis, the labels of `per`, one seed, kept rungs."""
    variants, axes = dict(study.variants), dict(study.axes)
    if found.per != VARIANT:
        variants = dict(list(variants.items())[:1])
    for axis, labels in study.axes.items():
        if axis != found.per:
            first = next(iter(labels))
            axes[axis] = {first: labels[first]} if isinstance(labels, dict) else [first]
    key = f"{found.stage}.{found.key}"
    axes[_VALUES] = {value: {key: value} for value in found.values}
    rungs = {"checkpoint.every_steps": found.first_steps, "log_every_steps": found.first_steps}
    stages = with_changes(study, {f"{found.stage}.{k}": value for k, value in rungs.items()})
    budget = study.budget if study.budget.stage == found.stage else BudgetConfig()
    return study.model_copy(
        update={
            "stages": stages, "variants": variants, "axes": axes, "seeds": (found.seed,),
            "budget": budget, "curve": None, "search": None,
            "claims": (), "plots": (), "histograms": (),
        }
    )  # fmt: skip


def _needed(expansion: Expansion, digests: list[str]) -> dict[str, Stage]:
    """Stages and all they read, inputs first."""
    wanted = set(digests)
    for digest in reversed(expansion.stages):
        if digest in wanted:
            wanted.update(expansion.stages[digest].inputs)
    return {digest: stage for digest, stage in expansion.stages.items() if digest in wanted}


def best_values(search: Search, trials: Mapping[str, Trial]) -> dict[Scalar | None, Scalar]:
    """By label, the value whose training came furthest, and of these the one with the least loss.

    Args:
        search: what was tried.
        trials: by digest of the training.

    Raises:
        UserError: all trainings of a label failed.
    """
    found: dict[Scalar | None, Scalar] = {}
    for label, digests in search.trainings.items():
        ranked = []
        for value, digest in digests.items():
            trial = trials[digest]
            if trial.error is None and trial.loss is not None and math.isfinite(trial.loss):
                ranked.append((-trial.steps, trial.loss, value))
        if not ranked:
            errors = [trials[digest].error or "no finite loss" for digest in digests.values()]
            of = f" of '{label}'" if label is not None else ""
            raise UserError(
                f"search: every training{of} failed; the first: {errors[0].splitlines()[0]}"
            )
        found[label] = min(ranked, key=lambda one: one[:2])[2]
    return found


def with_values(study: StudyConfig, chosen: Mapping[Scalar | None, Scalar]) -> dict[str, Any]:
    """The study as a recipe of its own, with the values that were found and a note about them.

    Args:
        study: with its search.
        chosen: value by label; by None for the whole study.

    Returns:
        A mapping to be written as YAML.
    """
    search = study.search
    assert search is not None
    key = f"{search.stage}.{search.key}"
    values = study.model_dump(mode="json", exclude_defaults=True)
    values["kind"] = study.kind
    values.pop("search")
    if search.per is None:
        changed = with_changes(study, {key: chosen[None]})
        values["stages"] = copy.deepcopy(changed)
    elif search.per == VARIANT:
        for label, value in chosen.items():
            values["variants"][label] = {**study.variants[str(label)], key: value}
    else:
        labels = study.axes[search.per]
        before = labels if isinstance(labels, dict) else {one: {search.per: one} for one in labels}
        values["axes"][search.per] = {
            label: {**changes, key: chosen[label]} for label, changes in before.items()
        }
    tried = ", ".join(map(str, search.values))
    note = (
        f"{key} was chosen among {tried} by the {search.metric} of trainings with seed"
        f" {search.seed} (asynchronous successive halving, first rung at {search.first_steps}"
        f" steps, one in {search.reduction} goes on)."
    )
    values["notes"] = [*study.notes, note]
    return values
