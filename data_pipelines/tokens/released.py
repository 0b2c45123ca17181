"""Reading the feature folders of the released code: latent shards and one code file per image.

For comparing, and for moving existing features over; new ones are better made by `ifsq precompute`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from data_pipelines.errors import DataError

_LATENTS, _FLIPPED, _LABELS = "latents", "latents_flip", "labels"


@dataclass(frozen=True)
class ReleasedLatents:
    """Latents of every image and of its mirror image, in the order of file names, then rows.

    Attributes:
        latents, flipped: float32 [N, C, h, w].
        labels: int64 [N].
        mean, std: float32 [1, C, 1, 1] over all `latents`, std with denominator N - 1; the released
            reader takes at most 10,000 rows chosen at random.
    """

    latents: NDArray[np.float32]
    flipped: NDArray[np.float32]
    labels: NDArray[np.int64]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def features(self, flips: NDArray[np.bool_], multiplier: float = 1.0) -> NDArray[np.float32]:
        """``(x - mean) / std * multiplier`` [N, C, h, w], mirrored where `flips` [N] says so."""
        chosen = np.where(flips[:, None, None, None], self.flipped, self.latents)
        return ((chosen - self.mean) / self.std * np.float32(multiplier)).astype(np.float32)


def read_released_latents(folder: Path) -> ReleasedLatents:
    """All ``*.safetensors`` shards of a folder.

    Raises:
        DataError: no shard, or one that is not of that form.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise DataError(f"{folder}: no *.safetensors shard of latents")
    parts: dict[str, list[NDArray]] = {_LATENTS: [], _FLIPPED: [], _LABELS: []}
    for path in paths:
        try:
            content = load_file(path)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: not a safetensors file ({error})") from error
        if missing := [name for name in parts if name not in content]:
            raise DataError(f"{path}: has no {missing}; latents of the released code do")
        for name, found in parts.items():
            found.append(content[name])
    latents, flipped, labels = (np.concatenate(part) for part in parts.values())
    wide = latents.astype(np.float64)
    mean, std = (
        part.astype(np.float32)
        for part in (
            wide.mean((0, 2, 3), keepdims=True),
            wide.std((0, 2, 3), keepdims=True, ddof=1),
        )
    )
    return ReleasedLatents(latents, flipped, labels, mean, std)


def read_released_codes(codes: Path, labels: Path, number: int) -> tuple[NDArray[np.int64], int]:
    """Tokens of one image and its label.

    Args:
        codes, labels: the folders ``*_codes`` and ``*_labels``.
        number: of the image; files are named ``<number>.npy``.

    Returns:
        int64 [views, T], or [views, T, G] for FSQ; and the label.

    Raises:
        DataError: no such files, or not of that form.
    """
    try:
        tokens = np.load(codes / f"{number}.npy", allow_pickle=False)
        label = np.load(labels / f"{number}.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{codes / f'{number}.npy'}: no code file ({error})") from error
    if tokens.ndim not in (3, 4) or len(tokens) != 1 or tokens.dtype != np.int64 or label.size != 1:
        raise DataError(
            f"{codes / f'{number}.npy'}: {tokens.dtype} {tokens.shape}, expected int64"
            " [1, views, tokens]"
        )
    return tokens[0], int(label.reshape(()))
