"""What a user sees where Ray does not start."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipelines.errors import UserError
from launchers.on_ray.cluster import _init

SLOW = "The current node timed out during startup. This could happen because ..."


class SlowRay:
    """Ray whose first starts take too long."""

    def __init__(self, failures: int) -> None:
        self.failures, self.starts, self.shutdowns = failures, 0, 0

    def init(self, **options: Any) -> None:
        del options
        self.starts += 1
        if self.starts <= self.failures:
            raise Exception(SLOW)

    def shutdown(self) -> None:
        self.shutdowns += 1


def test_a_start_that_took_too_long_is_tried_once_more() -> None:
    ray = SlowRay(failures=1)
    _init(ray, "local", {})
    assert (ray.starts, ray.shutdowns) == (2, 1)


def test_a_machine_that_is_too_busy_is_one_clear_line() -> None:
    ray = SlowRay(failures=2)
    with pytest.raises(UserError, match="within 30 seconds, twice: it is short of processors"):
        _init(ray, "local", {})
    assert ray.shutdowns == 2


def test_other_errors_of_ray_are_not_hidden() -> None:
    class Broken(SlowRay):
        def init(self, **options: Any) -> None:
            raise ValueError(f"something else, given {sorted(options)}")

    with pytest.raises(ValueError, match="something else"):
        _init(Broken(0), "local", {})
