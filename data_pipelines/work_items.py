"""A row range of a dataset as a unit of work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkItem:
    """Source samples [first_sample, first_sample + num_samples), which become shard `index`."""

    index: int
    first_sample: int
    num_samples: int
