"""The images a recipe names: a dataset folder, or a source that a plug-in adds."""

from __future__ import annotations

from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.images.collection import CollectionDataset, ImageCollection
from data_pipelines.manifest import ShardManifest
from ifsq_train.plugins.kinds import SourceKind
from ifsq_train.plugins.registry import find, names, unknown_kind


def open_images_of(place: Any) -> Any:
    """A `ShardManifest`, or a `CollectionDataset` that data loading takes in its place.

    Args:
        place: path or URL of a dataset folder, or the config of a source.

    Raises:
        UserError: missing or damaged dataset, or a source nobody knows or that is none.
    """
    if isinstance(place, str):
        return ShardManifest.open(place)
    kind = find("ifsq.sources", place.kind)
    if not isinstance(kind, SourceKind):
        raise unknown_kind("source", place.kind, names("ifsq.sources"))
    made = kind.open(place)
    if not isinstance(made, ImageCollection):
        raise UserError(
            f"source kind '{place.kind}' opens a {type(made).__name__}, not an ImageCollection;"
            " see docs/extending.md"
        )
    return CollectionDataset(made)
