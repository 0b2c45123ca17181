"""The declared shapes of a checkpoint's JSON: its marker, and what each rank's file holds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, Strict, TypeAdapter
from typing_extensions import TypedDict

from data_pipelines.documents import Count, Sha256, Text

MAX_RANKS = 1 << 16
_FileName = Annotated[
    str,
    Strict(),
    Field(pattern=r"^(rank-\d{5}\.(json|safetensors)|shared\.safetensors|index\.json)$"),
]
_Key = Annotated[str, Strict(), Field(min_length=1, max_length=400)]
_Json = dict[Annotated[str, Strict()], Any]
_Number = Annotated[float, Strict()]
"""A logged value; NaN is one."""


class FileShape(TypedDict):
    bytes: Count
    sha256: Sha256


class StateShape(TypedDict):
    """`TrainState.to_dict`; of imported weights it is empty."""

    plan_digest: Text
    step: Count
    samples_seen: Count
    last_record: dict[Text, _Number]
    version: Annotated[int, Strict()]


class _Nothing(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore


class MarkerShape(TypedDict):
    """checkpoint.json without its own checksum; what a run notes of itself stands beside these."""

    format: Literal[1]
    step: Count
    world_size: Annotated[int, Strict(), Field(ge=1, le=MAX_RANKS)]
    files: dict[_FileName, FileShape]
    recipe: NotRequired[_Json]
    task: NotRequired[_Json | None]
    train_state: NotRequired[StateShape | _Nothing]
    optimizer_steps: NotRequired[dict[Text, Count]]


class PieceShape(TypedDict):
    network: _Key
    parameter: _Key
    state: _Key
    shape: Annotated[tuple[Count, ...], Field(max_length=16)]
    start: Count
    length: Count


class SidecarShape(TypedDict):
    """rank-NNNNN.json."""

    attempt: Text
    pieces: list[PieceShape]
    bytes: Count
    sha256: Sha256


class IndexShape(TypedDict):
    """index.json: pieces by the rank that wrote them."""

    pieces: dict[Annotated[str, Strict(), Field(pattern=r"^rank-\d{5}$")], list[PieceShape]]


MARKER: TypeAdapter[MarkerShape] = TypeAdapter(MarkerShape)
SIDECAR: TypeAdapter[SidecarShape] = TypeAdapter(SidecarShape)
INDEX: TypeAdapter[IndexShape] = TypeAdapter(IndexShape)
