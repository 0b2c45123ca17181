"""Path fields of recipes, and the one function that makes them absolute.

A field that holds a path or URL is typed `RunPath` (or `RunPath | None`, `tuple[RunPath, ...]`).
Nothing else knows which keys are paths, so a field of a plug-in's configuration counts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from data_pipelines.storage.credentials import refuse_credentials
from data_pipelines.storage.local import below_home


@dataclass(frozen=True)
class PathField:
    """Marks the text of a recipe's field as a local path or a URL such as ``s3://bucket/key``."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "format": "path-or-url"}


def _without_nul(path: str) -> str:
    """The path; ValueError where it has a NUL, which no file system takes."""
    if "\0" in path:
        raise ValueError("no path can hold the character NUL; write it without")
    return path


RunPath = Annotated[
    str, PathField(), AfterValidator(_without_nul), AfterValidator(refuse_credentials)
]

M = TypeVar("M", bound=BaseModel)


def with_absolute_paths(config: M, folder: Path | None = None) -> M:
    """The same recipe for processes that run in another folder.

    Args:
        config: a recipe, or a part of one.
        folder: what relative paths are below; the working folder of this process if not given.
    """
    base = folder or Path.cwd()
    return _mapped(config, lambda path: absolute_place(path, base))


def with_paths(config: M, change: Callable[[str], str]) -> M:
    """The same recipe, or part of one, with every path and URL changed."""
    return _mapped(config, change)


def absolute_place(path: str, folder: Path | None = None) -> str:
    """A path made absolute (``~`` is the home folder), below `folder`; a URL stays as it is.

    Raises:
        UserError: ``~name`` where no user has that name.
    """
    return path if "://" in path else str((folder or Path.cwd()) / below_home(path))


def path_keys(config: BaseModel) -> Iterator[str]:
    """Dotted keys of all fields of a recipe that hold paths, such as ``data.mix.0.url``."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        yield from _keys_of(value, name, _marked(field.annotation, field.metadata))


def _keys_of(value: Any, key: str, is_path: bool) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{key}.{inner}" for inner in path_keys(value))
    elif isinstance(value, str):
        if is_path:
            yield key
    elif isinstance(value, tuple | list):
        for number, entry in enumerate(value):
            yield from _keys_of(entry, f"{key}.{number}", is_path)
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _keys_of(entry, f"{key}.{name}", is_path)


def _mapped(config: M, change: Callable[[str], str]) -> M:
    """A copy whose paths are changed; fields without paths stay the same objects."""
    changes: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        changed = _mapped_value(value, _marked(field.annotation, field.metadata), change)
        if changed != value:
            changes[name] = changed
    return config.model_copy(update=changes) if changes else config


def _mapped_value(value: Any, is_path: bool, change: Callable[[str], str]) -> Any:
    if isinstance(value, BaseModel):
        return _mapped(value, change)
    if isinstance(value, str):
        return change(value) if is_path else value
    if isinstance(value, tuple | list):
        return type(value)(_mapped_value(entry, is_path, change) for entry in value)
    if isinstance(value, dict):
        return {name: _mapped_value(entry, is_path, change) for name, entry in value.items()}
    return value


def _marked(annotation: Any, metadata: list[Any]) -> bool:
    """Whether a field's type has the mark anywhere: alone, optional, or in a list."""
    if any(isinstance(entry, PathField) for entry in metadata):
        return True
    return isinstance(annotation, PathField) or any(
        _marked(part, []) for part in get_args(annotation)
    )
