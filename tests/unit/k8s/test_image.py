"""The image's Dockerfile."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
DOCKERFILE = REPOSITORY / "k8s" / "image" / "Dockerfile"


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.is_file():
        pytest.skip("hadolint is not installed (`make install`)")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_does_not_run_as_root_and_pins_every_package() -> None:
    text = DOCKERFILE.read_text()
    last_stage = text.rsplit("\nFROM ", 1)[1]
    assert re.search(r"^USER 1000:1000$", last_stage, re.MULTILINE)
    for line in re.findall(r"pip install .*", text):
        assert "-c /src/constraints.txt" in line or "--no-deps /src" in line


def test_what_it_copies_is_sent_to_the_builder() -> None:
    allowed = {
        line[1:] for line in (REPOSITORY / ".dockerignore").read_text().split() if line[0] == "!"
    }
    copied = set()
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE):
        copied |= set(sources.split())
    assert copied == allowed
    for name in copied:
        assert (REPOSITORY / name).exists()


def test_its_torch_is_the_pinned_one() -> None:
    pinned = re.search(r"^torch==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert f"torch=={pinned[1]}" in DOCKERFILE.read_text()
