"""The base of all recipe parts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all recipe parts: immutable, no unknown keys, finite numbers, fields described."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def to_dict(config: Config) -> dict[str, Any]:
    """The plain, JSON-able form a checkpoint or a worker receives."""
    return config.model_dump(mode="json")
