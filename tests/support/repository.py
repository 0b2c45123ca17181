"""Where things lie: the checkout, and the reference data beside it (absent in a plain clone)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"


def tracked_files(below: str = ".") -> list[Path]:
    """Files that git tracks and that are there, relative to the repository; a sdist skips."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout: there is no list of the files that belong to it")
    done = subprocess.run(
        ["git", "ls-files", "-z", "--", below],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [Path(name) for name in done.stdout.split("\0") if name]
    return [name for name in names if (REPOSITORY / name).is_file()]
