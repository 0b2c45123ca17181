"""Recipes of `ifsq study`: linked stages, what is varied, what is measured, what is claimed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from data_pipelines.views import AnyViewSpec
from ifsq_train.config.base import Config
from ifsq_train.config.networks import QuantizerConfig, TokenizerConfig
from ifsq_train.config.paths import RunPath

STAGE_PREFIX = "stage:"
"""Text that begins so stands for what another stage of the study makes: ``stage:tokenizer``, or
``stage:generator@400`` for its checkpoint after 400 steps."""
FACT_PREFIX = "facts."
"""Changes whose key begins so are numbers of the variant for plots and claims, not of a recipe."""

Scalar = bool | int | float | str
Changes = dict[str, Any]


class ImagesStage(Config):
    """Images packed for a study."""

    kind: Literal["images"]
    source: str = Field(default="digits", min_length=1)
    """`digits` (scikit-learn's 1,797 scans of 8 x 8 pixels), or a folder of class folders."""
    part: Literal["train", "held_out"] = "train"
    """Every fifth image or so, by a hash of its name, is held out."""
    per_class: int | None = Field(default=None, ge=1)
    """At most so many of each class, the first by name."""


class DistributionStage(Config):
    """What a bound makes of latents: distance to uniform, use of the levels, error of rounding."""

    kind: Literal["distribution"]
    alpha: float = Field(gt=0)
    """Slope of the bound 2 sigmoid(alpha z) - 1."""
    levels: int = Field(default=17, ge=2)
    cells: Literal["paper", "equal_width"] = "paper"
    tokenizer: RunPath | None = None
    """Tokenizer whose latents before the bound are taken; drawn from N(0, 1) when not given."""
    data: RunPath | None = None
    """Image dataset the tokenizer sees."""
    view: AnyViewSpec | None = Field(default=None, discriminator="kind")
    standardize: bool = False
    """Bring every channel of the tokenizer's latents to mean 0 and deviation 1 first."""
    draws: int = Field(default=1_000_000, ge=1000)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _latents_are_complete(self) -> DistributionStage:
        if self.tokenizer is not None and (self.data is None or self.view is None):
            raise ValueError("tokenizer needs data and view, the images it sees; add them")
        if self.tokenizer is None and (self.data or self.view or self.standardize):
            raise ValueError("data, view and standardize need tokenizer; add it or remove them")
        return self


class ToyStage(Config):
    """The paper's toy figure: three ways to cut a standard normal variable into bins."""

    kind: Literal["toy"]
    method: Literal["equal_interval", "equal_probability", "ifsq"]
    """Equal bins of [-3, 3]; bins of equal probability; the bound's output, in equal cells."""
    levels: int = Field(default=9, ge=2)
    alpha: float = Field(default=1.6, gt=0)
    draws: int = Field(default=1_000_000, ge=1000)
    seed: int = Field(default=0, ge=0)


class CostStage(Config):
    """What a quantizer costs over another one: parameters, and time on one processor core."""

    kind: Literal["cost"]
    model: TokenizerConfig
    """The tokenizer with the quantizer that is measured."""
    reference: QuantizerConfig
    """The quantizer it is compared with, in the same network."""
    image_size: int = Field(ge=1)
    batch_size: int = Field(default=8, ge=1)
    rounds: int = Field(default=100, ge=3)
    """Training steps of each, and ten times as many calls of the quantizer alone."""
    seed: int = Field(default=0, ge=0)


class BudgetConfig(Config):
    """What is held equal between variants."""

    equal: Literal["steps", "flops", "time"] = "steps"
    """steps: the recipes' own numbers. flops: as many steps as `amount` floating-point operations
    allow, forward and backward, by `ifsq plan`'s counting. time: as many as fit into `amount`
    seconds, by a short measurement when the stage begins."""
    stage: str | None = None
    """The training whose number of steps is set."""
    amount: FiniteFloat | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _complete(self) -> BudgetConfig:
        given = (self.stage is not None, self.amount is not None)
        if self.equal != "steps" and given != (True, True):
            raise ValueError(f"equal '{self.equal}' needs stage and amount; add them")
        return self


class CurveConfig(Config):
    """Evaluate a training's kept checkpoints as well as its end."""

    stage: str
    """The training; every stage that reads it is repeated for each of the steps."""
    steps: tuple[int, ...] = Field(min_length=1)
    """Steps whose checkpoints it keeps. With a budget of FLOPs, those beyond a variant's end are
    left out and the end is added."""


class SearchConfig(Config):
    """Values of one key that are tried before the comparison, by `ifsq study search`.

    Asynchronous successive halving (Li et al., arXiv 1810.05934): of the trainings that have come
    to a rung, one in `reduction` goes on to the next.
    """

    stage: str
    """The training whose key is searched."""
    key: str = Field(min_length=1)
    """Dotted key of its recipe, such as ``optim.generator.lr``."""
    values: tuple[Scalar, ...] = Field(min_length=2)
    per: str | None = None
    """Axis, or `variant`, each of whose labels gets a value of its own; other axes stay at their
    first label. One value for the whole study when not given."""
    metric: str = "loss"
    """Key of the training's log; lower is better."""
    first_steps: int = Field(ge=1)
    """Steps up to the first rung; the following ones are `reduction` times as far each."""
    reduction: int = Field(default=3, ge=2)
    seed: int = Field(default=1000, ge=0, lt=2**31)
    """Of the trainings that are tried; none of the study's own, which would favour the choice."""


class MeasureConfig(Config):
    """One number of every variant and seed."""

    stage: str
    """The stage whose record holds it."""
    key: str
    """Dotted key of the record's numbers; the mean where a list is found."""
    label: str
    better: Literal["higher", "lower"] | None = None
    digits: int = Field(default=2, ge=0, le=6)


Where = dict[str, Scalar]
"""Labels by axis; axes that are not named are averaged over, seed by seed."""


class _Claim(Config):
    id: str
    """The claim's number, such as C5."""
    statement: str
    paper: str = ""
    """What the paper reports, quoted."""
    measure: str


class BetterClaim(_Claim):
    """The first is better than the second; paired t-test over seeds."""

    kind: Literal["better"]
    first: Where
    second: Where


class BestClaim(_Claim):
    """One label of an axis is the best; paired t-tests against all others, Holm's correction."""

    kind: Literal["best"]
    axis: str
    expected: Scalar
    among: tuple[Scalar, ...] | None = None
    """Labels that are compared; all when not given."""
    where: Where = Field(default_factory=dict)


class ValueClaim(_Claim):
    """A number lies within a tolerance of the paper's; t-interval over seeds."""

    kind: Literal["value"]
    where: Where
    expected: FiniteFloat
    tolerance: FiniteFloat = Field(gt=0)


class CrossingClaim(_Claim):
    """The first is ahead early in training and the second late; paired t-tests at both ends."""

    kind: Literal["crossing"]
    first: Where
    second: Where
    x: Literal["flops", "steps", "seconds"] = "flops"


class TrendClaim(_Claim):
    """The measure is linear in the logarithm of a fact, up to a knee; fitted seed by seed."""

    kind: Literal["trend"]
    x: str
    """Name of a fact of the variants."""
    knee: float | None = None
    """Where the paper sees the trend end."""
    where: Where = Field(default_factory=dict)


ClaimConfig = Annotated[
    BetterClaim | BestClaim | ValueClaim | CrossingClaim | TrendClaim, Field(discriminator="kind")
]


class PlotConfig(Config):
    """One plot of the report."""

    title: str
    measure: str
    x: str
    """An axis with numbers as labels, a fact of the variants, or `flops`, `steps` or `seconds` of
    a study with curves."""
    series: str | None = None
    """Axis whose labels become lines."""
    log: bool = False
    """Logarithmic x."""
    fit: bool = False
    """Draw the line fitted in log x, and the knee."""
    where: Where = Field(default_factory=dict)


class HistogramConfig(Config):
    """Shares of equal bins, one line per label of an axis."""

    title: str
    stage: str
    key: str = "histogram"
    """Dotted key of a list in the stage's record."""
    axis: str
    labels: tuple[Scalar, ...] = Field(min_length=1)
    low: float = -1.0
    high: float = 1.0
    where: Where = Field(default_factory=dict)


class StudyConfig(Config):
    """A controlled comparison."""

    kind: Literal["study"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str
    scale: str
    """Data, networks and lengths in words; stands beside every verdict."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers has to know."""
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    """Recipes by name, each with `kind` or `extends`; no `output` and no `name`."""
    axes: dict[str, list[Scalar] | dict[Scalar, Changes]] = Field(default_factory=dict)
    """By dotted key of a stage, a list of values; or by a name of its own, changes by label."""
    variants: dict[str, Changes] = Field(default_factory=dict)
    """Named variants: changes by dotted key. With axes, all combinations."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    seeded: tuple[str, ...] | None = None
    """Stages whose seed is varied; all that have one when not given."""
    budget: BudgetConfig = BudgetConfig()
    curve: CurveConfig | None = None
    search: SearchConfig | None = None
    measures: dict[str, MeasureConfig] = Field(min_length=1)
    claims: tuple[ClaimConfig, ...] = ()
    plots: tuple[PlotConfig, ...] = ()
    histograms: tuple[HistogramConfig, ...] = ()

    @field_validator("axes", mode="before")
    @classmethod
    def _axes_have_values(cls, axes: Any) -> Any:
        for name, values in axes.items() if isinstance(axes, dict) else ():
            if isinstance(values, list):
                bad = [one for one in values if not isinstance(one, bool | int | float | str)]
            elif isinstance(values, dict):
                bad = [one for one in values.values() if not isinstance(one, dict)]
            else:
                bad = [values]
            if bad:
                raise ValueError(
                    f"'{name}': found {bad[0]!r}; an axis is a list of values, or changes by label"
                )
        return axes

    @model_validator(mode="after")
    def _names_are_known(self) -> StudyConfig:
        named = {f"measures.{name}.stage": m.stage for name, m in self.measures.items()}
        named |= {f"seeded.{i}": stage for i, stage in enumerate(self.seeded or ())}
        parts = {"budget": self.budget, "curve": self.curve, "search": self.search}
        for key, part in parts.items():
            if part is not None and part.stage is not None:
                named[f"{key}.stage"] = part.stage
        problems = [
            f"{key}: no stage '{stage}'; there are {', '.join(self.stages)}"
            for key, stage in named.items()
            if stage not in self.stages
        ]
        wanted = {f"claims.{c.id}.measure": c.measure for c in self.claims}
        wanted |= {f"plots.{p.title}.measure": p.measure for p in self.plots}
        problems += [
            f"{key}: no measure '{measure}'; there are {', '.join(self.measures)}"
            for key, measure in wanted.items()
            if measure not in self.measures
        ]
        if "variant" in self.axes:
            problems.append("axes: the name 'variant' is that of the named variants; use another")
        if problems:
            raise ValueError("; ".join(problems))
        return self
