"""`ifsq monitor`: what it shows of a run that is going on."""

from __future__ import annotations

import json
import shutil
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from ifsq_train.metrics import names
from ifsq_train.metrics.prometheus import Metrics, open_metrics
from launchers.cli.program import app
from launchers.monitoring.prometheus_server import Sample, find_endpoints, running_prometheus
from launchers.monitoring.terminal_view import Numbers, lines_of_run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Metrics]:
    """A run with some numbers, in tmp_path/runs/tok."""
    metrics = open_metrics(tmp_path / "runs" / "tok", rank=0, local_rank=0)
    metrics.set(names.STEP, 120)
    metrics.set(names.PLANNED_STEPS, 600)
    metrics.set(names.LOSS, 0.25, term="loss")
    metrics.set(names.WORLD_SIZE, 2)
    metrics.inc(names.SAMPLES, 64)
    yield metrics
    metrics.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@pytest.mark.usefixtures("run")
def test_the_terminal_view_shows_the_runs_numbers(tmp_path: Path) -> None:
    flags = ["--runs", str(tmp_path / "runs"), "--terminal", "--seconds", "0.2"]
    done = CliRunner().invoke(app, ["monitor", *flags])
    assert done.exit_code == 0, done.output
    for text in ("tok", "120 of 600 (20%)", "loss 0.25", "workers"):
        assert text in done.output


def test_without_a_run_it_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["monitor", "--runs", str(tmp_path), "--terminal", "--seconds", "0.1"]
    )
    assert "no run in" in done.output


def test_a_folder_that_is_missing_is_a_user_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["monitor", "--runs", str(tmp_path / "none")])
    assert isinstance(done.exception, UserError)


def test_an_endpoint_that_does_not_answer_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "dead"
    folder.mkdir()
    target = f"127.0.0.1:{free_port()}"
    groups = [{"targets": [target], "labels": {"run": "dead"}}]
    (folder / "metrics_endpoint.json").write_text(json.dumps(groups))
    assert find_endpoints(tmp_path) == {f"http://{target}/metrics": "dead"}
    flags = ["--runs", str(tmp_path), "--terminal", "--seconds", "0.1"]
    assert "dead:" in CliRunner().invoke(app, ["monitor", *flags]).output


def test_rates_are_between_two_looks() -> None:
    def look(rows: float, earlier: Numbers | None, now: float) -> Numbers:
        samples = [
            Sample("ifsq_precompute_rows_total", {}, rows),
            Sample("ifsq_precompute_expected_rows", {}, 1000.0),
            Sample("ifsq_precompute_done_rows", {}, rows),
        ]
        return Numbers(samples, earlier, now)

    first = look(100, None, 10.0)
    assert ("rows per second", "25 rows/s") in lines_of_run(look(150, first, 12.0))
    assert ("rows", "150 of 1000 (15%)") in lines_of_run(look(150, first, 12.0))


def test_a_real_prometheus_scrapes_the_run_and_loads_the_alerts(
    run: Metrics, tmp_path: Path
) -> None:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not on PATH (Debian: package prometheus)")
    del run
    with running_prometheus(tmp_path / "runs", free_port(), binary) as address:
        deadline = time.monotonic() + 30
        result: list[dict] = []
        while not result and time.monotonic() < deadline:
            time.sleep(0.5)
            with urllib.request.urlopen(f"{address}/api/v1/query?query=ifsq_training_step") as got:
                result = json.load(got)["data"]["result"]
        assert result[0]["metric"]["run"] == "tok"
        assert result[0]["value"][1] == "120"
        with urllib.request.urlopen(f"{address}/api/v1/rules") as got:
            groups = json.load(got)["data"]["groups"]
        health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert "IfsqStepStalled" in health
        assert "err" not in health.values()


def test_a_prometheus_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="Prometheus does not start"),
        running_prometheus(tmp_path, free_port(), "/bin/false"),
    ):
        pass
