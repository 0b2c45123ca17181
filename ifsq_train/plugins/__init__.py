"""Plug-ins: kinds of quantizers, views, tasks, trackers and sources that others add.

What a kind does is in the room that uses it; here is how kinds are declared, found and loaded.
"""

from ifsq_train.plugins.kinds import (
    GeneratorKind,
    Kind,
    QuantizerKind,
    SourceKind,
    TaskKind,
    TrackerKind,
    ViewKind,
)

__all__ = [
    "GeneratorKind",
    "Kind",
    "QuantizerKind",
    "SourceKind",
    "TaskKind",
    "TrackerKind",
    "ViewKind",
]
