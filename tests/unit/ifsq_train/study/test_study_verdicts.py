"""Verdicts and pages from made-up records with a known answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import DataError, UserError
from ifsq_train.config import StudyConfig
from ifsq_train.study.claims import judge
from ifsq_train.study.expand import Expansion, expand
from ifsq_train.study.report import index, make_report, write_report
from ifsq_train.study.rows import collect_rows, read_records
from ifsq_train.study.statistics import compare, find_knee, holm, interval, one_sample
from ifsq_train.study.store import Store

pytest.importorskip("scipy", reason="verdicts need scipy")


def study(claims: list[dict[str, Any]], seeds: tuple[int, ...] = (0, 1, 2, 3)) -> Expansion:
    config = StudyConfig.model_validate(
        {
            "kind": "study",
            "name": "made-up",
            "title": "Made up",
            "scale": "none",
            "stages": {"toy": {"kind": "toy", "method": "ifsq"}},
            "axes": {
                "size": {
                    str(size): {"toy.levels": size, "facts.size": size} for size in (3, 5, 9, 17)
                }
            },
            "seeds": seeds,
            "measures": {
                "error": {"stage": "toy", "key": "error", "label": "e", "better": "lower"}
            },
            "claims": claims,
            "plots": [{"title": "Error", "measure": "error", "x": "size", "log": True}],
        }
    )
    return expand(config)


def filled(found: Expansion, store: Path, value: Any) -> None:
    """Records whose error is `value(size, seed)`."""
    for variant in found.variants:
        stage = found.stages[variant.stages["toy"]]
        size = int(str(variant.labels["size"]))
        Store(store).finish(stage, {"error": value(size, variant.seed)}, 1.0, 1.0)


def verdicts(found: Expansion, store: Path) -> list[Any]:
    return judge(found.config, collect_rows(found, read_records(found, store)))


BETTER = {
    "id": "B", "kind": "better", "statement": "s", "measure": "error",
    "first": {"size": "17"}, "second": {"size": "3"},
}  # fmt: skip
BEST = {
    "id": "M", "kind": "best", "statement": "s", "measure": "error",
    "axis": "size", "expected": "17",
}  # fmt: skip
TREND = {"id": "T", "kind": "trend", "statement": "s", "measure": "error", "x": "size"}


def noise(size: int, seed: int) -> float:
    return 0.01 * float(np.sin(7.0 * size + 3.0 * seed))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda size, seed: 1.0 / size + noise(size, seed), "supported"),
        (lambda size, seed: size + noise(size, seed), "contradicted"),
        (lambda size, seed: 1.0 + noise(size, seed), "undecided"),
    ],
)
def test_clear_differences_decide_and_noise_does_not(
    value: Any, expected: str, tmp_path: Path
) -> None:
    found = study([BETTER])
    filled(found, tmp_path, value)
    (verdict,) = verdicts(found, tmp_path)
    assert (verdict.verdict, verdict.n) == (expected, 4)


def test_two_seeds_decide_nothing(tmp_path: Path) -> None:
    found = study([BETTER, BEST, TREND], seeds=(0, 1))
    filled(found, tmp_path, lambda size, _: 1.0 / size)
    assert {one.verdict for one in verdicts(found, tmp_path)} == {"undecided"}


def test_best_needs_to_beat_every_other_and_a_missing_one_withholds_support(tmp_path: Path) -> None:
    found = study([BEST])
    filled(found, tmp_path, lambda size, seed: 1.0 / size + 0.1 * noise(size, seed))
    assert verdicts(found, tmp_path)[0].verdict == "supported"
    for variant in found.variants:
        if variant.labels["size"] == "5":
            stage = found.stages[variant.stages["toy"]]
            (Store(tmp_path).folder(stage) / "record.json").unlink()
    assert verdicts(found, tmp_path)[0].verdict == "undecided"


def test_best_is_contradicted_by_one_that_is_clearly_better(tmp_path: Path) -> None:
    found = study([BEST])
    filled(found, tmp_path, lambda size, seed: abs(size - 9) + noise(size, seed))
    assert verdicts(found, tmp_path)[0].verdict == "contradicted"


def test_a_trend_is_linear_in_the_logarithm(tmp_path: Path) -> None:
    found = study([TREND])
    filled(found, tmp_path, lambda size, seed: np.log2(size) + noise(size, seed))
    (verdict,) = verdicts(found, tmp_path)
    # The error grows with x, and lower is better: quality falls.
    assert verdict.verdict == "supported"
    assert "+1 per doubling" in verdict.ours


def test_values_are_judged_by_their_interval(tmp_path: Path) -> None:
    claim = {
        "id": "V", "kind": "value", "statement": "s", "measure": "error",
        "where": {"size": "3"}, "expected": 1.0, "tolerance": 0.05,
    }  # fmt: skip
    found = study([claim])
    for offset, expected in ((0.0, "supported"), (0.05, "undecided"), (0.2, "contradicted")):
        filled(found, tmp_path, lambda size, seed, o=offset: 1.0 + o + noise(size, seed))
        assert verdicts(found, tmp_path)[0].verdict == expected


def test_paired_t_test_is_scipys() -> None:
    from scipy.stats import ttest_rel

    first, second = {0: 1.0, 1: 2.5, 2: 3.0, 3: 4.1}, {0: 0.8, 1: 2.9, 2: 2.2, 3: 3.0, 9: 7.0}
    found = compare(first, second)
    assert found.n == 4
    assert found.p == pytest.approx(ttest_rel([1, 2.5, 3, 4.1], [0.8, 2.9, 2.2, 3.0]).pvalue)
    assert one_sample([2.0, 2.0, 2.0]).p == 0.0
    assert one_sample([0.0, 0.0, 0.0]).p == 1.0


def test_holm_and_interval_and_knee() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2.0 - 2.484, 2.0 + 2.484), abs=1e-3)
    x = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert find_knee(x, [0.0, 0.0, 0.0, 0.0, 2.0, 4.0]) == 3.0
    assert find_knee(x[:4], [0.0, 0.0, 1.0, 2.0]) is None


def test_pages_are_the_same_bytes_from_the_same_records(tmp_path: Path) -> None:
    found = study([BETTER, TREND])
    filled(found, tmp_path / "store", lambda size, seed: 1.0 / size + noise(size, seed))
    written = []
    for name in ("a", "b"):
        report = make_report("made/up", found, tmp_path / "store")
        files = write_report(report, tmp_path / name)
        written.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
        assert "| [B](up.md): s |" in index([report])
    assert written[0] == written[1]
    names = {path.name for path in written[0]}
    assert names == {"up.md", "error.svg", "rows.csv", "table.tex", "report.html"}
    rows = written[0][Path("up/rows.csv")].decode().splitlines()
    assert len(rows) == 1 + 16
    assert b"<svg" in written[0][Path("up/report.html")]


def test_a_stage_that_all_seeds_share_counts_once(tmp_path: Path) -> None:
    """Else a difference without any deviation would be significant."""
    plain = study([BETTER], seeds=(0, 1, 2)).config
    found = expand(
        plain.model_copy(
            update={
                "stages": {**plain.stages, "other": {"kind": "toy", "method": "ifsq"}},
                "seeded": ("other",),
            }
        )
    )
    filled(found, tmp_path, lambda size, _: 1.0 / size)
    (verdict,) = verdicts(found, tmp_path)
    assert (verdict.verdict, verdict.n) == ("undecided", 1)


def test_a_measure_that_no_record_has_is_named(tmp_path: Path) -> None:
    found = study([])
    for stage in found.stages.values():
        Store(tmp_path).finish(stage, {"errors": 1.0}, 1.0, 1.0)
    with pytest.raises(UserError, match=r"measures\.error: .* 'error'; there are errors"):
        verdicts(found, tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    found = study([])
    stage = next(iter(found.stages.values()))
    path = Store(tmp_path).folder(stage) / "record.json"
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(DataError, match=r"record\.json is damaged"):
        read_records(found, tmp_path)
    path.write_text(json.dumps({"digest": "0", "format_version": 1, "numbers": {}}))
    with pytest.raises(DataError, match="another stage"):
        read_records(found, tmp_path)
