"""What is learned, and the loop that learns it."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Activations of many megabytes in huge pages: on CPUs, page faults were half of the time of
# encoding sixteen images of 256 px. torch reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from ifsq_train.api import Generator, Tokenizer, UserError, evaluate, load_dataset

__all__ = ["Generator", "Tokenizer", "UserError", "evaluate", "load_dataset"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ifsq_train.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
