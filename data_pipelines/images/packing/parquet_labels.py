"""Which number the labels of Parquet files have, over all of the files together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from data_pipelines.errors import UserError
from data_pipelines.images.packing.classes import ClassMap
from data_pipelines.images.packing.labels import (
    CLASSES_PER_LABEL,
    SPARE_CLASSES,
    BadLabel,
    Label,
    Numbering,
    are_captions,
    label_of_value,
    number_labels,
    number_names,
)
from data_pipelines.images.packing.parquet_files import (
    is_text,
    partition_label,
    reading_parquet,
    stored_names,
)
from data_pipelines.storage.open import Storage


@dataclass(frozen=True)
class FileLabels:
    """What one file says about labels.

    Attributes:
        names: of its integer labels, as the datasets library stores them; empty without.
        partition: the label of all its rows, from the folder it is in; None without.
    """

    names: tuple[str, ...]
    partition: str | None


@dataclass(frozen=True)
class ParquetClasses:
    """How values of the label column become class numbers, file by file."""

    numbering: Numbering
    files: Mapping[str, FileLabels]
    as_names: bool
    """Text is a name even where it is made of digits."""

    def number(self, file: str, value: Any) -> int:
        """Class number; -1 for a missing label.

        Raises:
            BadLabel: it has none; `open_labels` has tried all values before.
        """
        return self.numbering.number(resolve(value, self.files[file], self.as_names))


def resolve(value: Any, file: FileLabels, as_names: bool) -> Label:
    """A value of the label column as a label: the stored name of a number where there is one.

    Raises:
        BadLabel: it is none, negative, or beyond the stored names.
    """
    value = value if file.partition is None else file.partition
    if as_names and isinstance(value, str):
        return value.strip() or None
    label = label_of_value(value)
    if not isinstance(label, int):
        return label
    if label < 0:
        raise BadLabel(f"label {label} is negative; only -1 and -100 mean that there is none")
    if not file.names:
        return label
    if label >= len(file.names):
        raise BadLabel(f"label {label} is beyond the {len(file.names)} names its file stores")
    return file.names[label]


def open_labels(
    storage: Storage,
    files: Sequence[tuple[str, pq.ParquetFile]],
    column: str | None,
    class_map: ClassMap | None,
    num_classes: int | None,
) -> ParquetClasses:
    """Read the label columns, and number what they hold.

    Raises:
        UserError: labels of two kinds, beyond the names, far beyond each other, or captions.
    """
    facts = {
        path: FileLabels(stored_names(f.schema_arrow, column), partition_label(path, column))
        for path, f in files
    }
    values = {path: _values(storage, path, f, column) for path, f in files} if column else {}
    as_names = _text_is_names(files, values, column, facts)
    counts: Counter[Label] = Counter()
    for path, found in values.items():
        for value, count in found.items():
            counts[_resolved(storage, path, value, facts[path], as_names)] += count
    del counts[None]
    numbering = _number(storage, counts, list(facts.values()), class_map, num_classes)
    for label in counts:
        try:
            numbering.number(label)
        except BadLabel as error:
            raise UserError(f"{storage.url}: {_unknown(label, class_map) or error}") from None
    return ParquetClasses(numbering, facts, as_names)


def _values(storage: Storage, path: str, file: pq.ParquetFile, column: str) -> Counter[Any]:
    """How often each value comes."""
    if partition_label(path, column) is not None:
        return Counter({None: file.metadata.num_rows})
    with reading_parquet(storage, path):
        found = file.read(columns=[column]).column(column).value_counts().to_pylist()
        return Counter({entry["values"]: entry["counts"] for entry in found})
    raise AssertionError


def _text_is_names(
    files: Sequence[tuple[str, pq.ParquetFile]],
    values: Mapping[str, Counter[Any]],
    column: str | None,
    facts: Mapping[str, FileLabels],
) -> bool:
    """Whether text is taken as it is: some of it is no number, or no number of a class."""
    texts: set[Any] = {file.partition for file in facts.values()} - {None}
    for path, file in files:
        if column in file.schema_arrow.names and is_text(file.schema_arrow.field(column).type):
            texts |= set(values[path]) - {None}
    numbers = set()
    for text in texts:
        try:
            label = label_of_value(text)
        except BadLabel:
            return True
        if isinstance(label, str):
            return True
        if label is not None:
            numbers.add(label)
    limit = SPARE_CLASSES + CLASSES_PER_LABEL * len(numbers)
    return bool(numbers) and not (min(numbers) >= 0 and max(numbers) < limit)


def _resolved(storage: Storage, path: str, value: Any, facts: FileLabels, as_names: bool) -> Label:
    try:
        return resolve(value, facts, as_names)
    except BadLabel as error:
        raise UserError(
            f"{storage.url}/{path}: {error}; correct it, or use --label-column"
        ) from None


def _number(
    storage: Storage,
    counts: Mapping[Label, int],
    files: Sequence[FileLabels],
    class_map: ClassMap | None,
    num_classes: int | None,
) -> Numbering:
    if class_map is not None:
        return number_labels(counts, storage.url, class_map)
    orders = [file.names for file in files if file.names]
    if not orders:
        if are_captions({label: n for label, n in counts.items() if isinstance(label, str)}):
            raise UserError(
                f"{storage.url} has {len(counts)} different labels in {sum(counts.values())} rows,"
                " as captions would be; use --label-column '' for none, another column, or"
                " --class-map"
            )
        return number_labels(counts, storage.url, num_classes=num_classes)
    names = list(orders[0])
    if any(order != orders[0] for order in orders):
        names += sorted({name for order in orders for name in order} - set(names))
    unknown = sorted(label for label in counts if isinstance(label, str) and label not in names)
    numbers = [label for label in counts if isinstance(label, int)]
    if numbers and len(set(orders)) == 1 and max(numbers) < len(names):
        numbers = []  # plain integers mean the same names
    if unknown or numbers:
        found = unknown[0] if unknown else numbers[0]
        raise UserError(
            f"{storage.url}: some files store the names of their labels ({', '.join(names[:3])},"
            f" ...), others have the label {found!r}; make them one kind, or give --class-map"
        )
    how = "in the order of the names that the files store"
    if len(set(orders)) > 1:
        how += ", matched by name where that order differs"
    if len(names) != len(set(names)):
        return number_names(sorted(set(names)), storage.url)
    return Numbering({name: i for i, name in enumerate(names)}, tuple(names), how)


def _unknown(label: Label, class_map: ClassMap | None) -> str:
    if class_map is None:
        return ""
    return (
        f"class {str(label)[:60]!r} is not in the class map, which has"
        f" {len(class_map.numbers)} classes; add it or leave its images out"
    )
