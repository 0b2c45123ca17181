"""Which of the stored views of a sample an epoch shows."""

import numpy as np
from numpy.typing import NDArray

from data_pipelines.hashing import hash_u64, uniform_int

_DOMAIN_CHOOSE_VIEW = 31


def choose_views(
    seed: int, epoch: int | NDArray[np.int64], sample_ids: NDArray[np.int64], num_views: int
) -> NDArray[np.int64]:
    """Which of the stored views a sample shows in an epoch: uniform in [0, num_views), int64 [B].

    A hash of (seed, epoch, sample id), so the same for every rank and after a resume.
    """
    ids = np.asarray(sample_ids, dtype=np.int64)
    return uniform_int(hash_u64(seed, _DOMAIN_CHOOSE_VIEW, epoch, ids), num_views)
