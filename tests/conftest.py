"""Fixtures shared by all tests."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Ray turns authentication on when it finds a stray token in the home folder; tests never want it.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Programs that come as packages, such as the S3 server, lie beside the interpreter.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

from tests.support.repository import REPOSITORY, SHARED

# The same examples in every run, none kept between runs, and a busy machine fails nothing.
settings.register_profile(
    "suite",
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")


def pytest_configure() -> None:
    """Tests send Ctrl-C, which a shell makes programs that it starts in the background ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The reference data beside the checkout; a plain clone has none and the test skips."""
    if not SHARED.is_dir():
        pytest.skip("the reference data folder ../shared is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def golden_dir(shared_dir: Path) -> Path:
    """Tensors recorded from the released code."""
    return shared_dir / "parity" / "golden"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: what starts servers, ranks or Ray stays in one process.

    Each such test uses all cores by itself; other modules go to the other process file by file.
    """
    for item in items:
        own = item.path.relative_to(REPOSITORY / "tests").parts
        group = "servers" if own[0] in ("distributed", "end_to_end") else "/".join(own)
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a program that `make install` does not bring, or a device."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch finds none here")
    if item.get_closest_marker("compiles") and shutil.which("g++") is None:
        pytest.skip("torch.compile wants a C++ compiler")
