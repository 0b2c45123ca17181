"""Mixing datasets: exact shares, every dataset exhausted on its own, pure functions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from data_pipelines.order.mix import MixMember, MixPlan

SIZES = ([300, 250, 90], [40, 23], [5_000] * 4)


def _mix(weights=(0.5, 0.2, 0.3), batch=40, seed=3, window=128) -> MixPlan:
    members = [
        MixMember(f"digest{i}", SIZES[i], weight) for i, weight in enumerate(weights)
    ]  # fmt: skip
    return MixPlan(members, batch, seed, window)


def _drawn(plan: MixPlan, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dataset, id within it and epoch of every sample of the first steps."""
    ids = np.concatenate([plan.batch_ids(step) for step in range(steps)])
    epochs = np.concatenate([plan.rank_epochs(step, 0, 1) for step in range(steps)])
    return *plan.split_ids(ids), epochs


def test_shares_are_exact_in_every_batch_they_can_be():
    plan = _mix()
    for step in (0, 1, 7, 500):
        dataset, _ = plan.split_ids(plan.batch_ids(step))
        assert np.bincount(dataset, minlength=3).tolist() == [20, 8, 12]


@settings(max_examples=30)
@given(
    weights=st.lists(st.integers(1, 60), min_size=3, max_size=3),
    first=st.integers(0, 5_000),
    count=st.integers(1, 400),
)
def test_shares_of_any_stretch_are_within_a_draw_per_dataset(weights, first, count):
    plan = _mix(tuple(weights), batch=1)
    steps = range(first, first + count)
    dataset, _ = plan.split_ids(np.concatenate([plan.batch_ids(step) for step in steps]))
    expected = count * np.array(weights) / sum(weights)
    assert np.abs(np.bincount(dataset, minlength=3) - expected).max() <= 3


def test_no_dataset_repeats_a_sample_within_its_epoch():
    dataset, ids, epochs = _drawn(_mix(), 90)
    assert {int(d): int(epochs[dataset == d].max()) for d in range(3)} == {0: 2, 1: 12, 2: 0}
    for member in range(3):
        for epoch in np.unique(epochs[dataset == member]):
            seen = ids[(dataset == member) & (epochs == epoch)]
            assert len(np.unique(seen)) == len(seen)


def test_a_finished_epoch_has_all_but_a_remainder():
    dataset, ids, epochs = _drawn(_mix(), 90)
    first = ids[(dataset == 0) & (epochs == 0)]
    assert len(first) > 640 - 20


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64])
def test_global_batch_is_the_same_for_any_world_size(world_size):
    plan, fresh = _mix(), _mix()
    for step in (0, 3, 88, 10_000):
        ids = [fresh.rank_ids(step, rank, world_size) for rank in range(world_size)]
        epochs = [fresh.rank_epochs(step, rank, world_size) for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(ids), plan.batch_ids(step))
        np.testing.assert_array_equal(np.concatenate(epochs), plan.rank_epochs(step, 0, 1))


def test_weights_are_taken_as_written():
    assert _mix((0.1, 0.2, 0.7)).weights == (1, 2, 7)
    assert _mix((50, 20, 30)).weights == (5, 2, 3)
    assert _mix((0.5, 0.2, 0.3)) == _mix((50, 20, 30))


@pytest.mark.parametrize("change", [{"weights": (1, 2, 3)}, {"batch": 20}, {"seed": 4}])
def test_digest_names_everything_that_decides_the_order(change):
    assert _mix(**change).digest != _mix().digest


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 0.0), "mixture weight 0.0 is not allowed"),
        ((1.0, float("nan")), "mixture weight nan is not allowed"),
        ((0.3333333, 0.6666667), "sum is above 1000000; round them"),
        ((), "has no datasets"),
    ],
)
def test_impossible_weights_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        _mix(weights)


def test_rare_datasets_come_evenly():
    plan = _mix((999, 1, 1000), batch=100)
    dataset, _ = plan.split_ids(np.concatenate([plan.batch_ids(step) for step in range(200)]))
    gaps = np.diff(np.flatnonzero(dataset == 1))
    assert set(gaps.tolist()) == {2000}


def test_order_is_pinned_across_machines_and_versions():
    plan = _mix(batch=10)
    assert plan.batch_ids(0).tolist() == PINNED_STEP_0
    assert plan.batch_ids(777).tolist() == PINNED_STEP_777


PINNED_STEP_0 = [296, 16686, 642, 362, 506, 6702, 116, 662, 11643, 288]
PINNED_STEP_777 = [296, 2274, 670, 407, 566, 17215, 186, 697, 7190, 315]
