"""What a label says, and which number it gets.

A label is an integer, a name, or absent (None). Integers are class numbers as they are; names are
numbered by a class map, or sorted as text. One dataset has one kind: integers and names together
mean that something was mixed up, and are refused.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.images.packing.classes import MAX_CLASSES, ClassMap

Label: TypeAlias = int | str | None

MAX_CLASS_NAMES = 100_000
NO_LABEL = (-1, -100)
"""Numbers that mean: none. The second is what torch's losses ignore."""
SPARE_CLASSES = 1000
CLASSES_PER_LABEL = 100
"""Without a class map, the largest number may be SPARE_CLASSES plus so many per different label."""
_MANY_TEXTS = 100
_CAPTION_WORDS = 3
_MAX_LABEL_TEXT = 200
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.0*|\.\d+e[+-]?\d\d?)?", re.ASCII)
"""Also as numpy.savetxt writes it: 3.000000000000000000e+00."""
_NOT_SEEN = "\0\ufeff\u200b"


class BadLabel(ValueError):
    """A label that is neither an integer nor a name; the message is the reason."""


def label_of_text(data: bytes) -> Label:
    """The label a text file holds: quotes, a byte order mark and line ends are not part of it.

    Raises:
        BadLabel: no text, or several lines.
    """
    try:
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = data.decode("utf-16" if wide else "utf-8-sig").strip().strip(_NOT_SEEN)
    except UnicodeDecodeError:
        raise BadLabel("its label is not text in UTF-8") from None
    if (not text and b"\0" in data) or any(ord(c) < 32 and c not in "\t\r\n" for c in text):
        raise BadLabel(f"its label of {len(data)} bytes is not text: write numbers as digits")
    if text[:1] in ('"', "'", "[") and text[-1:] in ('"', "'", "]"):
        try:
            return label_of_value(json.loads(text.replace("'", '"')))
        except (ValueError, RecursionError) as error:
            if isinstance(error, BadLabel):
                raise
            text = text.strip("\"'")
    return label_of_value(text)


def text_of(data: bytes) -> Label:
    """What a `.txt` says, which may be a caption: as a label if it can be one, or as it is."""
    try:
        return label_of_text(data)
    except BadLabel:
        return data.decode("utf-8-sig", "backslashreplace").strip()


def label_of_array(data: bytes) -> Label:
    """The number that a `.npy` holds.

    Raises:
        BadLabel: no such file, or several values.
    """
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError, MemoryError, SyntaxError, TypeError):
        raise BadLabel("its .npy label cannot be read") from None
    if array.size != 1:
        raise BadLabel(f"its .npy label is {array.size} values; one number or name is needed")
    return label_of_value(array.reshape(-1)[0].item())


def label_of_value(value: Any) -> Label:
    """The label a field of JSON or Parquet holds; text that is a number is that number.

    Raises:
        BadLabel: several values, a fraction, or something else that is no label.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, bool):
        return None if value is None else int(value)
    if isinstance(value, bytes):
        return label_of_text(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer() or abs(value) > 2**53:
            raise BadLabel(f"label {value} is no whole number")
        value = int(value)
    if isinstance(value, int):
        return None if value in NO_LABEL else value
    if isinstance(value, str):
        return _label_of_string(value.strip())
    kind = {"list": "several values", "tuple": "several values", "dict": "an object"}
    name = type(value).__name__
    raise BadLabel(f"its label is {kind.get(name, name)}; one number or name is needed")


def _label_of_string(text: str) -> Label:
    if _NUMBER.fullmatch(text) and ("e" not in text or float(text).is_integer()):
        return label_of_value(float(text) if "." in text else int(text))
    if "\n" in text or "\r" in text:
        raise BadLabel(f"label {text[:40]!r} has several lines")
    return text or None


def label_of_json(data: bytes, keys: Sequence[str]) -> Label:
    """The label in a JSON object: the first of the fields `keys` it has; `a.b` is b of a.

    Raises:
        BadLabel: no JSON, or a field that is no label.
    """
    try:
        fields = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise BadLabel("unreadable .json label") from None
    for key in keys:
        value: Any = fields.get(key) if isinstance(fields, dict) else None
        if value is None:
            value = fields
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return label_of_value(value)
    return None


def kept_label(label: Label) -> Label:
    """A label as it is remembered: of a long caption, as much as tells it from others."""
    if not isinstance(label, str) or len(label) <= _MAX_LABEL_TEXT:
        return label
    return f"{label[:_MAX_LABEL_TEXT]}... {hashlib.sha256(label.encode()).hexdigest()[:12]}"


def are_captions(counts: Mapping[Label, int]) -> bool:
    """Whether texts describe images one by one instead of naming classes."""
    texts = [label for label in counts if label is not None]
    if len(texts) * 2 <= sum(counts[label] for label in texts) or len(texts) < 2:
        return False
    wordy = sum(len(str(text).split()) >= _CAPTION_WORDS for text in texts)
    return wordy * 2 > len(texts) or len(texts) >= _MANY_TEXTS


@dataclass(frozen=True)
class Numbering:
    """How labels become class numbers.

    Attributes:
        numbers: of names.
        names: to record, in label order.
        how: one line for the account.
    """

    numbers: Mapping[str, int]
    names: tuple[str, ...]
    how: str

    def number(self, label: Label) -> int:
        """Class number, -1 for none. Raises BadLabel for a label that has no number here."""
        if label is None:
            return -1
        if str(label) in self.numbers:
            return self.numbers[str(label)]
        if isinstance(label, str):
            raise BadLabel(f"label {label[:40]!r} is neither a class name nor an integer")
        if not 0 <= label < MAX_CLASSES:
            raise BadLabel(f"label {label} is outside -1 (none) to {MAX_CLASSES - 1}")
        if label >= len(self.names):
            raise BadLabel(f"label {label} is outside the {len(self.names)} classes")
        return label


def number_labels(
    counts: Mapping[Label, int],
    where: str,
    class_map: ClassMap | None = None,
    num_classes: int | None = None,
) -> Numbering:
    """Numbers for all labels of a dataset.

    Args:
        counts: how often each label comes.
        where: what messages call the dataset.
        class_map: numbers of names.
        num_classes: how many classes there are; found from the labels where it is None.

    Raises:
        UserError: integers and names together, too many classes, or a number far beyond the rest.
    """
    if class_map is not None:
        return Numbering(class_map.numbers, tuple(class_map.names), "by the class map")
    numbers = sorted(label for label in counts if isinstance(label, int))
    names = sorted(label for label in counts if isinstance(label, str))
    if numbers and names:
        raise UserError(
            f"{where}: {_times(counts, numbers)} labels are numbers (such as {numbers[0]}) and"
            f" {_times(counts, names)} are names (such as {names[0][:40]!r}); make them one kind,"
            " or give --class-map"
        )
    if names:
        return number_names(names, where)
    good = [number for number in numbers if 0 <= number < MAX_CLASSES]
    top = num_classes or _checked_top(good, where)
    return Numbering({}, tuple(str(number) for number in range(top)), "numbers as they are")


def number_names(names: Sequence[str], where: str) -> Numbering:
    """Names in the order of their text; says where "10" comes before "2".

    Raises:
        UserError: more names than a model has classes.
    """
    if len(names) > MAX_CLASS_NAMES:
        raise UserError(
            f"{where} has more than {MAX_CLASS_NAMES} different text labels, as captions would be;"
            " leave the labels out, or give --class-map"
        )
    ordered = sorted(names)
    how = "names sorted as text"
    digits = [name for name in ordered if name.isdecimal()]
    if digits != sorted(digits, key=int):
        how += ', so "10" comes before "2": class numbers are not the numbers in the names'
    return Numbering({name: i for i, name in enumerate(ordered)}, tuple(ordered), how)


def _checked_top(numbers: Sequence[int], where: str) -> int:
    """Number of classes; raises for a label that is far beyond all others."""
    largest = numbers[-1] if numbers else -1
    if largest + 1 > SPARE_CLASSES + CLASSES_PER_LABEL * len(numbers):
        others = [number for number in numbers if number != largest]
        rest = f" while the others end at {others[-1]}" if others else ""
        raise UserError(
            f"{where}: label {largest} would make {largest + 1} classes of {len(numbers)}"
            f" different labels{rest}; correct it, or give --num-classes (labels beyond it are"
            " then bad) or --class-map"
        )
    return largest + 1


def _times(counts: Mapping[Label, int], labels: Sequence[Label]) -> int:
    return sum(counts[label] for label in labels)
