"""What a plug-in declares: one object per kind, made at the top level of its module.

`config` is the kind's part of a recipe: a pydantic model (a subclass of `ifsq_train.config.Config`)
with a field ``kind: Literal["name"]``. Nothing is registered by making one of these objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Base of all kinds.

    Attributes:
        config: its part of a recipe.
    """

    group: ClassVar[str]
    what: ClassVar[str]
    config: type

    @property
    def names(self) -> tuple[str, ...]:
        """Values of `kind` that choose it, as its config declares them."""
        declared = get_type_hints(self.config).get("kind")
        if get_origin(declared) is not Literal:
            raise TypeError(f'{self.config.__name__} needs a field kind: Literal["name"]')
        return tuple(str(name) for name in get_args(declared))


@dataclass(frozen=True, kw_only=True)
class QuantizerKind(Kind):
    """A bottleneck of the tokenizer: ``task.model.quantizer``.

    Attributes:
        quantizer: subclass of `ifsq_train.models.quantizers.Quantizer`. Its `from_config` takes
            the config; the ``kind`` in its `spec` is the config's.
    """

    group: ClassVar[str] = "ifsq.quantizers"
    what: ClassVar[str] = "quantizer"
    quantizer: type


@dataclass(frozen=True, kw_only=True)
class ViewKind(Kind):
    """A crop: any ``view``. `config` is a subclass of `data_pipelines.views.ViewSpec`."""

    group: ClassVar[str] = "ifsq.views"
    what: ClassVar[str] = "view"


@dataclass(frozen=True, kw_only=True)
class TaskKind(Kind):
    """What is trained: ``task``. `config` is a subclass of `ifsq_train.config.TaskConfigBase`.

    Attributes:
        task: ``(config: TrainConfig, data: TrainData, context: RunContext) -> TrainTask``, with
            freshly initialised networks, equal on every rank.
    """

    group: ClassVar[str] = "ifsq.tasks"
    what: ClassVar[str] = "task"
    task: Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class GeneratorKind(TaskKind):
    """A task that trains a generator of tokens or latents, and how to draw from it.

    `config` is a subclass of `ifsq_train.config.GeneratorTaskConfig`, and `task` one of
    `ifsq_train.tasks.generator.GeneratorTask` (called with that class's arguments).

    Attributes:
        network: ``(config, spec: GeneratorSpec) -> nn.Module``; default initialisation. The
            network has `example_inputs()`, one sample of everything its forward takes.
        draw: ``(network, labels, seeds, sample: SampleConfig) -> Tensor``: int64 tokens [B, T] or
            [B, T, G] in raster order, or float32 scaled latents [B, C, h, w]. Row i depends on
            ``labels[i]`` and ``seeds[i]`` alone. Runs under the recipe's precision.
        sampler: settings of `draw` in a sample recipe, as ``sampler: {kind: ...}``.
    """

    network: Callable[..., Any]
    draw: Callable[..., Any]
    sampler: type | None = None


@dataclass(frozen=True, kw_only=True)
class SourceKind(Kind):
    """Where images come from: ``data.source``, and the ``source`` of a precompute recipe.

    Attributes:
        open: ``(config) -> data_pipelines.images.collection.ImageCollection``.
    """

    group: ClassVar[str] = "ifsq.sources"
    what: ClassVar[str] = "source"
    open: Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class TrackerKind(Kind):
    """Where a run's numbers go besides its own log: an entry of ``trackers``.

    Attributes:
        open: ``(config, run: TrackedRun) -> Tracker``; see `ifsq_train.metrics.tracker`. Called
            in a thread of rank 0.
    """

    group: ClassVar[str] = "ifsq.trackers"
    what: ClassVar[str] = "tracker"
    open: Callable[..., Any]


KINDS: tuple[type[Kind], ...] = (QuantizerKind, ViewKind, TaskKind, SourceKind, TrackerKind)
