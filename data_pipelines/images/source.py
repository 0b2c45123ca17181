"""Sample ids to training batches: reader, views, decoder and error budget together."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.bad_samples import BadSample, ErrorBudget
from data_pipelines.errors import DataError, UserError
from data_pipelines.hashing import hash_u64
from data_pipelines.images.collection import CollectionDataset, CollectionReader
from data_pipelines.images.decoders.base import ImageDecoder, to_unit_range
from data_pipelines.images.reader import EncodedBatch, ImageReader
from data_pipelines.manifest import ShardManifest
from data_pipelines.prefetch import Prefetcher
from data_pipelines.views import ViewSpec, view_geometry

MAX_REPLACEMENTS = 16
_DOMAIN_REPLACEMENT = 21


@dataclass(frozen=True)
class BatchRequest:
    """Which views of which samples: `ids` and `views` int64 [B]; views None means all 0."""

    ids: NDArray[np.int64]
    epoch: int | NDArray[np.int64] = 0
    views: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Replacement:
    """Slot `position` asked for sample `requested_id` and shows `used_id` instead."""

    position: int
    requested_id: int
    used_id: int


@dataclass(frozen=True)
class PixelBatch:
    """B decoded views as the decoder made them, in the order of the request.

    pixels: uint8 [B, 3, h, w], on the decoder's device.
    labels: int64 [B] in host memory, -1 where there is none.
    sample_ids: int64 [B], as requested, also where a bad sample was replaced.
    keys: of the images shown; image, label and key always belong together.
    views: int64 [B].
    replacements: the slots whose sample was bad.
    bad: the bad samples met, replacements that were bad themselves included.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    sample_ids: NDArray[np.int64]
    keys: list[str]
    views: NDArray[np.int64]
    replacements: list[Replacement]
    bad: list[BadSample]

    def to_images(self) -> "ImageBatch":
        """The same batch with pixels in [-1, 1]."""
        return ImageBatch(
            to_unit_range(self.pixels), self.labels.to(self.pixels.device), self.sample_ids,
            self.keys, self.views, self.replacements,
        )  # fmt: skip


@dataclass(frozen=True)
class ImageBatch:
    """B decoded views, in the order of the request.

    images: float32 [B, 3, h, w] in [-1, 1] on the decoder's device.
    labels: int64 [B] on the same device, -1 where there is none.
    sample_ids, keys, views, replacements: as in PixelBatch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sample_ids: NDArray[np.int64]
    keys: list[str]
    views: NDArray[np.int64]
    replacements: list[Replacement]


class PixelSource(ABC):
    """Makes batches of samples in one kind of view; `spec` is the view, see the subclasses."""

    spec: ViewSpec
    decoder: ImageDecoder

    def batch(
        self,
        ids: NDArray[np.int64],
        epoch: int | NDArray[np.int64] = 0,
        views: NDArray[np.int64] | None = None,
    ) -> ImageBatch:
        """The images of `ids`, int64 [B]; B may be 0.

        Args:
            epoch: of all samples, or of each, int64 [B].

        Raises:
            DataError: unreadable shards, or the error budget is exhausted.
            UserError: a view the spec does not have.
        """
        return self.pixels(ids, epoch, views).to_images()

    def pixels(
        self,
        ids: NDArray[np.int64],
        epoch: int | NDArray[np.int64] = 0,
        views: NDArray[np.int64] | None = None,
    ) -> PixelBatch:
        """As `batch`, before the conversion to [-1, 1]: a quarter of the bytes."""
        ids = np.asarray(ids, dtype=np.int64)
        views = np.zeros(len(ids), dtype=np.int64) if views is None else np.asarray(views)
        epochs = np.broadcast_to(np.asarray(epoch, dtype=np.int64), ids.shape)
        return self._make(ids, epochs, views)

    @abstractmethod
    def _make(
        self, ids: NDArray[np.int64], epochs: NDArray[np.int64], views: NDArray[np.int64]
    ) -> PixelBatch:
        """`pixels` of arrays int64 [B]."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the labels; empty where there are none or the datasets' differ."""

    def close(self) -> None:
        self.decoder.close()


class ImageSource(PixelSource):
    """Makes batches of one dataset in one kind of view; knows nothing of the order of samples.

    A batch is a pure function of (dataset, spec, seed, ids, epoch, views) and the decoder. A
    sample that cannot be decoded, or whose bytes are not those indexed, is recorded in `budget` and
    replaced by another one chosen by a hash of its id, so all ranks and restarts choose the same.

    Args:
        verify: compare every sample's crc32 with the index (0.02 ms for 100 KB). Without it, bits
            that flipped since the dataset was made mostly decode to wrong pixels unnoticed.
    """

    def __init__(
        self,
        manifest: ShardManifest | CollectionDataset,
        spec: ViewSpec,
        decoder: ImageDecoder,
        budget: ErrorBudget,
        *,
        seed: int,
        verify: bool = True,
    ) -> None:
        self.manifest = manifest
        self.spec = spec
        self.decoder = decoder
        self.budget = budget
        self.seed = seed
        made = isinstance(manifest, CollectionDataset)
        self._reader = CollectionReader(manifest) if made else ImageReader(manifest)
        self._verify = verify

    def _make(
        self, ids: NDArray[np.int64], epochs: NDArray[np.int64], views: NDArray[np.int64]
    ) -> PixelBatch:
        samples, images, bad = self._decode(ids, epochs, views)
        batch = PixelBatch(
            images, torch.from_numpy(samples.labels.astype(np.int64)), ids,
            [samples.key(position) for position in range(len(ids))], views, [],
            list(bad.values()),
        )  # fmt: skip
        return self._replace(batch, epochs, list(bad)) if bad else batch

    def prefetch(self, requests: Iterable[BatchRequest], depth: int = 2) -> Prefetcher[ImageBatch]:
        """Batches of `requests` in order, made ahead in one background thread."""
        return Prefetcher(lambda r: self.batch(r.ids, r.epoch, r.views), requests, depth)

    @property
    def class_names(self) -> list[str]:
        return self.manifest.classes

    def _replace(
        self, batch: PixelBatch, epochs: NDArray[np.int64], failed: list[int]
    ) -> PixelBatch:
        """Fill the slots that failed with other samples, chosen by a hash."""
        replacements: dict[int, Replacement] = {}
        for attempt in range(MAX_REPLACEMENTS):
            at = np.array(failed)
            used = (
                hash_u64(self.seed, _DOMAIN_REPLACEMENT, batch.sample_ids[at], attempt)
                % np.uint64(self.manifest.num_samples)
            ).astype(np.int64)
            others, pixels, bad = self._decode(used, epochs[at], batch.views[at])
            batch.pixels[failed] = pixels
            batch.bad.extend(bad.values())
            for i, position in enumerate(failed):
                batch.labels[position] = int(others.labels[i])
                batch.keys[position] = others.key(i)
                requested = int(batch.sample_ids[position])
                replacements[position] = Replacement(position, requested, int(used[i]))
            failed = [failed[i] for i in bad]
            if not failed:
                return replace(batch, replacements=[replacements[p] for p in sorted(replacements)])
        raise DataError(
            f"sample {int(batch.sample_ids[failed[0]])} is bad and so are {MAX_REPLACEMENTS}"
            " replacements; the dataset or the decoder is broken: verify the dataset"
        )

    def _decode(
        self, ids: NDArray[np.int64], epochs: NDArray[np.int64], views: NDArray[np.int64]
    ) -> tuple[EncodedBatch, torch.Tensor, dict[int, BadSample]]:
        """Samples, uint8 images, and what failed by position; failures are recorded."""
        samples = self._reader.read(ids)
        geometry = view_geometry(
            self.spec,
            seed=self.seed,
            epoch=epochs,
            sample_ids=ids,
            views=views,
            heights=samples.heights,
            widths=samples.widths,
        )
        changed = samples.changed() if self._verify else {}
        decoded = self.decoder.decode(samples.data, geometry)
        bad: dict[int, BadSample] = {}
        for at, reason in sorted((changed | dict(decoded.failures)).items()):
            bad[at] = BadSample(samples.shard(at), samples.key(at), int(ids[at]), reason)
            self.budget.record(bad[at])
        return samples, decoded.images, bad


class MixedSource(PixelSource):
    """Several datasets as one: samples are numbered through them, as by MixPlan.

    Views, seeds and replacements of a sample are those of its own dataset, so it looks the same as
    without the others. Labels are kept where all datasets have the same classes, else all are -1.

    Raises:
        UserError: no datasets, or their views differ.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        if not sources or any(source.spec != sources[0].spec for source in sources):
            raise UserError("a mixture needs datasets that are seen in the same view")
        self.sources = tuple(sources)
        self.spec, self.decoder = sources[0].spec, sources[0].decoder
        sizes = np.array([source.manifest.num_samples for source in sources])
        self._first_ids = np.cumsum(sizes) - sizes
        classes = {tuple(source.manifest.classes) for source in sources}
        self.keeps_labels = len(classes) == 1

    def _make(
        self, ids: NDArray[np.int64], epochs: NDArray[np.int64], views: NDArray[np.int64]
    ) -> PixelBatch:
        # Every dataset's part is decoded in one go.
        dataset = np.searchsorted(self._first_ids, ids, side="right") - 1
        whole = PixelBatch(
            torch.empty((len(ids), 3, *self.spec.size), dtype=torch.uint8,
                        device=self.decoder.device),
            torch.full((len(ids),), -1, dtype=torch.int64), ids, [""] * len(ids), views, [], [],
        )  # fmt: skip
        for number in np.unique(dataset).tolist():
            at = np.flatnonzero(dataset == number)
            first = int(self._first_ids[number])
            part = self.sources[number].pixels(ids[at] - first, epochs[at], views[at])
            self._fill(whole, at.tolist(), part, first)
        whole.replacements.sort(key=lambda replacement: replacement.position)
        return whole

    @property
    def class_names(self) -> list[str]:
        return self.sources[0].manifest.classes if self.keeps_labels else []

    def _fill(self, whole: PixelBatch, at: list[int], part: PixelBatch, first: int) -> None:
        whole.pixels[at] = part.pixels
        if self.keeps_labels:
            whole.labels[at] = part.labels
        for position, key in zip(at, part.keys, strict=True):
            whole.keys[position] = key
        for replaced in part.replacements:
            requested, used = replaced.requested_id + first, replaced.used_id + first
            whole.replacements.append(Replacement(at[replaced.position], requested, used))
        whole.bad.extend(replace(bad, sample_id=bad.sample_id + first) for bad in part.bad)
