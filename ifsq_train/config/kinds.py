"""Tagged unions that plug-ins extend while the program runs."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from ifsq_train.config.base import Config
from ifsq_train.plugins.registry import on_change, registered, ship


class OneOf:
    """Annotation of a union: its members and those of plug-ins, told apart by ``kind``.

    `Annotated[A | B, OneOf("ifsq.group")]`. `Annotated[Config, OneOf(...)]` has no member of its
    own, and `Annotated[RunPath | Config, OneOf(...)]` takes text too.

    Args:
        group: whose kinds belong to it.
        part: attribute of a kind that is the member; None where a kind has none.
    """

    def __init__(self, group: str, part: str = "config") -> None:
        self._group, self._part = group, part

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        parts = get_args(source) or (source,)
        shipped = [part for part in parts if isinstance(part, type) and part is not Config]
        if self._part == "config":
            for member in shipped:
                ship(self._group, _tags(member))
        added = [getattr(kind, self._part, None) for kind in registered(self._group)]
        choices: dict[Any, CoreSchema] = {}
        for member in (*shipped, *(one for one in added if one is not None)):
            choices |= dict.fromkeys(_tags(member), handler.generate_schema(member))
        union = (
            core_schema.tagged_union_schema(choices, discriminator="kind")
            if choices
            else core_schema.no_info_plain_validator_function(_refuse)
        )
        takes_text = any(not isinstance(part, type) for part in parts)
        return _or_text(union) if takes_text else union

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        if schema["type"] == "function-wrap":
            inner = self.__get_pydantic_json_schema__(schema["schema"], handler)
            text = {"type": "string", "format": "path-or-url"}
            return text if inner == _NOTHING else {"anyOf": [text, inner]}
        return _NOTHING if schema["type"] == "function-plain" else handler(schema)


_NOTHING: dict[str, Any] = {"not": {}}
"""JSON schema of a union without members."""


def _refuse(value: Any) -> Any:
    tag = value.get("kind") if isinstance(value, dict) else None
    if tag is None:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
    context = {"discriminator": "'kind'", "tag": str(tag), "expected_tags": ""}
    raise PydanticKnownError("union_tag_invalid", context)


def _or_text(union: CoreSchema) -> CoreSchema:
    """Text as it is, anything else by the union."""
    return core_schema.no_info_wrap_validator_function(
        lambda value, inner: value if isinstance(value, str) else inner(value),
        union,
        serialization=core_schema.plain_serializer_function_ser_schema(
            lambda value: value if isinstance(value, str) else value.model_dump(mode="json")
        ),
    )


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
