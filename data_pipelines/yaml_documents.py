"""YAML files that people write or other programs hand over: of bounded size, or refused.

A short YAML text can stand for a huge one (aliases of aliases), be nested too deeply for its
parser, or name a key twice, of which parsers keep the last. All of that is found in the stream of
events, before anything is built.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_pipelines.documents import MAX_DEPTH, read_file, text_of
from data_pipelines.errors import DataError

MAX_YAML_BYTES = 1 << 20
MAX_YAML_NODES = 50_000
"""Scalars, lists and mappings, each alias counted as all that it stands for."""
_MAX_NUMBER = 300
_NUMBER = re.compile(r"[-+]?\.?[0-9][0-9a-fA-F_:.xo]*([eE][-+]?[0-9]*)?")
YAML_FAULTS: tuple[type[Exception], ...] = (
    yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError,
    RecursionError,
)  # fmt: skip
"""What building a value can raise; a wrong word after `!!bool`, for one, is a KeyError."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path, *, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """The value in a YAML file; None of an empty one.

    Raises:
        DataError: unreadable, or see `parse_yaml`.
    """
    return parse_yaml(read_file(path, max_bytes), str(path))


def parse_yaml(data: bytes | str, where: str) -> Any:
    """The value of a YAML text: plain values, lists and mappings.

    Args:
        data: UTF-8, or UTF-16 with a byte order mark.
        where: names the document in errors.

    Raises:
        DataError: not YAML, with a key twice, too large or too deep, or with a value that is none.
    """
    text = checked_yaml(data, where)
    try:
        return yaml.load(text, Loader=_LOADER)
    except YAML_FAULTS as error:
        raise not_yaml(where, error) from None


def checked_yaml(data: bytes | str, where: str) -> str:
    """The text of a YAML document, for those who build its values themselves.

    Raises:
        DataError: see `parse_yaml`.
    """
    if isinstance(data, bytes):
        try:
            data = text_of(data)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not a text file ({error.reason}); it has to be YAML"
            ) from None
    walk = _Walk(where)
    try:
        for event in yaml.parse(data, Loader=_LOADER):
            walk.take(event)
    except yaml.YAMLError as error:
        raise not_yaml(where, error) from None
    return data


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    anchor: str | None
    is_mapping: bool
    nodes: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)


@dataclass
class _Walk:
    """Counts what a stream of events stands for."""

    where: str
    open: list[_Open] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def take(self, event: Any) -> None:
        """One event. Raises DataError where a bound is passed."""
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            if any(one.anchor == event.anchor for one in self.open):
                raise DataError(f"{self.where}: &{event.anchor[:40]} holds itself; take it out")
            self._child(self.sizes.get(event.anchor, 1))
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self.open) >= MAX_DEPTH:
                raise DataError(f"{self.where}: nested more than {MAX_DEPTH} deep; flatten it")
            self.open.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self.open.pop()
            self._child(done.nodes, done.anchor)

    def _scalar(self, event: Any) -> None:
        holder = self.open[-1] if self.open else None
        is_key = holder is not None and holder.is_mapping and holder.children % 2 == 0
        if is_key and holder is not None and event.value != "<<":
            if event.value in holder.keys:
                line = event.start_mark.line + 1
                raise DataError(
                    f"{self.where}: line {line} has the key {event.value[:60]!r} a second time;"
                    " keep one"
                )
            holder.keys.add(event.value)
        if len(event.value) > _MAX_NUMBER and not event.style and _NUMBER.fullmatch(event.value):
            raise DataError(
                f"{self.where}: a number of {len(event.value)} digits; write it shorter"
            )
        self._child(1, event.anchor)

    def _child(self, nodes: int, anchor: str | None = None) -> None:
        if anchor is not None:
            self.sizes[anchor] = nodes
        if self.open:
            self.open[-1].children += 1
            self.open[-1].nodes += nodes
            nodes = self.open[-1].nodes
        if nodes > MAX_YAML_NODES:
            raise DataError(
                f"{self.where}: more than {MAX_YAML_NODES} values, aliases included; shorten it"
            )


def not_yaml(where: str, error: Exception) -> DataError:
    """The error for what a parser of YAML raised."""
    return DataError(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}")
