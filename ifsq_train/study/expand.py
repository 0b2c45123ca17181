"""From a study to its variants and the unique stages they need."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.errors import UserError
from ifsq_train.config import TrainConfig
from ifsq_train.config.study import (
    FACT_PREFIX,
    STAGE_PREFIX,
    CurveConfig,
    Scalar,
    StudyConfig,
)
from ifsq_train.study.checks import VARIANT, check_reference, check_step, check_study
from ifsq_train.study.costs import flops_per_step, token_facts, tokenizer_facts
from ifsq_train.study.stage import Stage, StageConfig, check_stage, make_stage, references, replaced


@dataclass(frozen=True)
class Variant:
    """One point of the study's axes, for one seed.

    Attributes:
        labels: by axis.
        seed: of the seeded stages.
        facts: numbers for plots and claims.
        stages: digest by stage name.
        points: with a curve, digests by stage name at every step of it.
    """

    labels: dict[str, Scalar]
    seed: int
    facts: dict[str, float]
    stages: dict[str, str]
    points: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The labels in words."""
        return ", ".join(
            str(label) if axis == VARIANT else f"{axis.rpartition('.')[2]} {label}"
            for axis, label in self.labels.items()
        )


@dataclass(frozen=True)
class Expansion:
    """All a study consists of.

    Attributes:
        config: the study.
        variants: every combination with every seed.
        stages: by digest, inputs before the stages that need them.
    """

    config: StudyConfig
    variants: tuple[Variant, ...]
    stages: dict[str, Stage]


def expand(config: StudyConfig) -> Expansion:
    """Every variant and every unique stage of a study.

    Raises:
        UserError: a stage, key or label that does not exist, a recipe with faults, stages in a
            circle.
    """
    check_study(config)
    stages: dict[str, Stage] = {}
    variants = []
    for labels, changes in points(config):
        facts = {k.removeprefix(FACT_PREFIX): v for k, v in changes.items() if _is_fact(k)}
        title = Variant(labels, 0, {}, {}).title
        applied = {key: value for key, value in changes.items() if not _is_fact(key)}
        recipes = with_changes(config, applied)
        for seed in config.seeds:
            build = _Builder(config, recipes, seed, title, stages)
            digests = {name: build.digest(name) for name in config.stages}
            curve = build.curve()
            known = {**tokenizer_facts(digests, stages), **{k: float(v) for k, v in facts.items()}}
            variants.append(Variant(labels, seed, known, digests, curve))
    return Expansion(config, tuple(variants), stages)


def restricted(expansion: Expansion, labels: Sequence[str]) -> Expansion:
    """The same study with only the variants that have one of these labels.

    Raises:
        UserError: a label that no variant has.
    """
    known = {str(label) for v in expansion.variants for label in v.labels.values()}
    if missing := [label for label in labels if label not in known]:
        raise UserError(
            f"{expansion.config.name}: no variant has the label '{missing[0]}'; there are"
            f" {', '.join(sorted(known)) or 'none'}"
        )
    kept = [v for v in expansion.variants if {*map(str, v.labels.values())} & {*labels}]
    wanted = {digest for v in kept for digest in v.stages.values()}
    wanted |= {digest for v in kept for point in v.points.values() for digest in point.values()}
    stages = {digest: stage for digest, stage in expansion.stages.items() if digest in wanted}
    return Expansion(expansion.config, tuple(kept), stages)


def points(config: StudyConfig) -> Iterator[tuple[dict[str, Scalar], dict[str, Any]]]:
    """Labels by axis and changes by dotted key, for every combination."""
    axes: dict[str, dict[Scalar, dict[str, Any]]] = {}
    if config.variants:
        axes[VARIANT] = {label: dict(changes) for label, changes in config.variants.items()}
    for axis, values in config.axes.items():
        if isinstance(values, list):
            axes[axis] = {value: {axis: value} for value in values}
        else:
            axes[axis] = {label: dict(changes) for label, changes in values.items()}
    for combination in itertools.product(*(axis.items() for axis in axes.values())):
        changes: dict[str, Any] = {}
        for _, part in combination:
            changes |= part
        yield dict(zip(axes, (label for label, _ in combination), strict=True)), changes


def with_changes(config: StudyConfig, changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages' recipes with values set by dotted key; a mapping replaces what was there.

    Raises:
        UserError: a key that begins with no stage, or leads through something that is no mapping.
    """
    recipes = copy.deepcopy(config.stages)
    for key, value in changes.items():
        stage, *path = key.split(".")
        if stage not in recipes or not path:
            raise UserError(
                f"{config.name}: '{key}' names no stage's key; begin with one of"
                f" {', '.join(recipes)}, or with '{FACT_PREFIX}' for a number of the variant"
            )
        node: Any = recipes[stage]
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(f"{config.name}: '{key}' leads through '{part}', no mapping")
        node[path[-1]] = copy.deepcopy(value)
    return recipes


def _is_fact(key: str) -> bool:
    return key.startswith(FACT_PREFIX)


@dataclass
class _Builder:
    """Makes the stages of one variant, inputs first."""

    config: StudyConfig
    recipes: dict[str, dict[str, Any]]
    seed: int
    title: str
    stages: dict[str, Stage]
    done: dict[tuple[str, int | None], str] = field(default_factory=dict)
    path: tuple[str, ...] = ()

    def curve(self) -> dict[int, dict[str, str]]:
        """Digests at every step of the study's curve of the stages that read its training."""
        found = self.config.curve
        if found is None:
            return {}
        steps = self._curve_steps(found)
        behind = [name for name in self.config.stages if self.depends(name, found.stage)]
        return {step: {name: self.digest(name, step) for name in behind} for step in steps}

    def _curve_steps(self, curve: CurveConfig) -> list[int]:
        """The curve's steps; where a budget of FLOPs sets the end, those up to it and the end."""
        trained = self.stages[self.done[curve.stage, None]].recipe
        assert isinstance(trained, TrainConfig)
        steps = list(curve.steps)
        if self.config.budget.equal == "flops" and self.config.budget.stage == curve.stage:
            steps = [*(step for step in steps if step < trained.steps), trained.steps]
        for step in steps:
            check_step(f"{self.where(curve.stage)}: curve.steps", step, trained)
        return steps

    def where(self, name: str) -> str:
        """A stage of this variant, for messages."""
        return f"{self.config.name}, variant {self.title or 'without axes'}, stages.{name}"

    def depends(self, name: str, other: str) -> bool:
        """Whether a stage reads another, directly or through others."""
        named = {reference.partition("@")[0] for _, reference in references(self.recipes[name])}
        return other in named or any(self.depends(one, other) for one in named)

    def digest(self, name: str, step: int | None = None) -> str:
        """The digest of a stage, which is added to the study's; at `step` of the curve's."""
        if (name, step) in self.done:
            return self.done[name, step]
        if name in self.path:
            circle = " -> ".join((*self.path, name))
            raise UserError(f"{self.config.name}: stages in a circle: {circle}")
        self.path = (*self.path, name)
        found = {}
        for key, reference in references(self.recipes[name]):
            found[reference] = self._input(reference, step)
            input_stage = self.stages[found[reference].removeprefix(STAGE_PREFIX).partition("@")[0]]
            check_reference(key, reference, input_stage.recipe, self.where(name))
        self.path = self.path[:-1]
        values = replaced(self.recipes[name], found)
        source = self.where(name)
        recipe = self._budgeted(name, check_stage(self._seeded(name, values), source))
        stage = make_stage(name, recipe, self.title)
        self.stages.setdefault(stage.digest, stage)
        self.done[name, step] = stage.digest
        return stage.digest

    def _input(self, reference: str, step: int | None) -> str:
        name, at, fixed = reference.partition("@")
        if name not in self.recipes:
            raise UserError(
                f"{self.config.name}: '{STAGE_PREFIX}{reference}' names no stage;"
                f" there are {', '.join(self.recipes)}"
            )
        curve = self.config.curve
        is_curve = curve is not None and name == curve.stage and step is not None
        behind = curve is not None and self.depends(name, curve.stage)
        digest = self.digest(name, step if behind else None)
        if is_curve and not at and step != getattr(self.stages[digest].recipe, "steps", None):
            at, fixed = "@", str(step)
        return f"{STAGE_PREFIX}{digest}{at}{fixed}"

    def _seeded(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        seeded = self.config.seeded
        wanted = name in seeded if seeded is not None else _has_seed(values)
        return {**values, "seed": self.seed} if wanted else values

    def _budgeted(self, name: str, recipe: StageConfig) -> StageConfig:
        budget = self.config.budget
        if budget.equal != "flops" or budget.stage != name:
            return recipe
        assert budget.amount is not None
        if not isinstance(recipe, TrainConfig):
            raise UserError(f"{self.config.name}: budget.stage '{name}' is no training")
        each = flops_per_step(recipe, token_facts(recipe, self.stages))
        steps = math.floor(budget.amount / each)
        if steps < 1:
            raise UserError(
                f"{self.where(name)}: budget.amount {budget.amount:.3g} is less than one step's"
                f" {each:.3g} FLOPs; raise it"
            )
        return recipe.model_copy(update={"steps": steps})


def _has_seed(values: Mapping[str, Any]) -> bool:
    return values.get("kind") in ("train", "sample", "toy", "distribution", "cost")
