"""Where the time of a step goes."""

from __future__ import annotations

import time

import torch

from ifsq_train.metrics.step_meter import StepMeter


def test_passes_are_summed_until_they_are_taken() -> None:
    meter = StepMeter(torch.device("cpu"), 1, {})
    for _ in range(3):
        with meter.device_pass("forward"):
            time.sleep(0.01)
    with meter.device_pass("backward"):
        pass
    taken = meter.take_passes()
    assert list(taken) == ["forward", "backward"]
    assert taken["forward"] >= 0.03
    assert taken["backward"] < taken["forward"]
    assert meter.take_passes() == {}
    assert not any(key.startswith("pass") for key in meter.take())
