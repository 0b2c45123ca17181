"""What a user sees where Ray does not start."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from data_pipelines.errors import UserError
from launchers.on_ray import cluster

TOO_SLOW = (
    "The current node timed out during startup. This could happen because some of the raylet failed"
    " to startup or the GCS has become overloaded."
)


class SlowRay:
    """Fails as Ray does (`Node.__init__`) for some starts, each of which leaves a process."""

    def __init__(self, failures: int, message: str = TOO_SLOW) -> None:
        self.failures, self.message = failures, message
        self.left: list[subprocess.Popen[bytes]] = []
        self.starts = 0

    def init(self, **options: Any) -> None:
        assert "address" in options
        self.starts += 1
        if self.starts > self.failures:
            return
        self.left.append(
            subprocess.Popen([sys.executable, "-c", "input()", "/ray/core/src/ray"], stdin=-1)
        )
        raise Exception(self.message)


def test_a_second_start_is_made_without_leftovers() -> None:
    ray = SlowRay(failures=1)
    cluster._start(ray, "local", {})
    assert ray.starts == 2
    assert [process.wait(30) for process in ray.left] == [-9]


def test_starts_end_with_one_line() -> None:
    ray = SlowRay(failures=100)
    with pytest.raises(UserError, match="did not come up on this machine in 3 tries"):
        cluster._start(ray, "local", {})
    assert ray.starts == 3
    assert [process.wait(30) for process in ray.left] == [-9] * 3


def test_other_faults_and_clusters_of_others_are_not_tried_again() -> None:
    for ray, address in ((SlowRay(1, "something else"), "local"), (SlowRay(1), "10.0.0.1:6379")):
        with pytest.raises(Exception, match=r"timed out during startup|something else"):
            cluster._start(ray, address, {})
        assert ray.starts == 1
        for process in ray.left:
            process.kill()
            process.wait()
