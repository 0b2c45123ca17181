"""A cable pulled and plugged in again, a node drained, the driver asked to end: one training.

    python -m tests.benchmarks.engine.network_faults [--folder DIR]

Needs root, iproute2, and the reference folder with ``tools/nets.sh`` beside the checkout: a head
and three nodes of Ray in network namespaces of their own, an elastic run of one to three workers.

- cut: the link of a node goes down, so that nobody is told anything; it comes up again, and the
  node is started anew as its keeper would do once Ray has given it up.
- drain: `ray drain-node`, as a cluster says that a node will be preempted.
- stop: SIGTERM to the driver; the same command again.

Prints a line for each with the seconds until the next step and how many steps had to be repeated;
then the largest relative difference of the losses from those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.support.repository import REPOSITORY, SHARED
from tests.support.training_process import compare, prepare, steps_logged, write_recipe

NETS = SHARED / "tools" / "nets.sh"
HEAD, NODES = 1, (2, 3, 4)
ADDRESS = "10.77.0.1:6379"
LIMIT = 300.0
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(REPOSITORY),
}
RAY = str(Path(sys.executable).parent / "ray")


class Hosts:
    """A head and nodes, each a process tree with its own network, /dev/shm and Ray folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._network("up", str(len(NODES) + 1))
        options = ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"]
        self._start(HEAD, options)
        time.sleep(8)
        for host in NODES:
            self.start_node(host)

    def _network(self, *arguments: str) -> None:
        subprocess.run([str(NETS), *arguments], check=True)

    def _start(self, host: int, options: list[str]) -> None:
        own = [f"--node-ip-address=10.77.0.{host}", "--block", "--disable-usage-stats"]
        command = [str(NETS), "exec", str(host), RAY, "start", *options, *own]
        with (self._folder / f"host-{host}.log").open("ab") as log:
            environment = os.environ | SETTINGS
            self._running[host] = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def start_node(self, host: int) -> None:
        """One slot for a worker."""
        self._start(host, [f"--address={ADDRESS}", "--num-cpus=1"])

    def cut(self, host: int) -> None:
        self._network("cut", str(host))

    def heal(self, host: int) -> None:
        self._network("heal", str(host))

    def ended(self, host: int) -> bool:
        """Whether the node's processes have given up."""
        return self._running[host].poll() is not None

    def end(self, host: int) -> None:
        """All processes of a host."""
        process = self._running[host]
        for child in reversed(psutil.Process(process.pid).children(recursive=True)):
            with_pid(child.pid, signal.SIGKILL)
        process.kill()
        process.wait()

    def inside(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """A process on the head's host, which sees what the head sees."""
        first = psutil.Process(self._running[HEAD].pid).children()[0]
        entered = [
            "nsenter",
            "-t",
            str(first.pid),
            "-n",
            "-m",
            "-p",
            "-u",
            f"--wd={REPOSITORY}",
            *command,
        ]
        with log.open("ab") as output:
            return subprocess.Popen(
                entered, stdout=output, stderr=output, env=os.environ | SETTINGS
            )

    def close(self) -> None:
        for host in self._running:
            if not self.ended(host):
                self.end(host)
        self._network("down")


def with_pid(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


class Run:
    """The training's driver on the head's host and what it has written."""

    def __init__(self, hosts: Hosts, recipe: Path, output: Path, log: Path) -> None:
        self._hosts, self.output, self._log = hosts, output, log
        command = [sys.executable, "-m", "launchers.cli", "train", str(recipe)]
        command += ["--workers", str(len(NODES)), "--min-workers", "1", "--max-failures", "100"]
        self._command = [*command, "--address", ADDRESS]
        self.start()

    def start(self) -> None:
        self.process = self._hosts.inside(self._command, self._log)

    def starts(self) -> list[dict[str, Any]]:
        from ifsq_train.metrics.jsonl import read_jsonl

        return read_jsonl(self.output / "starts.jsonl")

    def wait_for_step(self, step: int) -> None:
        self.wait(lambda: steps_logged(self.output) >= step, f"step {step}")

    def wait_for_world(self, size: int, after: int) -> dict[str, Any]:
        """The first start with this many workers beyond the first `after` starts."""
        self.wait(
            lambda: any(s["world_size"] == size for s in self.starts()[after:]),
            f"a start with {size} workers",
        )
        return next(s for s in self.starts()[after:] if s["world_size"] == size)

    def wait(self, true: Any, what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not true():
            if self.process.poll() is not None:
                raise SystemExit(f"the driver ended with {self.process.returncode}: {self._log}")
            if time.monotonic() > deadline:
                raise SystemExit(f"no {what} within {LIMIT:.0f} s: {self._log}")
            time.sleep(0.1)


def measured(run: Run, what: str, size: int, began: float, step: int, known: int) -> None:
    """Wait for the group of that size and print what the change cost."""
    start = run.wait_for_world(size, known)
    run.wait_for_step(start["first_step"] + 1)
    facts = {
        "what": what,
        "workers": size,
        "seconds_to_next_step": round(time.time() - began, 1),
        "steps_repeated": max(0, step - start["first_step"]),
    }
    print(json.dumps(facts), flush=True)


def cut_and_heal(hosts: Hosts, run: Run) -> None:
    """A node vanishes from the network and comes back."""
    victim = NODES[-1]
    run.wait_for_step(steps_logged(run.output) + 30)
    known, began = len(run.starts()), time.time()
    hosts.cut(victim)
    step = steps_logged(run.output)
    measured(run, "link cut", len(NODES) - 1, began, step, known)
    run.wait_for_step(steps_logged(run.output) + 30)
    known, began = len(run.starts()), time.time()
    hosts.heal(victim)
    run.wait(lambda: hosts.ended(victim), "end of the node that was given up")
    print(json.dumps({"what": "healed node gives up after", "seconds": time.time() - began}))
    step = steps_logged(run.output)
    hosts.start_node(victim)
    measured(run, "link healed, node back", len(NODES), began, step, known)


def drain(hosts: Hosts, run: Run, folder: Path) -> None:
    """Ray is told that a node will be taken away in a minute."""
    victim = NODES[0]
    run.wait_for_step(steps_logged(run.output) + 30)
    node = node_id(hosts, f"10.77.0.{victim}", folder)
    known, began = len(run.starts()), time.time()
    command = [RAY, "drain-node", f"--address={ADDRESS}", f"--node-id={node}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
    command += ["--deadline-remaining-seconds=60"]
    code = hosts.inside(command, folder / "drain.log").wait(60)
    if code:
        raise SystemExit(f"ray drain-node ended with {code}: {folder / 'drain.log'}")
    step = steps_logged(run.output)
    measured(run, "node drained", len(NODES) - 1, began, step, known)
    hosts.end(victim)


def node_id(hosts: Hosts, address: str, folder: Path) -> str:
    """Ray's name of the node at an address."""
    code = (
        f"import json, ray; ray.init(address={ADDRESS!r}, log_to_driver=False);"
        "print('NODES', json.dumps({n['NodeManagerAddress']: n['NodeID'] for n in ray.nodes()}))"
    )
    log = folder / "nodes.log"
    log.unlink(missing_ok=True)
    hosts.inside([sys.executable, "-c", code], log).wait(60)
    line = next(line for line in log.read_text().splitlines() if line.startswith("NODES"))
    return json.loads(line.removeprefix("NODES "))[address]


def stop_driver(run: Run) -> None:
    """SIGTERM saves and ends; the same command goes on."""
    run.wait_for_step(steps_logged(run.output) + 30)
    known, began = len(run.starts()), time.time()
    inner = psutil.Process(run.process.pid).children(recursive=True)
    driver = next(p for p in inner if "launchers.cli" in shlex.join(p.cmdline()))
    driver.send_signal(signal.SIGTERM)
    code = run.process.wait(120)
    step = steps_logged(run.output)
    facts = {"what": "SIGTERM to the driver", "exit_code": code, "at_step": step}
    print(json.dumps(facts | {"seconds_to_end": round(time.time() - began, 1)}), flush=True)
    began = time.time()
    run.start()
    measured(run, "same command again", len(NODES) - 1, began, step, known)


@contextmanager
def hosts_at(folder: Path) -> Iterator[Hosts]:
    hosts = Hosts(folder)
    try:
        yield hosts
    finally:
        hosts.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        report(folder)


def report(folder: Path) -> None:
    from ifsq_train.config.load import load_recipe
    from launchers.local import train_locally

    parts = prepare(folder)
    output = folder / "disturbed"
    with hosts_at(folder) as hosts:
        recipe = write_recipe(parts, folder, output, 10**6)
        run = Run(hosts, recipe, output, folder / "driver.log")
        cut_and_heal(hosts, run)
        drain(hosts, run, folder)
        stop_driver(run)
        run.wait_for_step(steps_logged(output) + 30)
    total = steps_logged(output)
    recipe = write_recipe(parts, folder, folder / "undisturbed", total)
    train_locally(load_recipe(str(recipe)))  # type: ignore[arg-type]
    worst, whole = compare(folder / "undisturbed", output)
    print(f"{total} steps, every one logged once: {whole}")
    print(f"largest relative difference of a loss from the undisturbed run: {worst:.1e}")


if __name__ == "__main__":
    main()
