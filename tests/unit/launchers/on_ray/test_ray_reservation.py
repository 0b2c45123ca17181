"""A killed driver's claim on a Ray cluster does not keep the same command waiting."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launchers.on_ray.cluster import ray_session
from launchers.on_ray.reservation import take_over_reservation


def trainer(run_id: str) -> Any:
    return SimpleNamespace(train_run_context=SimpleNamespace(run_id=run_id))


@pytest.mark.slow
def test_the_next_driver_gives_back_what_the_killed_one_had_reserved(tmp_path: Path) -> None:
    with ray_session(None, min_cpus=2) as ray:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        coordinator: Any = get_or_create_autoscaling_coordinator()

        def reserved(run_id: str) -> float:
            """Slots that are kept for a run which asks for every one of two."""
            name, slots = f"train-{run_id}", [{"CPU": 1.0}] * 2
            ray.get(coordinator.request_resources.remote(name, slots, expire_after_s=180))
            found = ray.get(coordinator.get_reserved_resources.remote(name))
            return sum(node["CPU"] for node in found.values())

        take_over_reservation(tmp_path, trainer("killed"))
        assert reserved("killed") == 2
        assert reserved("next") == 0, "Ray no longer keeps claims of the dead: drop this module"
        take_over_reservation(tmp_path, trainer("next"))
        assert reserved("next") == 2
        assert (tmp_path / ".ray-requester").read_text() == "train-next"
