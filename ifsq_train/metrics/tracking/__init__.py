"""Trackers that ship with the program; each imports its library when it is opened."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from data_pipelines.errors import UserError

_SHIPPED = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "aim": ("aim", "aim"),
}
"""By kind: the module that has to be there, and the package to install for it."""


def shipped_tracker(kind: str) -> Any:
    """What opens a kind, as `TrackerKind.open`; None where it is not one of these.

    Raises:
        UserError: its library is not installed here.
    """
    if kind not in _SHIPPED:
        return None
    library, package = _SHIPPED[kind]
    if importlib.util.find_spec(library) is None:
        raise UserError(
            f"trackers: kind '{kind}' needs the package {package}, which is not installed here;"
            f" `pip install {package}`, or take the tracker out of the recipe"
        )
    return importlib.import_module(f"{__name__}.{kind}_tracker").open_tracker
