"""`ifsq report` and `ifsq compare` of runs made here."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from data_pipelines.errors import UserError
from ifsq_train.evaluation.result import EvaluationResult, FeatureNetwork, Reference
from launchers.cli import app
from launchers.reports.compare import over_seeds, recipe_differences
from launchers.reports.measures import measure_lines
from launchers.reports.runs import StoredRun, open_runs


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def write_training(folder: Path, losses: list[float]) -> Path:
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": 10 * i, "loss": loss}) for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    result = {"name": folder.name, "steps": 20, "strategy": "torch", "versions": {"torch": "2"}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_evaluation(path: Path, psnr: float) -> Path:
    EvaluationResult(
        kind="reconstruction",
        metrics={
            "psnr_db": psnr,
            "code_entropy_bits": 9.5,
            "codebook_size": [81, 81],
            "digit_histograms": [[0.25, 0.5, 0.25], [0.5, 0.5]],
            "frechet_distance": 1.5,
        },
        num_samples=376,
        reference=Reference("ab" * 32, 376),
        preprocessing={"range": "[-1, 1]"},
        networks={"frechet_distance": FeatureNetwork("tokenizer-encoder", "cd" * 32)},
    ).write(path)
    return path


def test_report_shows_runs_and_writes_their_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_training(tmp_path / "a", [3.0, 2.0, 1.5])
    write_evaluation(tmp_path / "evaluation.json", 21.25)
    done = invoke("report", "a", "evaluation.json", "--output", "out/page.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out/page.html").read_text()
    for shown in ("Curves: a", "what is minimized", "Use of quantizer levels", "21.25", "started"):
        assert shown in page, shown
    assert "http" not in page.split("</style>")[1]
    with (tmp_path / "out/page-numbers-evaluation.csv").open() as file:
        table = {row["number"]: row["evaluation"] for row in csv.DictReader(file)}
    assert table["psnr_db"] == "21.25"


def test_compare_names_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, last in (("a", 1.5), ("b", 1.25)):
        write_training(tmp_path / name, [3.0, last])
    shown = invoke("compare", "a", "b")
    assert shown.exit_code == 0
    loss = next(line.split() for line in shown.output.splitlines() if line.startswith("loss"))
    assert loss == ["loss", "1.5", "1.25"]


def stored(seed: int, alpha: float, psnr: float) -> StoredRun:
    recipe = {"seed": seed, "output": f"runs/{seed}", "task": {"alpha": alpha}}
    return StoredRun(Path(f"runs/{seed}"), "training", "x", recipe, {"psnr_db": psnr})


def test_mean_and_deviation_only_where_nothing_but_the_seed_differs() -> None:
    runs = [stored(0, 1.6, 20.0), stored(1, 1.6, 22.0), stored(0, 2.0, 30.0)]
    table = over_seeds(runs)
    assert table is not None
    assert table.rows == (("x", "psnr_db", "21", "1.41421", "2"),)
    assert over_seeds([runs[0], runs[2]]) is None
    differing = {row[0] for row in recipe_differences(runs).rows}
    assert differing == {"seed", "output", "task.alpha"}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path, "holds no run"),
    ):
        with pytest.raises(UserError, match=message):
            open_runs([path])


def test_measures_say_their_unit_network_and_maximum(tmp_path: Path) -> None:
    lines = measure_lines(json.loads(write_evaluation(tmp_path / "e.json", 20.0).read_bytes()))
    shown = {line.split()[0]: line for line in lines}
    assert "of at most 12.68" in shown["code_entropy_bits"]
    assert "no FID" in shown["frechet_distance"]
    assert "digit_histograms" not in shown


def test_a_page_replaces_pages_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_training(tmp_path / "a", [3.0, 2.0, 1.5])
    assert invoke("report", "a", "--output", "page.html").exit_code == 0
    tables = sorted(path.name for path in tmp_path.glob("page-*.csv"))
    assert tables
    assert invoke("report", "a", "--output", "page.html").exit_code == 0
    (tmp_path / "other.html").write_text("<title>mine</title>")
    refused = invoke("report", "a", "--output", "other.html")
    assert "other.html was not made by `ifsq report`" in str(refused.exception)
    assert (tmp_path / "other.html").read_text() == "<title>mine</title>"
    (tmp_path / tables[0].replace("page", "new")).write_text("mine")
    refused = invoke("report", "a", "--output", "new.html")
    assert "was not made by `ifsq report`" in str(refused.exception)
    assert not (tmp_path / "new.html").exists()
