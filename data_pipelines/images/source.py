"""Sample ids to training batches: reader, views, decoder and error budget together."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.hashing import hash_u64
from data_pipelines.images.budget import BadSample, ErrorBudget
from data_pipelines.images.decode import ImageDecoder, to_unit_range
from data_pipelines.images.reader import EncodedSample, ImageReader
from data_pipelines.manifest import ShardManifest
from data_pipelines.prefetch import Prefetcher
from data_pipelines.views import ViewSpec, view_geometry

MAX_REPLACEMENTS = 16
_DOMAIN_REPLACEMENT = 21


@dataclass(frozen=True)
class BatchRequest:
    """Which views of which samples: `ids` and `views` int64 [B]; views None means all 0."""

    ids: NDArray[np.int64]
    epoch: int = 0
    views: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Replacement:
    """Slot `position` asked for sample `requested_id` and shows `used_id` instead."""

    position: int
    requested_id: int
    used_id: int


@dataclass(frozen=True)
class ImageBatch:
    """B decoded views, in the order of the request.

    images: float32 [B, 3, S, S] in [-1, 1] on the decoder's device.
    labels: int64 [B] on the same device, -1 where there is none.
    sample_ids: int64 [B], as requested, also where a bad sample was replaced.
    keys: of the images shown; image, label and key always belong together.
    views: int64 [B].
    replacements: the slots whose sample was bad.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sample_ids: NDArray[np.int64]
    keys: list[str]
    views: NDArray[np.int64]
    replacements: list[Replacement]


class ImageSource:
    """Makes batches of one dataset in one kind of view; knows nothing of the order of samples.

    A batch is a pure function of (dataset, spec, seed, ids, epoch, views) and the decoder. A
    sample that cannot be decoded is recorded in `budget` and replaced by another one chosen by a
    hash of its id, so all ranks and restarts choose the same.
    """

    def __init__(
        self,
        manifest: ShardManifest,
        spec: ViewSpec,
        decoder: ImageDecoder,
        budget: ErrorBudget,
        *,
        seed: int,
        verify: bool = False,
    ) -> None:
        self.manifest = manifest
        self.spec = spec
        self.decoder = decoder
        self.budget = budget
        self.seed = seed
        self._reader = ImageReader(manifest, verify=verify)

    def batch(
        self,
        ids: NDArray[np.int64],
        epoch: int = 0,
        views: NDArray[np.int64] | None = None,
    ) -> ImageBatch:
        """The images of `ids`, int64 [B]; B may be 0.

        Raises:
            DataError: unreadable shards, or the error budget is exhausted.
            UserError: a view the spec does not have.
        """
        ids = np.asarray(ids, dtype=np.int64)
        views = np.zeros(len(ids), dtype=np.int64) if views is None else np.asarray(views)
        samples, images, failed = self._decode(ids, epoch, views)
        replacements: dict[int, Replacement] = {}
        for attempt in range(MAX_REPLACEMENTS):
            if not failed:
                break
            at = np.array(failed)
            used = (
                hash_u64(self.seed, _DOMAIN_REPLACEMENT, ids[at], attempt)
                % np.uint64(self.manifest.num_samples)
            ).astype(np.int64)
            others, pixels, still_failed = self._decode(used, epoch, views[at])
            images[failed] = pixels
            for position, other in zip(failed, others, strict=True):
                samples[position] = other
                replacements[position] = Replacement(position, int(ids[position]), other.id)
            failed = [failed[i] for i in still_failed]
        if failed:
            raise DataError(
                f"sample {int(ids[failed[0]])} is bad and so are {MAX_REPLACEMENTS} replacements; "
                "the dataset or the decoder is broken: verify the dataset"
            )
        labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        return ImageBatch(
            to_unit_range(images), labels.to(images.device), ids,
            [sample.key for sample in samples], views,
            [replacements[position] for position in sorted(replacements)],
        )  # fmt: skip

    def prefetch(self, requests: Iterable[BatchRequest], depth: int = 2) -> Prefetcher[ImageBatch]:
        """Batches of `requests` in order, made ahead in one background thread."""
        return Prefetcher(lambda r: self.batch(r.ids, r.epoch, r.views), requests, depth)

    def close(self) -> None:
        self.decoder.close()

    def _decode(
        self, ids: NDArray[np.int64], epoch: int, views: NDArray[np.int64]
    ) -> tuple[list[EncodedSample], torch.Tensor, list[int]]:
        """Samples, uint8 images and the positions that failed; failures are recorded."""
        samples = self._reader.read(ids)
        geometry = view_geometry(
            self.spec,
            seed=self.seed,
            epoch=epoch,
            sample_ids=ids,
            views=views,
            heights=np.array([sample.height for sample in samples], dtype=np.int64),
            widths=np.array([sample.width for sample in samples], dtype=np.int64),
        )
        decoded = self.decoder.decode(samples, geometry)
        for position, reason in decoded.failures:
            sample = samples[position]
            self.budget.record(BadSample(sample.shard, sample.key, sample.id, reason))
        return samples, decoded.images, [position for position, _ in decoded.failures]
