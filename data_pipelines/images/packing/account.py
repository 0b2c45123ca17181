"""The account of what a dataset was made from: nothing is left out without a word."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_pipelines.bad_samples import BadSample
from data_pipelines.errors import DataError

_KINDS_KEPT = 30
_SHOWN = 6
_DIGITS = re.compile(r"\d+")


@dataclass
class Account:
    """What was seen, taken and left out.

    Attributes:
        unit: what is counted: files, members (of tars) or rows.
        seen, taken: of these; what was taken is in the dataset.
        passed_over: what is no image of its own, by reason.
        lost: images that are not in the dataset, by reason; digits in reasons are replaced.
        unlabelled: images in the dataset without a label.
        labels_without_image: labels of images that are not there.
        class_counts: images of each class, in label order.
        numbering: how names became numbers.
        notes: what else the user should know.
    """

    unit: str
    seen: int = 0
    taken: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    labels_without_image: int = 0
    class_counts: list[int] = field(default_factory=list)
    numbering: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def num_lost(self) -> int:
        """Images lost."""
        return sum(self.lost.values())

    @property
    def num_labelled(self) -> int:
        return sum(self.class_counts)

    def lose(self, bad: Iterable[BadSample]) -> None:
        """Count images that are left out."""
        for sample in bad:
            if sample.num_images:
                self.lost[_kind(self.lost, sample.reason)] += sample.num_images

    def count_classes(self, counts: Mapping[int, int], num_classes: int) -> None:
        """Take over how many images have which label."""
        self.class_counts = [counts.get(label, 0) for label in range(num_classes)]
        self.unlabelled = counts.get(-1, 0)

    def check(self, max_bad_samples: int, where: str) -> None:
        """Refuse a dataset that would lose more than allowed.

        Raises:
            DataError: too many images lost, or without a label while there are labels.
        """
        missing = self.unlabelled if self.num_labelled or self.labels_without_image else 0
        if self.num_lost + missing <= max_bad_samples:
            return
        reasons = "; ".join(f"{count} x {reason}" for reason, count in self.lost.most_common(3))
        labels = f"{missing} images without a label" if missing else ""
        found = ", ".join(text for text in (f"{self.num_lost} images lost", labels) if text)
        raise DataError(
            f"{where}: {found}, which is more than max_bad_samples={max_bad_samples}"
            f"{f' ({reasons})' if reasons else ''}; nothing was published: mend the source, or"
            " raise --max-bad-samples"
        )

    def facts(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return {"num_bad_samples": self.num_lost, "account": self.to_dict()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as the manifest keeps it."""
        return asdict(self) | {"passed_over": dict(self.passed_over), "lost": dict(self.lost)}

    def lines(self, classes: Sequence[str]) -> list[str]:
        """For the terminal; `classes` are the names in label order."""
        text = [f"seen: {self.seen} {self.unit}; taken: {self.taken} images"]
        for title, counts in (("passed over", self.passed_over), ("images lost", self.lost)):
            if counts:
                shown = [f"{count} {reason}" for reason, count in counts.most_common(_SHOWN)]
                more = [f"and {len(counts) - _SHOWN} more reasons"] if len(counts) > _SHOWN else []
                total = sum(counts.values())
                text.append(f"{title}: {total} ({'; '.join(shown + more)})")
        if self.unlabelled:
            text.append(f"images without a label: {self.unlabelled}")
        if self.labels_without_image:
            text.append(f"labels without an image: {self.labels_without_image}")
        if self.class_counts:
            text.append(_classes_line(self.class_counts, classes, self.numbering))
        return text + [f"note: {note}" for note in self.notes]


def account_of(stored: Mapping[str, Any]) -> Account:
    """The account a manifest keeps."""
    known = {name: value for name, value in stored.items() if name in Account.__annotations__}
    account = Account(**known)
    account.passed_over, account.lost = Counter(account.passed_over), Counter(account.lost)
    return account


def kind_of_file(name: str) -> str:
    """How files passed over by their extension are called."""
    dot = name.rpartition("/")[2].rpartition(".")
    return "without an extension" if not dot[1] else f".{dot[2].lower()[:20]}"


def pass_over(counts: Counter[str], kind: str, number: int = 1) -> None:
    """Count something that is no image; kinds beyond the first few are counted together."""
    counts[kind if kind in counts or len(counts) < _KINDS_KEPT else "of other kinds"] += number


def _classes_line(counts: Sequence[int], classes: Sequence[str], numbering: str) -> str:
    used = [count for count in counts if count]
    spread = f"{min(used)} to {max(used)} images each" if used else "no images"
    shown = [
        f"{label} {classes[label]!r}: {count}"
        if classes[label] != str(label)
        else f"{label}: {count}"
        for label, count in list(enumerate(counts))[:_SHOWN]
    ]
    more = ", ..." if len(counts) > _SHOWN else ""
    line = f"classes: {len(counts)}, {numbering}; {spread} ({', '.join(shown)}{more})"
    empty = [label for label, count in enumerate(counts) if not count]
    if empty:
        names = ", ".join(repr(classes[label]) for label in empty[:_SHOWN])
        line += f"; without images: {len(empty)} ({names}{', ...' if len(empty) > _SHOWN else ''})"
    return line


def _kind(known: Mapping[str, int], reason: str) -> str:
    kind = _DIGITS.sub("N", reason)[:160]
    return kind if kind in known or len(known) < _KINDS_KEPT else "other reasons"
