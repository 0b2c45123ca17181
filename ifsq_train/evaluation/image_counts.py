"""How many images a distance between distributions needs before its number means something."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

ROWS_PER_FEATURE = 10
"""A covariance of D features from fewer than 10 D images is mostly noise."""
FEWEST_IMAGES = 128
FEWEST_FOR_FID = 10_000
"""FID is biased upwards for few images; the paper and ADM use 50,000."""


def enough_images(name: str, count: int, features: int) -> bool:
    """Whether a Frechet distance of `count` images in `features` dimensions says something.

    Says in the log why not: with 20 images, noise can score better than good samples.
    """
    needed = max(FEWEST_IMAGES, ROWS_PER_FEATURE * features)
    if count >= needed:
        return True
    logger.warning(
        "%s is left out: %d images of the smaller set, %d are needed for %d features",
        name, count, needed, features,
    )  # fmt: skip
    return False


def warn_of_few(count: int) -> None:
    """Warn where FID and sFID of so few images should not be quoted."""
    if count < FEWEST_FOR_FID:
        logger.warning(
            "FID and sFID of %d images are biased upwards; quote them from %d images on, compare"
            " equal counts only, or use KID",
            count, FEWEST_FOR_FID,
        )  # fmt: skip
