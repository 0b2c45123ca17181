"""Is a finished token dataset what its source and tokenizer make? By making a part of it again."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

from data_pipelines.errors import UserError
from data_pipelines.hashing import hash_u64
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.writer import TokenRows
from data_pipelines.work_items import WorkItem
from ifsq_train.config import PrecomputeConfig
from ifsq_train.precompute.job import ItemEncoder
from ifsq_train.precompute.progress import ItemResult
from ifsq_train.precompute.rows import ItemRows
from ifsq_train.precompute.stream import ListedItems

_DOMAIN_CHECK = 41
_NAMED = 5


@dataclass
class CheckReport:
    """Outcome of `check_sample`."""

    samples: int
    rows: int = 0
    tokens: int = 0
    differing_tokens: int = 0
    differing: dict[str, list[int]] = field(default_factory=dict)
    """Column to the sample ids whose values are not the ones made now."""
    numerics: tuple[str, str] = ("", "")
    """Device kind and precision that made the dataset, and those of this check."""

    @property
    def ok(self) -> bool:
        """Whether every value is bit for bit the same."""
        return not self.differing

    def __str__(self) -> str:
        head = f"{self.rows} rows of {self.samples} samples made again"
        if self.ok:
            return f"{head}: every value is the same"
        lines = [
            f"{name}: differs for {len(ids)} samples, such as {', '.join(map(str, ids[:_NAMED]))}"
            for name, ids in sorted(self.differing.items())
        ]
        lines.append(f"{self.differing_tokens} of {self.tokens} tokens differ")
        if self.numerics[0] != self.numerics[1]:
            lines.append(
                f"the dataset was made with {self.numerics[0]}, this check with {self.numerics[1]}:"
                " a few tokens at the borders of cells may differ; check on the same kind of device"
            )
        return "\n".join([head, *lines])


def check_sample(
    config: PrecomputeConfig, num_samples: int, *, seed: int = 0, device: str | None = None
) -> CheckReport:
    """Encode random samples again, all views of each, and compare every column.

    Args:
        config: the recipe the dataset was made with.
        num_samples: how many; all where there are fewer.
        seed: chooses them.
        device: "cpu" or "cuda"; None takes the GPU where there is one.

    Raises:
        UserError: the recipe is another one than the dataset's, or there is no finished dataset.
    """
    dataset = TokenDataset.open(config.output)
    encoder = ItemEncoder(config, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        made, now = dataset.spec, encoder.spec
        if differences := made.differences(replace(now, numerics=made.numerics)):
            raise UserError(
                f"{config.output} was made with other settings ({'; '.join(differences)}); name the"
                " recipe it was made with"
            )
        order = np.argsort(hash_u64(seed, _DOMAIN_CHECK, np.arange(made.num_samples)))
        chosen = np.sort(order[:num_samples]).tolist()
        report = CheckReport(len(chosen), numerics=(made.numerics, now.numerics))

        def compare(rows: ItemRows) -> ItemResult:
            _compare(dataset, rows.rows(), report)
            return ItemResult(rows.item, rows.num_rows, ())

        items = ListedItems(WorkItem(sample, sample, 1) for sample in chosen)
        for _ in encoder.make(items, compare):
            pass
        return report
    finally:
        encoder.close()


def _compare(dataset: TokenDataset, made: TokenRows, report: CheckReport) -> None:
    sample = int(made.sample_ids[0])
    stored = dataset.rows_of(sample)
    report.rows += len(made)
    for column in fields(TokenRows):
        ours, theirs = getattr(made, column.name), getattr(stored, column.name)
        if column.name == "extra":
            for name, values in ours.items():
                if not np.array_equal(values, theirs[name]):
                    report.differing.setdefault(name, []).append(sample)
            continue
        if column.name == "tokens":
            report.tokens += ours.size
            report.differing_tokens += int((ours != theirs).sum())
        if not np.array_equal(np.asarray(ours), np.asarray(theirs)):
            report.differing.setdefault(column.name, []).append(sample)
