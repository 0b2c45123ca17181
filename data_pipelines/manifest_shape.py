"""The declared shape of manifest.json."""

from typing import NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from data_pipelines.documents import Count, Name, Sha256, Text, Whole


class _Kind(TypedDict):
    """Looked at first, so that another version or kind is called that."""

    format: Name
    version: Whole
    kind: Name


class _Manifest(_Kind):
    """What every manifest has; what packing notes of itself stands beside these."""

    digest: Sha256
    num_samples: Count
    num_shards: Count
    num_bytes: Count
    num_bad_samples: NotRequired[Count]
    table_sha256: Sha256
    shards_url: NotRequired[Text | None]
    classes: list[Text]


KIND: TypeAdapter[_Kind] = TypeAdapter(_Kind)
MANIFEST: TypeAdapter[_Manifest] = TypeAdapter(_Manifest)
