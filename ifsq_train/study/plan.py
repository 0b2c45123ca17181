"""What a study will take: its unique stages with FLOPs, hours and bytes, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipelines.errors import UserError
from ifsq_train.config import PrecomputeConfig, SampleConfig, TokenizerTaskConfig, TrainConfig
from ifsq_train.config.study import STAGE_PREFIX
from ifsq_train.plugins.sources import open_images_of
from ifsq_train.study.costs import stage_estimate, token_facts
from ifsq_train.study.expand import Expansion
from ifsq_train.study.stage import Stage

_BACKWARD_AND_FORWARD = 3.0
_STATES = 4
"""fp32 copies in a checkpoint: weights, two moments, averages."""


@dataclass(frozen=True)
class StagePlan:
    """One unique stage.

    Attributes:
        stage: what it is.
        uses: variants (with their seeds) that need it.
        flops: operations; None where arithmetic cannot say, such as for data not packed yet.
        num_bytes: of what it leaves behind; None likewise.
    """

    stage: Stage
    uses: int
    flops: float | None
    num_bytes: float | None


def plan_study(expansion: Expansion) -> list[StagePlan]:
    """All unique stages, inputs first.

    Raises:
        UserError: a generator whose tokens are no stage of the study.
    """
    uses: dict[str, int] = {}
    for variant in expansion.variants:
        digests = {*variant.stages.values()}
        for point in variant.points.values():
            digests.update(point.values())
        for digest in digests:
            uses[digest] = uses.get(digest, 0) + 1
    return [
        StagePlan(stage, uses[digest], *_cost(stage, expansion.stages))
        for digest, stage in expansion.stages.items()
        if digest in uses
    ]


def _cost(stage: Stage, stages: Mapping[str, Stage]) -> tuple[float | None, float | None]:
    recipe = stage.recipe
    if isinstance(recipe, TrainConfig):
        found = stage_estimate(recipe, token_facts(recipe, stages))
        kept = recipe.checkpoint.keep_last
        if recipe.checkpoint.keep_every_steps:
            kept += recipe.steps // recipe.checkpoint.keep_every_steps
        parameters = sum(found.parameters.values())
        return found.flops_per_step * recipe.steps, 4.0 * _STATES * parameters * kept
    if isinstance(recipe, SampleConfig):
        return _sampling(recipe, stages)
    if isinstance(recipe, PrecomputeConfig):
        return _encoding(recipe, stages)
    return None, None


def _trained(place: str, stages: Mapping[str, Stage]) -> TrainConfig | None:
    digest = place.removeprefix(STAGE_PREFIX).partition("@")[0]
    recipe = stages[digest].recipe if digest in stages else None
    return recipe if isinstance(recipe, TrainConfig) else None


def _sampling(
    recipe: SampleConfig, stages: Mapping[str, Stage]
) -> tuple[float | None, float | None]:
    """A forward pass per image (LlamaGen with its cache) or per step of the flow, and guidance."""
    generator, tokenizer = (_trained(p, stages) for p in (recipe.generator, recipe.tokenizer))
    if generator is None or generator.task.kind not in ("autoregressive", "diffusion"):
        return None, None
    facts = token_facts(generator, stages)
    per_sample = stage_estimate(generator, facts).flops_per_sample / _BACKWARD_AND_FORWARD
    model = generator.task.model
    classes = recipe.classes or range(getattr(model, "num_classes", 0))
    count = recipe.samples_per_class * len(classes)
    passes = recipe.flow.num_steps if generator.task.kind == "diffusion" else 1
    passes *= 1 if recipe.cfg_scale == 1.0 else 2
    size = None
    if tokenizer is not None and tokenizer.data.kind == "images":
        size = 3.0 * math.prod(tokenizer.data.view.size) * count
    return per_sample * passes * count, size


def _encoding(
    recipe: PrecomputeConfig, stages: Mapping[str, Stage]
) -> tuple[float | None, float | None]:
    """About half an autoencoder's forward pass per view; None where the images are not packed."""

    tokenizer = _trained(recipe.tokenizer, stages)
    if tokenizer is None or not isinstance(tokenizer.task, TokenizerTaskConfig):
        return None, None
    try:
        views = open_images_of(recipe.source).num_samples * recipe.view.num_views
    except (UserError, OSError):
        return None, None
    per_sample = stage_estimate(tokenizer, None).flops_per_sample
    ratio = tokenizer.task.model.downsample_ratio
    cells = math.prod(side // ratio for side in recipe.view.size)
    return per_sample / _BACKWARD_AND_FORWARD / 2.0 * views, 4.0 * cells * views
