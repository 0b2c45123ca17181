"""The image's Dockerfile."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

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


NEEDED_AT_RUN_TIME = {
    "gcc": "Triton: the C compiler of its launchers",
    "libc6-dev": "Triton: headers of the C library",
    "python3-dev": "Triton: Python.h",
    "libc-bin": "Triton: /sbin/ldconfig, to find libcuda.so.1",
    "g++": "torch.compile: kernels on the CPU",
    "libibverbs1": "NCCL: libibverbs.so.1",
    "ibverbs-providers": "NCCL: libmlx5.so.1 and the other drivers of libibverbs",
    "wget": "KubeRay before 1.6: its probes (utils/constant.go, BaseWgetHealthCommand)",
}
"""Debian packages of what Triton, NCCL and KubeRay look for in the image, not in wheels."""
IN_EVERY_BASE = {"libc-bin"}
"""Marked essential: no Ubuntu image is without it."""


@pytest.mark.parametrize("package", sorted(NEEDED_AT_RUN_TIME))
def test_its_last_stage_installs_what_is_looked_for_at_run_time(package: str) -> None:
    last_stage = DOCKERFILE.read_text().rsplit("\nFROM ", 1)[1]
    commands = re.sub(r"\\\n|^\s*#.*$", " ", last_stage, flags=re.MULTILINE)
    installed: set[str] = set(IN_EVERY_BASE)
    for names in re.findall(r"apt-get install ([^&|;\n]*)", commands):
        installed |= {name for name in names.split() if not name.startswith("-")}
    assert package in installed, NEEDED_AT_RUN_TIME[package]
    assert "apt-get purge" not in commands
    assert "apt-get remove" not in commands
