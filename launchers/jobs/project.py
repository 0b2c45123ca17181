"""Defaults of a project: one file for everybody who works in its folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from data_pipelines.documents import shown
from data_pipelines.errors import UserError
from data_pipelines.yaml_documents import read_yaml
from ifsq_train.config import Config

PROJECT_FILE = ".ifsq.yaml"


class ProjectDefaults(Config):
    """What options of `ifsq submit`, `jobs`, `status`, ... are where they are left out."""

    context: str | None = None
    namespace: str | None = None
    image: str | None = None
    queue: str | None = None
    storage: tuple[str, ...] = ()
    profile: str | None = None
    """Shipped name, or a file relative to the project file."""


def project_defaults(folder: Path | None = None) -> ProjectDefaults:
    """Defaults of the nearest ``.ifsq.yaml`` in a folder or above it; none where there is no file.

    Args:
        folder: where to begin; the working folder if None.

    Raises:
        UserError: the file is not valid.
    """
    here = (folder or Path.cwd()).absolute()
    for place in (here, *here.parents):
        path = place / PROJECT_FILE
        if path.is_file():
            return _read(path)
    return ProjectDefaults()


def _read(path: Path) -> ProjectDefaults:
    try:
        values = read_yaml(path) or {}
        defaults = ProjectDefaults.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "file"
        known = ", ".join(ProjectDefaults.model_fields)
        raise UserError(
            f"{path}: {key}: {fault['msg']}, found {shown(fault['input'])}; its keys are {known}"
        ) from error
    beside = path.parent / defaults.profile if defaults.profile else None
    if beside is not None and beside.is_file():
        return defaults.model_copy(update={"profile": str(beside)})
    return defaults
