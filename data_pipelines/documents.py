"""JSON documents as a program may find them: of bounded size, of one declared shape, or refused.

Whatever stands in a file, reading it here ends in the value or in one line of error.
"""

import json
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AllowInfNan, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from data_pipelines.errors import DataError

MAX_JSON_BYTES = 256 << 20
_SHOWN_CHARACTERS = 60

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


def parse_json(
    data: bytes, where: str, *, max_bytes: int = MAX_JSON_BYTES, allow_nan: bool = False
) -> Any:
    """The value of a JSON text.

    Args:
        data: UTF-8.
        where: names the document in errors.
        max_bytes: longer texts are refused unread.
        allow_nan: take NaN and Infinity as Python's `json` writes them.

    Raises:
        DataError: too long, not JSON, nested too deeply, or with text that is not Unicode.
    """
    if len(data) > max_bytes:
        raise DataError(
            f"{where} has {len(data)} bytes, at most {max_bytes} are read; name another file"
        )
    try:
        text = bytes(data).decode("utf-8-sig")
        value = json.loads(text, parse_constant=None if allow_nan else _refuse_constant)
        if "\\u" in text:
            # A lone half of a surrogate pair parses, and fails wherever it is written later.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise DataError(f"{where} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where} is damaged or not JSON ({_first_line(error)})") from None
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
    found = repr(first.get("input"))
    if len(found) > _SHOWN_CHARACTERS:
        found = found[:_SHOWN_CHARACTERS] + "..."
    more = f", and {count - 1} more faults" if count > 1 else ""
    raise DataError(f"{where}: {field}: {first['msg']}, found {found}{more}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
