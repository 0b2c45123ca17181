"""Noise of stored posteriors: of a sample, an epoch and a seed, and of nothing else."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.tokens.format import ExtraColumn
from data_pipelines.tokens.latents import LATENT_LOGVAR, LATENT_MEAN, DigitTable, LatentSums
from data_pipelines.tokens.reader import TokenDataset
from tests.support.known_tokens import SPEC, write_dataset

IDS = np.arange(10)


@pytest.fixture
def posterior(tmp_path: Path) -> TokenDataset:
    """A dataset with mean and log-variance of every row."""
    from dataclasses import replace

    column = ExtraColumn("float32", (4, 4, 4))
    spec = replace(SPEC, extra_columns={LATENT_MEAN: column, LATENT_LOGVAR: column})
    return TokenDataset.open(write_dataset(tmp_path / "vae", spec))


def test_noise_changes_with_seed_epoch_and_sample(posterior: TokenDataset) -> None:
    draws = {
        key: posterior.posterior_noise(*key, IDS)
        for key in [(0, 0), (0, 1), (0, 2), (1, 0), (0, 2**32), (2**32, 0)]
    }
    for first, second in combinations(draws.values(), 2):
        assert first is not None
        assert second is not None
        size = first.size
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) * size**0.5 < 5.0
    one = draws[0, 0]
    assert one is not None
    assert len({row.tobytes() for row in one}) == len(IDS)


def test_noise_of_a_sample_does_not_depend_on_the_batch(posterior: TokenDataset) -> None:
    whole = posterior.posterior_noise(3, 5, IDS)
    part = posterior.posterior_noise(3, 5, IDS[[7, 2]])
    assert whole is not None
    assert part is not None
    np.testing.assert_array_equal(part, whole[[7, 2]])


def test_every_group_has_its_own_digits() -> None:
    """Groups of two and one channel, with levels that differ in number and in value."""
    table = DigitTable((2, 1), (1, 3, 1), ((-1.0, 0.0, 1.0), (10.0, 20.0), (5.0, 6.0, 7.0, 8.0)))
    tokens = np.array([[[[4, 3]], [[2, 0]]]])
    expected = np.array([[[[0.0], [1.0]], [[20.0], [10.0]], [[8.0], [5.0]]]], np.float32)
    np.testing.assert_array_equal(table.latents(tokens), expected)


def test_a_channel_that_never_changes_has_no_deviation() -> None:
    """Rounding makes the variance of equal values negative as often as positive."""
    for value in (0.6369616873214543, 0.8132702392002724):
        sums = LatentSums(3, (3 * value,), (float(np.square(np.full(3, value)).sum()),))
        found = LatentSums.combine([sums])
        assert found is not None
        assert found.std == (0.0,)
