"""Every engine computes what plain torch computes, and resumes what any other one saved."""

from pathlib import Path

import pytest

from tests.support.ranks import run_ranks

STEPS, SAVED = 8, 4


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Plain torch in one process."""
    folder = tmp_path_factory.mktemp("reference")
    return run_ranks(
        1,
        "train_toy",
        kind="torch",
        stage=0,
        folder=str(folder),
        first=0,
        last=STEPS,
        save_at=None,
    )[0]


@pytest.mark.parametrize(("kind", "stage"), [("torch", 0), *(("zero", s) for s in range(4))])
def test_two_ranks_equal_plain_torch(
    tmp_path: Path, reference: dict, kind: str, stage: int
) -> None:
    """Two networks, two micro-batches, clipping, schedules, averaging."""
    result = run_ranks(
        2,
        "train_toy",
        kind=kind,
        stage=stage,
        folder=str(tmp_path),
        first=0,
        last=STEPS,
        save_at=None,
    )[0]
    assert result["losses"] == pytest.approx(reference["losses"], rel=1e-6)
    assert result["average"] == pytest.approx(reference["average"], rel=1e-5)
    if kind == "zero":
        assert result["engine"]["zero_stage"] == stage
    assert result["engine"]["world_size"] == 2


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (("torch", 0, 1), ("zero", 1, 2)),
        (("zero", 1, 2), ("zero", 1, 2)),
        (("zero", 1, 2), ("torch", 0, 1)),
        (("zero", 3, 2), ("zero", 2, 1)),
        (("zero", 0, 2), ("zero", 3, 2)),
    ],
)
def test_a_checkpoint_loads_anywhere(
    tmp_path: Path, reference: dict, saved: tuple[str, int, int], loaded: tuple[str, int, int]
) -> None:
    kind, stage, world = saved
    first = run_ranks(
        world,
        "train_toy",
        kind=kind,
        stage=stage,
        folder=str(tmp_path),
        first=0,
        last=SAVED,
        save_at=SAVED,
    )[0]
    kind, stage, world = loaded
    rest = run_ranks(
        world,
        "train_toy",
        kind=kind,
        stage=stage,
        folder=str(tmp_path),
        first=SAVED,
        last=STEPS,
        save_at=None,
    )[0]
    assert first["losses"] + rest["losses"] == pytest.approx(reference["losses"], rel=1e-6)
    assert rest["average"] == pytest.approx(reference["average"], rel=1e-5)
