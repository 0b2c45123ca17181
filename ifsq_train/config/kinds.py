"""Tagged unions that plug-ins extend while the program runs."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ifsq_train.config.base import Config
from ifsq_train.plugins.registry import on_change, registered, ship


class OneOf:
    """Annotation of a union: its members and those of plug-ins, told apart by ``kind``.

    `Annotated[A | B, OneOf("ifsq.group")]`; `Annotated[Config, OneOf(...)]` has no member of its
    own.

    Args:
        group: whose kinds belong to it.
        part: attribute of a kind that is the member; None where a kind has none.
    """

    def __init__(self, group: str, part: str = "config") -> None:
        self._group, self._part = group, part

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        shipped = () if source is Config else get_args(source) or (source,)
        if self._part == "config":
            for member in shipped:
                ship(self._group, _tags(member))
        added = [getattr(kind, self._part, None) for kind in registered(self._group)]
        members = [*shipped, *(member for member in added if member is not None)]
        choices: dict[Any, CoreSchema] = {}
        for member in members:
            choices |= dict.fromkeys(_tags(member), handler.generate_schema(member))
        return core_schema.tagged_union_schema(choices, discriminator="kind")


def _tags(member: type) -> tuple[str, ...]:
    return tuple(get_args(get_type_hints(member)["kind"]))


def _all_configs(base: type[Config]) -> list[type[Config]]:
    found = []
    for part in base.__subclasses__():
        found += [part, *_all_configs(part)]
    return found


def rebuild() -> None:
    """Have every recipe part see the kinds added since it was defined."""
    configs = _all_configs(Config)
    for config in configs:
        # Parts are built into the wholes that hold them, so all have to be forgotten first.
        if "__pydantic_core_schema__" in vars(config):
            del config.__pydantic_core_schema__
    for config in configs:
        config.model_rebuild(force=True)


on_change(rebuild)
