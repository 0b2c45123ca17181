"""Watching runs on this machine: a Prometheus of our own, or a view in the terminal."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import yaml
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from data_pipelines.documents import checked, read_json
from data_pipelines.errors import UserError
from data_pipelines.storage.open import LocalStorage

PATTERNS = ("metrics_endpoint*.json", "*/metrics_endpoint*.json", "*/*/metrics_endpoint*.json")
"""Where endpoint addresses are below the folder of runs: the run itself, or up to two deeper."""
ALERT_FOLDER = Path(__file__).parents[2] / "k8s" / "alerts"
_READY_SECONDS = 30.0
_LIST_SECONDS = 2.0


class _Group(TypedDict):
    """One entry of Prometheus' file service discovery."""

    targets: list[str]
    labels: dict[str, str]


_GROUPS: TypeAdapter[list[_Group]] = TypeAdapter(list[_Group])


@dataclass(frozen=True)
class Sample:
    """One number of an endpoint: metric name, labels, value."""

    name: str
    labels: dict[str, str]
    value: float


def prometheus_config(targets: Path, alerts: Path | None) -> str:
    """Prometheus' configuration for the endpoints that a file lists."""
    config: dict[str, Any] = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "scrape_configs": [
            {
                "job_name": "ifsq",
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "5s"}],
            }
        ],
    }
    if alerts is not None and alerts.is_dir():
        config["rule_files"] = [str(alerts.absolute() / "*.yaml")]
    return yaml.safe_dump(config, sort_keys=False)


@contextmanager
def running_prometheus(
    runs: Path, port: int, binary: str, folder: Path | None = None
) -> Iterator[str]:
    """Prometheus for the duration of a block; gives its address.

    Args:
        runs: folder with runs.
        port: to listen on, loopback only.
        binary: the program.
        folder: configuration and database; ``.prometheus`` of `runs` if None.

    Raises:
        UserError: it does not start, with what it said.
    """
    folder = (folder or runs / ".prometheus").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    targets, log = folder / "targets.json", folder / "prometheus.log"
    write_targets(runs, targets)
    (folder / "prometheus.yml").write_text(prometheus_config(targets, ALERT_FOLDER))
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--storage.tsdb.retention.time=30d",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    address, stop = f"http://127.0.0.1:{port}", threading.Event()
    lister = threading.Thread(target=_keep_targets, args=(runs, targets, stop), daemon=True)
    lister.start()
    try:
        _wait_until_ready(server, address, log)
        yield address
    finally:
        stop.set()
        lister.join()
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def write_targets(runs: Path, path: Path) -> None:
    """List the endpoints of all runs in one file for Prometheus' file discovery, which does not
    look into folders by itself."""
    groups = [
        {"targets": [url.removeprefix("http://").removesuffix("/metrics")], "labels": {"run": run}}
        for url, run in find_endpoints(runs).items()
    ]
    LocalStorage(path.parent).write(path.name, json.dumps(groups).encode())


def _keep_targets(runs: Path, path: Path, stop: threading.Event) -> None:
    while not stop.wait(_LIST_SECONDS):
        write_targets(runs, path)


def _wait_until_ready(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/-/ready", timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise UserError(f"Prometheus does not start: {last[0] if last else 'no output'} (see {log})")


def find_prometheus() -> str | None:
    """The Prometheus on PATH, if any."""
    return shutil.which("prometheus")


def find_endpoints(runs: Path) -> dict[str, str]:
    """Metric addresses of the runs below a folder, with the run's name."""
    found: dict[str, str] = {}
    for pattern in PATTERNS:
        for path in sorted(runs.glob(pattern)):
            try:
                groups = checked(_GROUPS, read_json(path, max_bytes=1 << 20), str(path))
            except UserError:
                continue  # being written or withdrawn just now
            for group in groups:
                for target in group["targets"]:
                    found[f"http://{target}/metrics"] = group["labels"].get("run", "")
    return found


def read_endpoint(url: str) -> list[Sample] | None:
    """All numbers of an endpoint; None if it does not answer."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            text = answer.read().decode()
    except (URLError, OSError):
        return None
    return [
        Sample(sample.name, dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
