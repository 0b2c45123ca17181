"""Paths in recipes, made absolute in one place."""

from __future__ import annotations

from pathlib import Path

from ifsq_train.config import PrecomputeConfig


def with_absolute_paths(config: PrecomputeConfig) -> PrecomputeConfig:
    """The same job for processes that run in another folder."""
    named = {name: getattr(config, name) for name in ("source", "tokenizer", "output")}
    changes: dict[str, object] = {name: absolute_place(value) for name, value in named.items()}
    if config.teacher is not None:
        weights = absolute_place(config.teacher.weights)
        changes["teacher"] = config.teacher.model_copy(update={"weights": weights})
    return config.model_copy(update=changes)


def absolute_place(path: str) -> str:
    """A path or URL for processes that run in another folder."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
