"""Traces of chosen steps: those steps, with the allocations if asked, in a file per worker."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from ifsq_train.config import ProfileConfig
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.training.profiling import StepProfiler

CONTEXT = InProcessContext(device=torch.device("cpu"))


def traced(folder: Path, steps: int = 6, **profile: int | bool) -> list[dict]:
    """Events of the steps' trace, each step marked by its number."""
    profiler = StepProfiler(ProfileConfig.model_validate(profile), CONTEXT, folder)
    for step in range(steps):
        profiler.before(step)
        with record_function(f"step {step}"):
            torch.ones(1000).add_(1)
        profiler.after(step)
    profiler.close()
    (path,) = (folder / "profile").iterdir()
    assert path.name == f"step{profile['first_step']}-rank00000.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def steps_in(events: list[dict]) -> list[int]:
    names = {event.get("name", "") for event in events}
    return sorted(int(name.removeprefix("step ")) for name in names if name.startswith("step "))


@pytest.mark.parametrize(
    ("first", "count", "expected"), [(1, 2, [1, 2]), (0, 1, [0]), (4, 3, [4, 5])]
)
def test_the_steps_that_were_asked_for(
    tmp_path: Path, first: int, count: int, expected: list[int]
) -> None:
    """And only those; what the run's end cuts off is written all the same."""
    assert steps_in(traced(tmp_path, first_step=first, num_steps=count)) == expected


def test_allocations_only_where_they_are_asked_for(tmp_path: Path) -> None:
    for memory in (False, True):
        events = traced(tmp_path / str(memory), first_step=1, num_steps=1, memory=memory)
        assert any(event.get("name") == "[memory]" for event in events) == memory


def test_without_a_profile_there_is_no_folder(tmp_path: Path) -> None:
    profiler = StepProfiler(None, CONTEXT, tmp_path)
    profiler.before(0)
    profiler.after(0)
    profiler.close()
    assert list(tmp_path.iterdir()) == []
