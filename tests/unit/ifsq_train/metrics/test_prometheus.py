"""The metrics endpoint, scraped over HTTP while real processes write."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ifsq_train.metrics import names
from ifsq_train.metrics.names import METRICS, MetricSpec
from ifsq_train.metrics.prometheus import Metrics, metrics_directory, open_metrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

# What a second worker of the node does; says "ready" and then waits to be told to end.
WORKER = """
import sys
from pathlib import Path
from ifsq_train.metrics import names
from ifsq_train.metrics.prometheus import open_metrics
metrics = open_metrics(Path(sys.argv[1]), rank=1, local_rank=1)
metrics.set(names.LOSS, 99.0, term="loss")
metrics.inc(names.SAMPLES, 1000)
metrics.inc(names.PRECOMPUTE_ROWS, 30)
metrics.inc(names.DATA_WAIT_SECONDS, 2.5, rank="1")
print("ready", flush=True)
if sys.stdin.readline() == "close\\n":
    metrics.close()
"""


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    opened = open_metrics(tmp_path / "demo-run", rank=0, local_rank=0)
    yield opened
    opened.close()


def scrape_text(run_dir: Path) -> str:
    """As Prometheus would: the address from the discovery file, then one GET."""
    groups = json.loads((run_dir / "metrics_endpoint.json").read_text())
    with urllib.request.urlopen(f"http://{groups[0]['targets'][0]}/metrics") as answer:
        return answer.read().decode()


def scrape(run_dir: Path) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(scrape_text(run_dir))
        for sample in family.samples
    }


def start_worker(run_dir: Path) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


def record_something(metrics: Metrics, spec: MetricSpec) -> None:
    labels = dict.fromkeys(spec.labels, "x")
    act: dict[str, Any] = {"gauge": metrics.set, "counter": metrics.inc}
    act.get(spec.kind, metrics.observe)(spec, 1.0, **labels)


def test_two_processes_are_served_as_one(metrics: Metrics, tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-run"
    metrics.set(names.LOSS, 0.25, term="loss")
    metrics.inc(names.SAMPLES, 64)
    metrics.inc(names.PRECOMPUTE_ROWS, 12)
    metrics.inc(names.DATA_WAIT_SECONDS, 0.5, rank="0")
    metrics.observe(names.STEP_SECONDS, 0.2)
    worker = start_worker(run_dir)
    found = scrape(run_dir)
    worker.communicate("close\n", timeout=60)
    assert found["ifsq_training_loss", (("term", "loss"),)] == 0.25
    assert found["ifsq_training_samples_total", ()] == 64
    assert found["ifsq_precompute_rows_total", ()] == 42
    assert found["ifsq_training_data_wait_seconds_total", (("rank", "1"),)] == 2.5
    assert found["ifsq_training_step_seconds_bucket", (("le", "0.25"),)] == 1
    assert found["ifsq_training_step_seconds_sum", ()] == pytest.approx(0.2)


def test_no_sample_names_a_process(metrics: Metrics, tmp_path: Path) -> None:
    for spec in METRICS:
        record_something(metrics, spec)
    labels = {label for _, pairs in scrape(tmp_path / "demo-run") for label, _ in pairs}
    of_runs = {"term", "network", "channel", "phase", "stage", "task", "strategy", "precision"}
    of_runs |= {"key", "text"}  # tags
    of_runs.add("direction")  # forward or backward pass
    assert labels == of_runs | {"rank", "le"}


def test_a_run_of_1024_ranks_has_few_series(tmp_path: Path) -> None:
    """The bound of docs/metrics.md: 600 for the run and 4 for each rank, at 8 ranks a node."""
    most = {"term": 16, "network": 3, "channel": 16}
    first = open_metrics(tmp_path, rank=0, local_rank=0)
    for spec in METRICS:
        (label,) = spec.labels if len(spec.labels) == 1 else (None,)
        for value in range(most.get(label or "", 1)):
            labels = dict.fromkeys(spec.labels, f"value{value}")
            act: dict[str, Any] = {"gauge": first.set, "counter": first.inc}
            act.get(spec.kind, first.observe)(spec, 1.0, **labels)
    with_rank_0 = len(scrape(tmp_path))
    first.close()
    node = open_metrics(tmp_path, rank=8, local_rank=0)
    for spec in METRICS:
        if "rank" not in spec.labels and spec.kind != "histogram":
            record_something(node, spec)
    for rank in range(8, 16):
        node.inc(names.DATA_WAIT_SECONDS, 1.0, rank=str(rank))
        for direction in ("forward", "backward"):
            node.inc(names.PASS_SECONDS, 1.0, rank=str(rank), direction=direction)
    assert node.server is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{node.server.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    node.close()
    of_a_node = len([line for line in lines if not line.startswith("#")])
    assert with_rank_0 <= 600
    assert with_rank_0 + 127 * of_a_node <= 600 + 4 * 1024


def test_numbers_of_a_killed_process_are_gone_after_the_next_start(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-run"
    worker = start_worker(run_dir)
    worker.kill()
    worker.wait()
    metrics = open_metrics(run_dir, rank=0, local_rank=0)
    found = scrape(run_dir)
    metrics.close()
    assert found["ifsq_precompute_rows_total", ()] == 0


def test_memory_is_the_sum_over_live_processes(metrics: Metrics, tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-run"
    own = scrape(run_dir)["ifsq_process_resident_memory_bytes", ()]
    worker = start_worker(run_dir)
    both = scrape(run_dir)["ifsq_process_resident_memory_bytes", ()]
    worker.communicate("close\n", timeout=60)
    assert 0 < own < both
    assert scrape(run_dir)["ifsq_process_resident_memory_bytes", ()] == own


def test_a_gauge_of_the_run_shows_the_newest_value(metrics: Metrics, tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-run"
    metrics.set(names.LOSS, 0.5, term="loss")
    again = open_metrics(run_dir, rank=0, local_rank=1)
    again.set(names.LOSS, 0.125, term="loss")
    assert scrape(run_dir)["ifsq_training_loss", (("term", "loss"),)] == 0.125


def test_runs_after_each_other_in_one_process_do_not_mix(tmp_path: Path) -> None:
    for run, rows in (("first", 3), ("second", 4)):
        metrics = open_metrics(tmp_path / run, rank=0, local_rank=0)
        metrics.inc(names.PRECOMPUTE_ROWS, rows)
        found = scrape(tmp_path / run)
        metrics.close()
        assert found["ifsq_precompute_rows_total", ()] == rows


def test_a_node_without_rank_0_exports_nothing_of_the_run(tmp_path: Path) -> None:
    metrics = open_metrics(tmp_path, rank=8, local_rank=0)
    metrics.inc(names.STEPS)
    metrics.set(names.WORLD_SIZE, 16)
    assert metrics.server is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.server.port}/metrics") as answer:
        text = answer.read().decode()
    metrics.close()
    assert "ifsq_training_steps_total" not in text
    assert "ifsq_training_world_size" not in text
    assert "ifsq_precompute_rows_total" in text


def test_closing_withdraws_the_address_and_the_files(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    open_metrics(run_dir, rank=0, local_rank=0).close()
    assert list(run_dir.iterdir()) == []
    assert list(metrics_directory(run_dir).iterdir()) == []


def test_discovery_file_has_the_run_as_label(metrics: Metrics, tmp_path: Path) -> None:
    assert metrics.server is not None
    groups = json.loads((tmp_path / "demo-run" / "metrics_endpoint.json").read_text())
    target = f"127.0.0.1:{metrics.server.port}"
    assert groups == [{"targets": [target], "labels": {"run": "demo-run"}}]


def test_every_node_has_its_own_discovery_file(metrics: Metrics, tmp_path: Path) -> None:
    other = open_metrics(tmp_path / "demo-run", rank=8, local_rank=0)
    found = sorted(path.name for path in (tmp_path / "demo-run").glob("metrics_endpoint*.json"))
    other.close()
    assert found == ["metrics_endpoint-00008.json", "metrics_endpoint.json"]


def test_a_library_imported_too_early_still_shares_its_numbers(tmp_path: Path) -> None:
    """Ray may import prometheus_client before the worker function runs."""
    program = "import prometheus_client\n" + WORKER
    run_dir = tmp_path / "run"
    metrics = open_metrics(run_dir, rank=0, local_rank=0)
    subprocess.run([sys.executable, "-c", program, str(run_dir)], input="\n", text=True, check=True)
    found = scrape(run_dir)
    metrics.close()
    assert found["ifsq_precompute_rows_total", ()] == 30


@pytest.mark.parametrize("spec", METRICS, ids=lambda spec: spec.name)
def test_name_says_type_and_unit(spec: MetricSpec) -> None:
    assert spec.name.startswith(names.PREFIX)
    assert spec.name.endswith("_total") == (spec.kind == "counter")
    assert spec.help.endswith(".")
    assert (spec.kind == "histogram") == bool(spec.buckets)
    words = set(spec.name.split("_"))
    assert not words & {"ms", "milliseconds", "minutes", "hours", "percent", "megabytes", "bits"}


def test_names_are_unique() -> None:
    assert len({spec.name for spec in METRICS}) == len(METRICS)


def test_promtool_has_nothing_to_say(metrics: Metrics, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH (Debian: package prometheus)")
    for spec in METRICS:
        record_something(metrics, spec)
    text = scrape_text(tmp_path / "demo-run")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_what_stands_in_the_way_of_metrics_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk would end the process with SIGBUS later, at the first write to a hole."""

    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    metrics = open_metrics(tmp_path / "full", 0, 0)
    metrics.inc(names.STEPS)
    metrics.close()
    assert "No space left" in caplog.text


def test_a_taken_port_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        metrics = open_metrics(tmp_path / "run", 0, 0, port)
        metrics.inc(names.STEPS)
        metrics.close()
    assert f"metrics port {port} on 127.0.0.1" in caplog.text


def test_processes_started_later_know_nothing_of_our_folder(tmp_path: Path) -> None:
    """Ray's own processes died of a folder that had gone with the run."""
    opened = open_metrics(tmp_path / "demo-run", rank=0, local_rank=0)
    for spec in METRICS:
        record_something(opened, spec)
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
    opened.close()


def test_many_runs_in_one_process_leave_no_file_open(tmp_path: Path) -> None:
    """A study trains hundreds of networks in one process."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(3):
        opened = open_metrics(tmp_path / f"run-{number}", rank=0, local_rank=0)
        for spec in METRICS:
            record_something(opened, spec)
        opened.close()
        record_something(opened, names.STEP)  # comes too late, and is no error
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
