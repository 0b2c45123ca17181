"""Options of packing that all sources have in common."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from data_pipelines.images.decoders.limits import MAX_PIXELS
from data_pipelines.images.packing.resize import ResizeSpec
from data_pipelines.images.packing.shards import (
    MapShards,
)

DEFAULT_SHARD_BYTES = 256 << 20
DEFAULT_MAX_BAD_SAMPLES = 10

Progress = Callable[[int, int | None], None]
"""Called with (images done, images in all or None if unknown)."""


@dataclass(frozen=True)
class PackOptions:
    """What all sources have in common.

    Attributes:
        shard_bytes: image bytes per shard, measured on the source (for resized images scaled by
            what a probe of the first images shrank to); a larger image gets its own shard.
        seed: shuffles all images once; None keeps the sorted order (classes then come in blocks).
        max_bad_samples: images that may fail to decode; they are left out and listed.
        max_pixels: larger images count as bad.
        resize: large images are stored smaller; None keeps every byte.
        threads: per shard being made; None takes the CPUs of this process, or 1 with `map_shards`.
        map_shards: where shards are made; None makes one after the other in this process.
        on_progress: called from this process.
        overwrite: remove what was packed into the target before.
    """

    shard_bytes: int = DEFAULT_SHARD_BYTES
    seed: int | None = 0
    max_bad_samples: int = DEFAULT_MAX_BAD_SAMPLES
    max_pixels: int = MAX_PIXELS
    resize: ResizeSpec | None = None
    threads: int | None = None
    map_shards: MapShards | None = None
    on_progress: Progress | None = None
    overwrite: bool = False

    def identity(self) -> dict[str, Any]:
        """The options that decide the bytes of a dataset."""
        resize = asdict(self.resize) if self.resize else None
        return {"shard_bytes": self.shard_bytes, "max_pixels": self.max_pixels, "resize": resize}


class PackArguments(TypedDict, total=False):
    """The fields of PackOptions as keyword arguments."""

    shard_bytes: int
    seed: int | None
    max_bad_samples: int
    max_pixels: int
    resize: ResizeSpec | None
    threads: int | None
    map_shards: MapShards | None
    on_progress: Progress | None
    overwrite: bool
