"""Draws belong to samples: the same for any split of the batch."""

import numpy as np
import torch

from ifsq_train.randomness import BatchRandom, derive_seed


def test_draws_do_not_depend_on_how_the_batch_is_shared() -> None:
    whole = BatchRandom(3, 7, np.arange(8))
    parts = [BatchRandom(3, 7, np.arange(8)[i : i + 4], rank=i) for i in (0, 4)]
    for draw in ("normal", "uniform"):
        joined = torch.cat([getattr(part, draw)("x", (2, 3)) for part in parts])
        assert torch.equal(getattr(whole, draw)("x", (2, 3)), joined)


def test_streams_steps_and_seeds_are_independent() -> None:
    base = BatchRandom(3, 7, np.arange(4)).uniform("x")
    others = [
        BatchRandom(3, 7, np.arange(4)).uniform("y"),
        BatchRandom(3, 8, np.arange(4)).uniform("x"),
        BatchRandom(4, 7, np.arange(4)).uniform("x"),
    ]
    assert all(not torch.equal(base, other) for other in others)


def test_moments() -> None:
    random = BatchRandom(0, 0, np.arange(512))
    normal = random.normal("n", (64,))
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02
    assert abs(float(random.uniform("u", (64,)).mean()) - 0.5) < 0.01


def test_seeds_differ_by_type_and_are_stable() -> None:
    assert derive_seed(1, "a") == 2435099409675311997
    assert derive_seed("1", "a") != derive_seed(1, "a")
