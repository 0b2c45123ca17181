"""The limit on unreadable samples and the quarantine file that lists them."""

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipelines.errors import DataError


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used. `sample_id` is -1 while a dataset is being made."""

    shard: str
    key: str
    sample_id: int
    reason: str

    @property
    def num_images(self) -> int:
        """Images that are lost with it."""
        return 1


@dataclass(frozen=True)
class BadTarSample(BadSample):
    """A sample of a tar made elsewhere, which may have several images, or none."""

    images: int = 1

    @property
    def num_images(self) -> int:
        return self.images


class ErrorBudget:
    """Counts bad samples, each once, and raises when there are more than allowed.

    Every bad sample becomes one JSON line in the quarantine file. A file that exists already (a
    resumed run) is read first: what it names is known and counted.

    Args:
        max_bad_samples: how many different bad samples are tolerated; 0 fails at the first.
        quarantine_path: JSON lines are appended here; None keeps them in memory only.
    """

    def __init__(self, max_bad_samples: int, quarantine_path: Path | None = None) -> None:
        self.max_bad_samples = max_bad_samples
        self.bad_samples: list[BadSample] = []
        self._path = quarantine_path
        self._seen: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._torn = False
        if quarantine_path is not None and quarantine_path.is_file():
            text = quarantine_path.read_text(errors="replace")
            self._torn = not text.endswith("\n")
            for line in text.splitlines():
                self._remember(line)

    @property
    def num_bad(self) -> int:
        """Images lost."""
        return sum(self._seen.values())

    def record(self, bad: BadSample) -> None:
        """Count a bad sample (nothing happens if it is known).

        Raises:
            DataError: there are now more bad samples than allowed; names this one.
        """
        with self._lock:
            if (bad.shard, bad.key) in self._seen:
                return
            self._seen[bad.shard, bad.key] = bad.num_images
            self.bad_samples.append(bad)
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # One short append: lines of several processes do not mix.
                with self._path.open("a") as file:
                    file.write("\n" * self._torn + json.dumps(asdict(bad)) + "\n")
                self._torn = False
            exhausted = bad.num_images > 0 and self.num_bad > self.max_bad_samples
        if exhausted:
            where = f"all are listed in {self._path}; " if self._path else ""
            raise DataError(
                f"{self.num_bad} bad samples are more than max_bad_samples={self.max_bad_samples}; "
                f"the last is {bad.key} in {bad.shard}: {bad.reason}; {where}"
                "repair them or raise max_bad_samples"
            )

    def _remember(self, line: str) -> None:
        try:
            fields = json.loads(line)
            self._seen[fields["shard"], fields["key"]] = int(fields.get("images", 1))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            # The last line of a killed run may be half written; its sample will be met again.
            return
