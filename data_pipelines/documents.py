"""JSON documents as a program may find them: of bounded size, of one declared shape, or refused.

Whatever stands in a file, reading it here ends in the value or in one line of error.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AllowInfNan, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from data_pipelines.errors import DataError
from data_pipelines.regular_files import open_regular

MAX_JSON_BYTES = 256 << 20
MAX_JSON_VALUES = 4_000_000
MAX_DEPTH = 64
"""Of objects and lists in each other; our own documents have less than ten."""
_SHOWN_CHARACTERS = 60
_ENORMOUS = re.compile(r"[eE][+-]?\d{3}|\d{300}")
"""Text in which a number may be too large for a float."""

Count = Annotated[int, Strict(), Field(ge=0, lt=1 << 62)]
"""0 or more; true, 1.0 and "1" are no counts."""
Whole = Annotated[int, Strict(), Field(ge=-(1 << 63), lt=1 << 64)]
"""Any integer of 64 bits."""
Finite = Annotated[float, Strict(), AllowInfNan(False)]
"""A number that is neither NaN nor infinite; integers count."""
Text = Annotated[str, Strict(), Field(max_length=1 << 20)]
Name = Annotated[str, Strict(), Field(max_length=100)]
"""Short enough to be shown in an error."""
Sha256 = Annotated[str, Strict(), Field(pattern=r"^[0-9a-f]{64}$")]
EXACT = ConfigDict(extra="forbid", hide_input_in_errors=False)
"""For documents of which every field is known."""

T = TypeVar("T")


def read_file(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """All bytes of a regular file, which is looked at before it is read.

    Raises:
        DataError: missing, no regular file (a folder, a pipe, a device), or too long.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(max_bytes + 1) if size <= max_bytes else b""
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}); restore it, or name another") from None
    if max(size, len(data)) > max_bytes:
        raise _too_long(str(path), max(size, len(data)), max_bytes)
    return data


def text_of(data: bytes) -> str:
    """The text of a file that people wrote: UTF-8, with a byte order mark or not, or UTF-16.

    Raises:
        UnicodeDecodeError: neither.
    """
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if wide else "utf-8-sig")


def read_json(
    path: Path,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    allow_nan: bool = False,
    unique_keys: bool = False,
) -> Any:
    """The value in a JSON file; see `read_file` and `parse_json`.

    Raises:
        DataError: unreadable, or not such a text.
    """
    data = read_file(path, max_bytes)
    return parse_json(data, str(path), allow_nan=allow_nan, unique_keys=unique_keys)


def read_object(path: Path, *, allow_nan: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: unreadable, or none.
    """
    return as_object(read_json(path, allow_nan=allow_nan), str(path))


def as_object(value: Any, where: str) -> dict[str, Any]:
    """`value`, which has to be an object.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where} holds a {type(value).__name__}, a JSON object is needed")
    return value


def parse_json(
    data: bytes,
    where: str,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    allow_nan: bool = False,
    unique_keys: bool = False,
) -> Any:
    """The value of a JSON text.

    Args:
        data: UTF-8.
        where: names the document in errors.
        max_bytes: longer texts are refused unread.
        allow_nan: take NaN and Infinity as Python's `json` writes them.
        unique_keys: refuse an object that has a key twice, which JSON leaves open.

    Raises:
        DataError: too long, with too many values, not JSON, nested too deeply, with numbers too
            large for a float, or with text that is not Unicode.
    """
    if len(data) > max_bytes:
        raise _too_long(where, len(data), max_bytes)
    if (values := sum(data.count(mark) for mark in b"[{,")) > MAX_JSON_VALUES:
        raise DataError(f"{where} has about {values} values, at most {MAX_JSON_VALUES} are read")
    try:
        text = bytes(data).decode("utf-8-sig")
        large = _ENORMOUS.search(text) is not None and not allow_nan
        value = json.loads(
            text,
            parse_constant=None if allow_nan else _refuse_constant,
            parse_float=_finite if large else None,
            parse_int=_whole if large else None,
            object_pairs_hook=_unique if unique_keys else None,
        )
        if "\\u" in text:
            # A lone half of a surrogate pair parses, and fails wherever it is written later.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise DataError(f"{where} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where} is damaged or not JSON ({_first_line(error)})") from None
    refuse_depth(value, where)
    return value


def checked(adapter: TypeAdapter[T], value: Any, where: str) -> T:
    """The value in its declared shape.

    Raises:
        DataError: it has another; names the first field that differs and what was found there.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        count, first = error.error_count(), error.errors(include_url=False)[0]
    except RecursionError:
        raise DataError(f"{where} is damaged: it is nested too deeply") from None
    field = ".".join(str(part) for part in first["loc"]) or "it"
    found = shown(first.get("input"))
    more = f", and {count - 1} more faults" if count > 1 else ""
    raise DataError(f"{where}: {field}: {first['msg']}, found {found}{more}")


def shown(value: Any) -> str:
    """A value as it is shown in an error: its beginning."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def refuse_depth(value: Any, where: str) -> None:
    """Raise DataError if objects and lists lie more than `MAX_DEPTH` deep in each other."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        parts = (one.values() if isinstance(one, dict) else one for one in level)
        level = [part for found in parts for part in found if isinstance(part, dict | list)]
        if not level:
            return
    raise DataError(f"{where} is damaged: it is nested too deeply")


def _too_long(where: str, found: int, allowed: int) -> DataError:
    return DataError(f"{where} has {found} bytes, at most {allowed} are read; name another file")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice[:_SHOWN_CHARACTERS]!r} twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
