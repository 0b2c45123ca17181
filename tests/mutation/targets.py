"""Which tests are asked about a mutant: those of the module's room, and a few of its users."""

from __future__ import annotations

from pathlib import PurePosixPath

# The longest prefix that fits wins; a module without one is guarded by the tests of its folder.
TESTS: dict[str, list[str]] = {
    "data_pipelines/order": [
        "tests/unit/data_pipelines/order",
        "tests/unit/data_pipelines/test_digests.py",
    ],
    "data_pipelines/storage/local.py": [
        "tests/unit/data_pipelines/storage/test_order_of_writes.py"
    ],
    "data_pipelines/manifest.py": [
        "tests/unit/data_pipelines/test_manifest.py",
        "tests/unit/data_pipelines/test_digests.py",
        "tests/unit/data_pipelines/storage/test_order_of_writes.py",
    ],
    "data_pipelines/tokens": [
        "tests/unit/data_pipelines/tokens",
        "tests/unit/data_pipelines/test_digests.py",
    ],
    "ifsq_train/checkpoint": ["tests/unit/ifsq_train/checkpoint"],
    "ifsq_train/losses": ["tests/goldens", "tests/unit/ifsq_train/losses"],
    "ifsq_train/models": ["tests/goldens", "tests/unit/ifsq_train/models"],
    "ifsq_train/sampling": [
        "tests/goldens",
        "tests/unit/ifsq_train/test_random_draws.py",
        "tests/unit/ifsq_train/sampling",
    ],
    "ifsq_train/training/nonfinite.py": ["tests/unit/ifsq_train/training/test_counters.py"],
    "ifsq_train/training": ["tests/unit/ifsq_train/training"],
    "launchers/on_kubernetes/rayjob.py": ["tests/unit/launchers/on_kubernetes/test_rayjob.py"],
}


def tests_of(module: str) -> list[str]:
    """Paths for pytest, the quick ones first."""
    fitting = [prefix for prefix in TESTS if module.startswith(prefix)]
    if fitting:
        return TESTS[max(fitting, key=len)]
    return [str(PurePosixPath("tests/unit") / PurePosixPath(module).parent)]
