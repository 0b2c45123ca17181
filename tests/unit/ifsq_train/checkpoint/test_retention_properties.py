"""For any steps and scores: what retention keeps is what its rules say, and no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ifsq_train.checkpoint.retention import Retention

STEPS = st.lists(st.integers(1, 500), min_size=1, max_size=30, unique=True).map(sorted)
RETENTIONS = st.builds(
    Retention,
    keep_last=st.integers(1, 5),
    keep_every_steps=st.none() | st.integers(1, 50),
    metric=st.just("loss"),
    lowest=st.booleans(),
    keep_best=st.integers(0, 4),
)


@given(STEPS, RETENTIONS, st.data())
def test_kept(steps: list[int], retention: Retention, data: st.DataObject) -> None:
    scored = data.draw(st.lists(st.sampled_from(steps), unique=True))
    values = data.draw(st.permutations(range(len(scored))))
    scores = dict(zip(scored, map(float, values), strict=True))
    kept = retention.kept(steps, scores)
    assert kept <= set(steps)
    assert set(steps[-retention.keep_last :]) <= kept
    every = retention.keep_every_steps
    multiples = {step for step in steps if every is not None and step % every == 0}
    assert multiples <= kept
    best = sorted(scores, key=scores.__getitem__, reverse=not retention.lowest)
    best = best[: retention.keep_best]
    assert set(best) <= kept
    assert kept == set(steps[-retention.keep_last :]) | multiples | set(best)


@given(STEPS, RETENTIONS)
def test_applying_it_again_keeps_all(steps: list[int], retention: Retention) -> None:
    scores = {step: float(step % 7) for step in steps}
    once = sorted(retention.kept(steps, scores))
    kept_scores = {step: scores[step] for step in once}
    assert retention.kept(once, kept_scores) == set(once)
