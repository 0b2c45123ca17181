"""Recipe part: where images come from."""

from __future__ import annotations

from typing import Annotated

from ifsq_train.config.base import Config
from ifsq_train.config.kinds import OneOf
from ifsq_train.config.paths import RunPath

ImagePlace = Annotated[RunPath | Config, OneOf("ifsq.sources")]
"""Path or URL of a dataset folder, or a plug-in's source as ``{kind: ...}``."""
