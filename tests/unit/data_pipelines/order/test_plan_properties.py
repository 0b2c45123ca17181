"""For any dataset, batch and window: an order that loses, doubles and remembers nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.order.plan import SamplePlan

PLANS = st.builds(
    SamplePlan,
    st.just("digest"),
    st.lists(st.integers(1, 40), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 12),
    st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
    shuffle_window=st.integers(1, 64),
)


@settings(max_examples=60)
@given(PLANS, st.integers(0, 3))
def test_an_epoch_has_every_sample_at_most_once(plan: SamplePlan, epoch: int) -> None:
    first = epoch * plan.steps_per_epoch
    steps = range(first, first + plan.steps_per_epoch)
    ids = np.concatenate([plan.batch_ids(step) for step in steps])
    assert len(set(ids.tolist())) == len(ids)
    assert ids.min() >= 0
    assert ids.max() < plan.num_samples
    assert plan.num_samples - len(ids) < plan.global_batch_size, "left out: less than one batch"
    assert all(plan.epoch(step) == epoch for step in steps)


@settings(max_examples=60)
@given(PLANS, st.integers(0, 10**9), st.integers(1, 7))
def test_any_number_of_ranks_shares_the_same_batch(
    plan: SamplePlan, step: int, world_size: int
) -> None:
    whole = plan.batch_ids(step)
    parts = [plan.rank_ids(step, rank, world_size) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60)
@given(PLANS, st.integers(0, 10**6))
def test_a_batch_depends_on_the_step_only(plan: SamplePlan, step: int) -> None:
    """Not on which batches were asked for before."""
    fresh = SamplePlan(
        plan.manifest_digest,
        plan.shard_sizes,
        plan.global_batch_size,
        seed=plan.seed,
        shuffle_window=plan.shuffle_window,
    )
    plan.batch_ids(step + 3)
    plan.batch_ids(0)
    np.testing.assert_array_equal(plan.batch_ids(step), fresh.batch_ids(step))
    assert plan.digest == fresh.digest
