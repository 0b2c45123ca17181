"""Walk every field of a recipe, change it, and see what a run made of the recipe would do else."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from data_pipelines.errors import UserError
from ifsq_train.config import LoadingConfig, TrainConfig, to_dict
from ifsq_train.config.load import validate_recipe
from ifsq_train.data.open import without_helpers
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.strategy.optimizers import lr_factor
from ifsq_train.train import Run, assemble, train_step
from ifsq_train.training.failure import FailureLog

STEPS = 2


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a recipe that is no section itself."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, values


def replaced(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a dotted path."""
    copy = json.loads(json.dumps(values))
    at, keys = copy, path.split(".")
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    return copy


def other_values(config: BaseModel, path: str, value: Any) -> Iterator[Any]:
    """Values of the same kind, the nearest first; not all of them need be allowed."""
    for choice in _choices(config, path):
        if choice != value:
            yield choice
    if value is None:
        yield from (1, 1.0)
    match value:
        case bool():
            yield not value
        case int() | float():
            yield from (value + 1, value * 2, value * 0.5, value - 1)
        case str():
            yield f"{value}x"
        case [int() | float(), *_]:
            if value[::-1] != value:
                yield value[::-1]
            yield from ([*value[:-1], value[-1] + 2], [v * 0.5 for v in value], [*value, value[-1]])


def _choices(config: BaseModel, path: str) -> tuple[Any, ...]:
    *parents, last = path.split(".")
    at: Any = config
    for key in parents:
        at = at[key] if isinstance(at, dict) else getattr(at, key)
    if not isinstance(at, BaseModel):
        return ()
    annotation = type(at).model_fields[last].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def first_other(recipe: dict[str, Any], path: str, value: Any) -> dict[str, Any] | None:
    """The recipe with another value of a field; None where no other is allowed."""
    config = validate_recipe(recipe, "test")
    for other in other_values(config, path, value):
        changed = replaced(recipe, path, other)
        try:
            validate_recipe(changed, "test")
        except (UserError, ValidationError):
            continue
        return changed
    return None


def whole(recipe: dict[str, Any]) -> dict[str, Any]:
    """With all defaults."""
    return json.loads(json.dumps(to_dict(validate_recipe(recipe, "test"))))


def observed(recipe: dict[str, Any], folder: Path) -> dict[str, Any] | str:
    """What a run of two steps is and does: networks, losses, updates, averages, order, settings.

    A recipe that is refused is told by its message.
    """
    config = validate_recipe(recipe, "test")
    assert isinstance(config, TrainConfig)
    # A folder of its own: what a run has measured once it reads again.
    config = config.model_copy(update={"output": tempfile.mkdtemp(dir=folder)})
    context = InProcessContext(device=torch.device("cpu"))
    failures = FailureLog(folder, context.launch_id)
    try:
        run = assemble(config, context, without_helpers, "a", failures, LoadingConfig(), ())
    except (UserError, ValueError, RuntimeError) as error:
        return str(error)
    try:
        return _seen_of(run)
    except RuntimeError as error:  # parts that do not fit each other
        return str(error)
    finally:
        run.metrics.close()
        run.writer.abort()


def _seen_of(run: Run) -> dict[str, Any]:
    config, steps = run.config, []
    for step in range(STEPS):
        losses, stats = train_step(run, run.load(step))
        run.state.step += 1
        steps.append(
            ({k: float(v) for k, v in losses.items()}, {k: repr(v) for k, v in stats.items()})
        )
    networks = run.task.modules()
    return {
        "steps": steps,
        "networks": {name: repr(module) for name, module in networks.items()},
        "codebooks": [
            getattr(part, "codebook_sizes", None) for m in networks.values() for part in m.modules()
        ],
        "weights": [_sum(p) for m in networks.values() for p in m.state_dict().values()],
        "averages": [_sum(v) for a in run.averages.values() for _, v in a.pieces()],
        "rates": [
            lr_factor(optim, step, config.steps)
            for optim in config.optim.values()
            for step in range(config.steps)
        ],
        "order": run.data.plan.digest,
        "described": {k: repr(v) for k, v in run.task.describe().items()},
        "logged": [config.is_logged(step) for step in range(config.steps)],
    } | {
        f"{part}.{path}": value
        for part in ("writer", "guard", "watchdog", "strategy", "data")
        for path, value in leaves(_plain(getattr(run, part)))
    }


def differ(first: Any, second: Any, moving: frozenset[str] = frozenset()) -> frozenset[str]:
    """Parts of two observations that differ, besides those that always move, such as times."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return frozenset({"refused"} if first != second else ())
    names = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    return frozenset(names - moving)


def _sum(tensor: Tensor) -> float:
    return float(tensor.detach().double().abs().sum())


def _plain(thing: object, depth: int = 3) -> Any:
    """Numbers, words and what holds them, of an object that a run works with; no recipes."""
    if isinstance(thing, bool | int | float | str | type(None)):
        return thing
    if isinstance(thing, BaseModel | nn.Module) or depth == 0:
        return None
    if isinstance(thing, list | tuple):
        return [_plain(item, depth - 1) for item in thing[:20]]
    if isinstance(thing, dict):
        return {str(key): _plain(value, depth - 1) for key, value in list(thing.items())[:50]}
    if type(thing).__module__.startswith(("ifsq_train", "data_pipelines")):
        return {key: _plain(value, depth - 1) for key, value in vars(thing).items()}
    return None
