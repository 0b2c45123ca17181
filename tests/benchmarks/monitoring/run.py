"""A real Prometheus beside a real two-worker run and a real precompute.

    PATH=$PATH:/folder/with/prometheus python -m tests.benchmarks.monitoring.run \
        --work /tmp/live --pictures docs/images

1. Trains the demo's tokenizer on two Ray workers while Prometheus scrapes it, then precomputes its
   tokens, with Prometheus on.
2. Asks Prometheus for every query of every dashboard; only the panels of `GPU_ONLY` may be empty.
3. Checks that every alert's expression evaluates.
4. Stops one worker with SIGSTOP and waits for the stalled-step alert, with the delays of the
   alert divided by `--hurry`, then lets it go on.
5. Draws each dashboard from what Prometheus has.

Prints one line of JSON for each part.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ifsq_train.config import LaunchConfig, PrecomputeConfig, TrainConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.metrics.jsonl import read_jsonl
from launchers.first_steps.digits import write_digits
from launchers.monitoring import prometheus_server as monitor
from launchers.stages import held_out, pack_images
from tests.benchmarks.monitoring.pictures import draw_all
from tests.support.repository import REPOSITORY

DASHBOARDS = sorted((REPOSITORY / "k8s" / "dashboards").glob("*.json"))

from k8s.dashboards.contents import GPU_ONLY, NEEDS_EXPORTERS  # noqa: E402

PORT = 19090


class Live:
    """Prometheus, asked over HTTP."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **query: Any) -> Any:
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            return {"error": error.read().decode()}

    def firing(self) -> dict[str, str]:
        """State of every alert that is pending or firing."""
        return {a["labels"]["alertname"]: a["state"] for a in self.get("alerts")["alerts"]}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel.get("targets")]


def resolve(query: str) -> str:
    """A panel's query as Grafana would send it."""
    query = query.replace("$__rate_interval", "30s").replace("$run", ".*")
    return query.replace("$namespace", ".*")


def train(work: Path, steps: int) -> None:
    """The demo's tokenizer on two workers."""
    from launchers.on_ray.train import train_on_ray

    overrides = [f"output={work}/runs/tokenizer", f"data.url={work}/data", f"steps={steps}"]
    overrides += ["checkpoint.every_steps=50", "log_every_steps=1"]
    config = load_recipe("demo/tokenizer", overrides)
    assert isinstance(config, TrainConfig)
    train_on_ray(config, LaunchConfig(num_workers=2))


def precompute(work: Path) -> None:
    """The tokens of the same images, in small shards so that there is something to see."""
    from launchers.on_ray.precompute import precompute_on_ray

    overrides = [f"source={work}/data", f"tokenizer={work}/runs/tokenizer"]
    overrides += [f"output={work}/runs/tokens", "samples_per_shard=4", "batch_size=1"]
    config = load_recipe("demo/tokens", overrides)
    assert isinstance(config, PrecomputeConfig)
    precompute_on_ray(config, num_actors=1)


def pack(work: Path) -> None:
    if (work / "data" / "manifest.json").is_file():
        return
    write_digits(work / "digits")
    pack_images(
        work / "digits",
        str(work / "data"),
        shard_bytes=1 << 20,
        seed=0,
        max_bad_samples=0,
        keep=lambda name: not held_out(name),
    )


def check_panels(live: Live, begin: float, end: float) -> dict[str, Any]:
    """Which panels of which dashboards have data."""
    facts: dict[str, Any] = {"part": "panels", "with_data": 0, "empty": [], "errors": []}
    for path in DASHBOARDS:
        for panel in panels(json.loads(path.read_text())):
            results = []
            for target in panel["targets"]:
                found = live.get(
                    "query_range",
                    query=resolve(target["expr"]),
                    start=begin,
                    end=end,
                    step=2,
                )
                if "error" in found:
                    facts["errors"].append(panel["title"])
                results.append(len(found.get("result", [])))
            if all(results):
                facts["with_data"] += 1
            else:
                facts["empty"].append(f"{path.stem}: {panel['title']}")
    unexpected = [
        name for name in facts["empty"] if name.split(": ", 1)[1] not in GPU_ONLY | NEEDS_EXPORTERS
    ]
    facts["unexpected_empty"] = unexpected
    return facts


def ask_tool(address: str, boards: list[Path]) -> None:
    """What the reference folder's own check says of the last minute."""
    tool = REPOSITORY.parent / "shared" / "tools" / "panels.py"
    subprocess.run([sys.executable, tool, address, *boards], check=False)


def check_alerts(live: Live) -> dict[str, Any]:
    """Health of every rule as Prometheus evaluated it."""
    groups = live.get("rules", type="alert")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    return {
        "part": "alerts",
        "rules": len(rules),
        "healthy": sum(rule["health"] == "ok" for rule in rules),
        "firing": live.firing(),
    }


def hurried_alerts(folder: Path, hurry: float) -> Path:
    """A copy of the alerts with the stalled-step delays divided."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (REPOSITORY / "k8s" / "alerts").glob("*.yaml"):
        text = path.read_text()
        text = text.replace("> 300\n", f"> {300 / hurry:.0f}\n")
        text = text.replace("offset 10m)", f"offset {600 / hurry:.0f}s)")  # runs that are alive
        text = re.sub(r"for: 1m\n", f"for: {max(1, round(60 / hurry))}s\n", text)
        (folder / path.name).write_text(text)
    return folder


def stop_a_worker(live: Live, run: Path) -> dict[str, Any]:
    """SIGSTOP to one worker of two; seconds until the alert fires."""
    victim = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
        and any(str(run.parent) in path.path for path in files_of(process))
    )
    before = read_jsonl(run / "metrics.jsonl")[-1]["step"]
    victim.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        while live.firing().get("IfsqStepStalled") != "firing":
            if time.monotonic() - began > 600:
                raise TimeoutError("the alert did not fire within ten minutes")
            time.sleep(1)
    finally:
        with suppress(psutil.NoSuchProcess):  # Ray has replaced it
            victim.send_signal(signal.SIGCONT)
    return {
        "part": "stalled",
        "stopped_at_step": before,
        "seconds_until_firing": round(time.monotonic() - began, 1),
    }


def files_of(process: psutil.Process) -> list[Any]:
    try:
        return process.open_files()
    except psutil.Error:
        return []


def run_in_thread(act: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)
            raise

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread, errors


def wait_for_step(run: Path, step: int, thread: threading.Thread) -> None:
    while thread.is_alive():
        records = read_jsonl(run / "metrics.jsonl")
        if records and records[-1]["step"] >= step:
            return
        time.sleep(0.5)
    raise RuntimeError("the training ended early")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hurry", type=float, default=10.0)
    options = parser.parse_args()
    binary = monitor.find_prometheus()
    if binary is None:
        sys.exit("prometheus is not on PATH")
    work = options.work.absolute()
    runs = work / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    pack(work)
    monitor.ALERT_FOLDER = hurried_alerts(work / "alerts", options.hurry)
    with monitor.running_prometheus(runs, PORT, binary) as address:
        live = Live(address)
        began = {"training": time.time()}
        thread, errors = run_in_thread(lambda: train(work, options.steps))
        wait_for_step(runs / "tokenizer", options.steps // 2, thread)
        say(stop_a_worker(live, runs / "tokenizer"))
        say(check_alerts(live))
        thread.join()
        ask_tool(address, [path for path in DASHBOARDS if path.stem != "precompute"])
        began["precompute"] = time.time()
        precompute(work)
        end = time.time()
        ask_tool(address, [path for path in DASHBOARDS if path.stem == "precompute"])
        say(check_panels(live, began["training"], end))
        if options.pictures is not None:
            draw_all(address, began, end, options.pictures)
    if errors:
        sys.exit(f"training: {errors[0]!r}")


def say(facts: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
