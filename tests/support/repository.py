"""Where things lie: the checkout, and the reference data beside it (absent in a plain clone)."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
