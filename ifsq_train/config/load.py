"""From a YAML file and `key=value` overrides to a checked recipe."""

from __future__ import annotations

import difflib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from data_pipelines.documents import read_file
from data_pipelines.errors import UserError
from data_pipelines.yaml_documents import MAX_YAML_BYTES, YAML_FAULTS, checked_yaml, not_yaml
from ifsq_train.config import (
    Config,
    EvaluateConfig,
    PrecomputeConfig,
    RecipeConfig,
    SampleConfig,
    StudyConfig,
    TrainConfig,
    to_dict,
)
from ifsq_train.config.data import MACHINE_KEYS
from ifsq_train.config.faults import enormous, explain
from ifsq_train.config.interpolations import refuse_large, refuse_nested
from ifsq_train.config.secrets import guarded_environment, refuse_secrets
from ifsq_train.plugins.files import load_packed, packed
from ifsq_train.plugins.registry import load_installed, on_change

logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=Config)
_MAX_OVERRIDES = 250
_SHOWN_FAULTS = 50
"""More are counted; nobody mends them all before the next try."""
RECIPE_FOLDER = Path(__file__).parents[1] / "recipes"
Recipe = TrainConfig | PrecomputeConfig | SampleConfig | EvaluateConfig | StudyConfig
_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(RecipeConfig)
on_change(lambda: _ADAPTER.rebuild(force=True))


FurtherFaults = Callable[[Mapping[str, Any]], list[str]]
"""Finds faults beyond the schema in resolved values, as ``key: what is wrong``."""


def load_recipe(
    name: str, overrides: Sequence[str] = (), further: FurtherFaults | None = None
) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        name: a YAML file, or the name of a shipped recipe such as ``demo/tokenizer``.
        overrides: ``key=value`` strings, dots between nested keys, applied last.
        further: checks beyond the schema, such as `artifacts.recipe_faults`.

    Raises:
        UserError: file missing, not YAML, or any key or value not allowed; all faults of
            the recipe in one message, one line each.
    """
    path = find_recipe(name)
    values = resolve_recipe(path, overrides)
    _mention_machine_keys(values, str(name))
    return validate_recipe(values, str(name), further)


def _mention_machine_keys(values: dict[str, Any], source: str) -> None:
    data = values.get("data")
    found = [key for key in MACHINE_KEYS if isinstance(data, dict) and key in data]
    if found:
        assert isinstance(data, dict)
        options = " ".join(f"--loading {key}={data[key]}" for key in found)
        logger.warning(
            "%s: %s: not part of a recipe any more, left out here; to set it, run with %s",
            source,
            ", ".join(f"data.{key}" for key in found),
            options,
        )


def list_recipes() -> list[tuple[str, str]]:
    """Name and first comment line of every shipped recipe, sorted by name.

    Files whose name starts with an underscore are bases for others to extend, no recipes.
    """
    found = []
    for path in sorted(RECIPE_FOLDER.rglob("*.yaml")):
        if path.name.startswith("_"):
            continue
        first = path.read_text().splitlines()[0]
        name = path.relative_to(RECIPE_FOLDER).with_suffix("").as_posix()
        found.append((name, first.lstrip("# ")))
    return found


def find_recipe(name: str) -> Path:
    """Path of a recipe given as a file or as the name of a shipped one."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = RECIPE_FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    names = [known for known, _ in list_recipes()]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "`ifsq recipes` lists the shipped ones"
    raise UserError(f"no recipe '{name}': neither a YAML file nor a shipped recipe; {hint}")


def resolve_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Merge `extends`, the file and the overrides; resolve ``${...}``. No checking yet."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(*_layers(path), _dotlist(overrides))
        refuse_large(OmegaConf.to_container(merged, resolve=False), str(path))
        with guarded_environment():
            resolved = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"{path}: {error.__cause__}") from None
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    except TypeError as error:
        raise UserError(
            f"{path}: an override puts a list or a value where the recipe has a mapping, or the"
            f" other way round ({error})"
        ) from error
    except RecursionError:
        raise UserError(
            f"{path}: references lead in a circle, or too far; write them out"
        ) from None
    if not isinstance(resolved, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, found {type(resolved).__name__}")
    values = {str(key): value for key, value in resolved.items()}
    stages = values.get("stages")
    if values.get("kind") == "study" and isinstance(stages, dict):
        values["stages"] = {name: _stage(path, name, own) for name, own in stages.items()}
    return values


def _stage(path: Path, name: str, own: Any) -> Any:
    """A study's stage, laid over the recipe that it extends."""
    from omegaconf import OmegaConf

    if not isinstance(own, dict) or "extends" not in own:
        return own
    own = dict(own)
    parent = str(own.pop("extends"))
    beside = path.parent / parent
    found = beside if beside.is_file() else find_recipe(parent)
    # Looked at before it is resolved: a study may lead back to this one.
    if OmegaConf.select(OmegaConf.merge(*_layers(found)), "kind") == "study":
        raise UserError(f"{path}: stages.{name} extends '{parent}', a study; extend a recipe")
    merged = OmegaConf.to_container(OmegaConf.merge(resolve_recipe(found), own))
    assert isinstance(merged, dict)
    return {key: value for key, value in merged.items() if key not in ("name", "output")}


def _layers(path: Path) -> list[Any]:
    """The parent recipe, if `extends` names one, then the file itself."""
    own = _load_yaml(path)
    parent_name = own.pop("extends", None)
    if parent_name is None:
        return [own]
    beside = path.parent / str(parent_name)
    parent = _load_yaml(beside if beside.is_file() else find_recipe(str(parent_name)))
    if "extends" in parent:
        raise UserError(
            f"{path}: extends '{parent_name}', which extends another recipe;"
            " only one level is allowed"
        )
    return [parent, own]


def _load_yaml(path: Path) -> Any:
    from omegaconf import DictConfig, OmegaConf

    text = checked_yaml(read_file(path, MAX_YAML_BYTES), str(path))
    refuse_nested(text, str(path))
    try:
        loaded = OmegaConf.load(io.StringIO(text))
    except (*YAML_FAULTS, OSError) as error:
        raise not_yaml(str(path), error) from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: a recipe is a mapping of keys; found a list or a bare value")
    return loaded


def _dotlist(overrides: Sequence[str]) -> Any:
    """Overrides as nested keys."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    parts = []
    for override in _checked(overrides):
        try:
            parts.append(OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, TypeError, *YAML_FAULTS) as error:
            shown = override if len(override) <= 60 else f"{override[:60]}..."
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"override '{shown}' cannot be read ({reason}); write for example steps=100"
            ) from error
    return OmegaConf.merge(*parts) if parts else OmegaConf.create()


def _checked(overrides: Sequence[str]) -> list[str]:
    if len(overrides) > _MAX_OVERRIDES:
        raise UserError(
            f"found {len(overrides)} overrides, at most {_MAX_OVERRIDES} are taken; write them into"
            " a recipe"
        )
    for override in overrides:
        refuse_nested(override, f"override '{override[:60]}'")
        key, separator, _ = override.partition("=")
        if not separator or not key.strip():
            raise UserError(f"override '{override}' is not key=value; write for example steps=100")
    return list(overrides)


def validate_recipe(
    values: dict[str, Any], source: str, further: FurtherFaults | None = None
) -> Recipe:
    """Check resolved values against the schema.

    Args:
        values: see `resolve_recipe`.
        source: named in messages.
        further: checks beyond the schema; their faults are reported together with its own.

    Raises:
        UserError: one line per fault with its path, what was found and what is allowed.
    """
    return validate_model(_ADAPTER, values, source, further)


def validate_model(
    adapter: TypeAdapter[Any],
    values: dict[str, Any],
    source: str,
    further: FurtherFaults | None = None,
) -> Any:
    """Check values against a schema; see `validate_recipe`."""
    refuse_secrets(values, source)
    if large := list(islice(enormous(values), _SHOWN_FAULTS)):
        raise UserError(*(f"{source}: {fault}" for fault in large))
    load_installed(set(_kinds_named(values)))
    more = further(values) if further is not None else []
    try:
        recipe = adapter.validate_python(values)
    except ValidationError as error:
        # A size that is neither a number nor two is refused as both, in the same words.
        shown_ones = error.errors()[:_SHOWN_FAULTS]
        faults = list(
            dict.fromkeys([*(explain(fault, values, recipe_schema) for fault in shown_ones), *more])
        )
        if (left := error.error_count() - len(shown_ones)) > 0:
            faults.append(f"and {left} more faults; mend these first")
        raise UserError(*(f"{source}: {fault}" for fault in faults)) from error
    if more:
        raise UserError(*(f"{source}: {fault}" for fault in more))
    return recipe


def _kinds_named(values: Any) -> Iterator[str]:
    """Every `kind` of a recipe, however deep."""
    if isinstance(values, dict):
        if isinstance(values.get("kind"), str):
            yield values["kind"]
        values = list(values.values())
    if isinstance(values, list | tuple):
        for part in values:
            yield from _kinds_named(part)


def recipe_schema() -> dict[str, Any]:
    """JSON schema of all recipes, installed plug-ins' kinds included; field docstrings describe.

    Raises:
        UserError: an installed plug-in cannot be loaded.
    """
    load_installed()
    return _schema()


@cache
def _schema() -> dict[str, Any]:
    """Put together once, until a plug-in changes the kinds: every unknown key asks for it."""
    return _ADAPTER.json_schema()


on_change(_schema.cache_clear)


def packed_recipe(config: Config) -> dict[str, Any]:
    """A recipe, or a part of one, for another process: what it says and the plug-in files."""
    return {"values": to_dict(config), "plugins": packed()}


def unpacked(message: Mapping[str, Any], kind: type[ConfigT]) -> ConfigT:
    """What `packed_recipe` gave, in the process that received it; loads the plug-ins.

    Raises:
        UserError: a plug-in cannot be loaded here.
    """
    load_packed(message["plugins"])
    load_installed(set(_kinds_named(message["values"])))
    return kind.model_validate(message["values"])
