"""Kill random processes of one training, again and again; does it come out the same?

    python -m tests.benchmarks.engine.kill_training [--kills 20] [--seed 0] [--folder DIR]

A local Ray cluster of three nodes (own raylets, loopback), an elastic run of one to three workers.
Victims: a worker process, a whole node's raylet (started again afterwards) or the driver (started
again by this script, as a job controller would). Prints, for every kill, what was killed and the
seconds until the next step was logged; then the largest relative difference of the loss curve
from that of an undisturbed run on one worker, and whether any step is missing or doubled.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from tests.support.training_process import (
    STRATEGIES,
    Driver,
    compare,
    prepare,
    steps_logged,
    wait_for_step,
    write_recipe,
)

NODES = 3


class Cluster:
    """A head without slots and three nodes with one slot each, all owned by this process."""

    def __init__(self, folder: Path) -> None:
        settings = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_DISABLE_IMPORT_WARNING": "1",
        }
        os.environ.update(settings)
        from ray.cluster_utils import Cluster as RayCluster

        self._ray = RayCluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False},
        )
        self.nodes = [self._ray.add_node(num_cpus=1) for _ in range(NODES)]
        self.address = str(self._ray.address)
        self._folder = folder

    def kill_node(self, rng: random.Random) -> None:
        """SIGKILL a raylet; its workers die with it."""
        victim = rng.choice(self.nodes)
        self.nodes.remove(victim)
        for kind in ("raylet",):
            for info in victim.all_processes.get(kind, []):
                os.kill(info.process.pid, signal.SIGKILL)
        self._ray.worker_nodes.discard(victim)

    def bring_back(self) -> None:
        """As many nodes as at the start."""
        while len(self.nodes) < NODES:
            self.nodes.append(self._ray.add_node(num_cpus=1, wait=False))

    def close(self) -> None:
        """End every process of the cluster."""
        self._ray.shutdown()


def worker_pids() -> list[int]:
    """Training workers among this process's descendants."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWo" in " ".join(process.cmdline()):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def kill_once(kind: str, cluster: Cluster, driver: Driver, rng: random.Random) -> str:
    """Kill one thing; what really was killed."""
    if kind == "worker":
        pids = worker_pids()
        if not pids:
            return "nothing (no worker was running)"
        os.kill(rng.choice(pids), signal.SIGKILL)
    elif kind == "node":
        cluster.kill_node(rng)
    else:
        driver.kill()
    return kind


def disturb(
    cluster: Cluster,
    driver: Driver,
    output: Path,
    rng: random.Random,
    *,
    kills: int,
    seconds: float,
    limit: float,
) -> list[tuple[str, float]]:
    """Kill until `kills` have been survived; (what, seconds to the next logged step) of each."""
    survived: list[tuple[str, float]] = []
    end = time.monotonic() + seconds
    while len(survived) < kills and time.monotonic() < end:
        wait_for_step(output, driver, steps_logged(output) + rng.randint(1, 25), limit)
        cluster.bring_back()
        kind = rng.choices(["worker", "node", "driver"], [0.5, 0.3, 0.2])[0]
        began_at = time.time()
        what = kill_once(kind, cluster, driver, rng)
        if what.startswith("nothing"):
            continue
        took = wait_for_start(output, driver, began_at, limit)
        survived.append((what, took))
        print(f"kill {len(survived):2} {what:7} next step after {took:5.1f} s", flush=True)
    cluster.bring_back()
    return survived


def wait_for_start(output: Path, driver: Driver, since: float, limit: float) -> float:
    """Seconds from `since` to the first step of a start of the workers after it."""
    from ifsq_train.metrics.jsonl import read_jsonl

    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        starts = [r["wall_time"] for r in read_jsonl(output / "starts.jsonl")]
        new = [moment for moment in starts if moment > since]
        if new:
            later = [
                record["wall_time"]
                for record in read_jsonl(output / "metrics.jsonl")
                if record["wall_time"] > new[0]
            ]
            if later:
                return later[0] - since
        if driver.process.poll() is not None:
            raise SystemExit(f"the driver ended by itself with {driver.process.returncode}")
        time.sleep(0.05)
    raise SystemExit(f"no step within {limit:.0f} s of a kill")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="0: as many as the kills need")
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default="zero2")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop killing after that")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a recovery may take")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report(folder, options, rng)


def report(folder: Path, options: argparse.Namespace, rng: random.Random) -> None:
    """The disturbed run first: its number of steps is then known for the undisturbed one."""
    from ifsq_train.config.load import load_recipe
    from launchers.local import train_locally

    parts = prepare(folder)
    steps = options.steps or 10**6
    recipe = write_recipe(parts, folder, folder / "killed", steps, options.strategy)
    cluster = Cluster(folder)
    driver = Driver(recipe, cluster.address, folder / "driver.log", workers=NODES, min_workers=1)
    try:
        survived = disturb(
            cluster,
            driver,
            folder / "killed",
            rng,
            kills=options.kills,
            seconds=options.seconds,
            limit=options.limit,
        )
        last = steps_logged(folder / "killed") + 30
        wait_for_step(folder / "killed", driver, last, options.limit)
        driver.process.terminate()
        code = driver.process.wait(120)
    finally:
        driver.process.kill()
        cluster.close()
    total = steps_logged(folder / "killed")
    plain = load_recipe(
        str(write_recipe(parts, folder, folder / "undisturbed", total, options.strategy))
    )
    train_locally(plain)  # type: ignore[arg-type]
    worst, whole = compare(folder / "undisturbed", folder / "killed")
    seconds = [value for _, value in survived]
    print(f"{len(survived)} kills; SIGTERM at the end: exit code {code}")
    print(
        f"kill to next step: median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s"
    )
    print(f"{total} steps, every one logged once: {whole}")
    print(f"largest relative difference of a loss from the undisturbed run: {worst:.1e}")


if __name__ == "__main__":
    main()
