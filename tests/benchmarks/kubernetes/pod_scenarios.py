"""Jobs through a stand-in for KubeRay and the kubelet, with real Ray nodes in own networks.

Needs root, iproute2, and the reference folder with ``tools/minikuberay.py`` beside the checkout:

    python tests/benchmarks/kubernetes/pod_scenarios.py complete pipeline delete

Each scenario submits the demo's tokenizer stage to two worker pods with the code of `ifsq submit`,
and prints what it measured as one line of JSON:

- complete: nothing happens to it.
- delete: one worker pod is deleted half way; the job must resume and complete.
- suspend: Kueue's way of preempting: suspended half way, later resumed.
- preempt: a worker pod gets SIGTERM; a checkpoint of that very step must be there.
- pipeline: after `complete`, its tokenizer's tokens, a generator on them, and samples.
- outage: the API server is stopped for 30 s half way; the job runs on, the watcher returns.

Run `complete` first: the losses of the others are compared with its, step by step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.recipe import Recipe, load_recipe
from launchers.cluster_profile import ClusterProfile
from launchers.demo_data import held_out, write_digits
from launchers.job_follow import JobFailed, follow_job
from launchers.job_request import JobRequest
from launchers.kubernetes import KubernetesCluster
from launchers.rayjob import build_rayjob
from launchers.stages import pack_images

REPOSITORY = Path(__file__).resolve().parents[3]
TOOLS = REPOSITORY.parent / "shared" / "tools"
PORT = 18765
OUTAGE_SECONDS = 30
CLAIM = "data"
NAMESPACE = "default"


class Stage:
    """The stand-in cluster and the job's folder on its storage."""

    def __init__(self, base: Path, steps: int) -> None:
        self.base, self.steps = base, steps
        self.storage = base / "pvc" / CLAIM
        self.shown: list[str] = []

    def prepare(self) -> None:
        """The demo's dataset on the claim."""
        if (self.storage / "runs/demo/data/train").is_dir():
            return
        write_digits(self.base / "digits")
        pack_images(
            self.base / "digits",
            str(self.storage / "runs/demo/data/train"),
            shard_bytes=1 << 20,
            seed=0,
            max_bad_samples=0,
            keep=lambda name: not held_out(name),
        )

    @contextmanager
    def running(self) -> Iterator[KubernetesCluster]:
        """Bridge, API server and operator for the duration of a block."""
        made = bridge_missing()
        if made:
            subprocess.run([TOOLS / "nets.sh", "up", "0"], check=True)
        env = {
            **os.environ,
            "MK_BASE": str(self.base),
            "MK_VENV_BIN": str(Path(sys.executable).parent),
        }
        log = (self.base / "minikuberay.log").open("ab")
        self.operator = operator = subprocess.Popen(
            [sys.executable, TOOLS / "minikuberay.py", str(PORT)], env=env, stdout=log, stderr=log
        )
        try:
            yield self._connect()
        finally:
            operator.terminate()
            try:
                operator.wait(30)
            except subprocess.TimeoutExpired:
                operator.kill()
            self._end_leftovers()
            if made:
                subprocess.run([TOOLS / "nets.sh", "down"], check=False)

    def _connect(self) -> KubernetesCluster:
        path = self.base / "kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{PORT}"}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        os.environ["KUBECONFIG"] = str(path)
        cluster = KubernetesCluster.connect()
        wait_until(lambda: answers(cluster), 60, "the API server answers")
        return cluster

    def _end_leftovers(self) -> None:
        """Processes of pods, which are in network namespaces of their own (named pod*)."""
        for name in namespaces():
            done = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            for pid in done.stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            subprocess.run(["ip", "netns", "del", name], check=False)

    def submit(self, cluster: KubernetesCluster, name: str, queue: str | None = None) -> None:
        """As `ifsq submit demo/tokenizer --nodes 2 --storage data` does."""
        overrides = [f"name={name}", f"output=runs/{name}", f"steps={self.steps}"]
        overrides += [f"checkpoint.every_steps={self.steps // 2}", "log_every_steps=1"]
        self.submit_recipe(cluster, name, load_recipe("demo/tokenizer", overrides), queue)

    def submit_recipe(
        self, cluster: KubernetesCluster, name: str, recipe: Recipe, queue: str | None = None
    ) -> None:
        """Any recipe on two nodes."""
        request = JobRequest(
            name=name,
            recipe=recipe,
            nodes=2,
            image="local",
            queue=queue,
            claim=CLAIM,
            mount=f"/mnt/ifsq-{os.getpid()}",
            env={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )
        profile = ClusterProfile(
            cpus_per_node="1",
            memory_per_node="2Gi",
            shm_size="512Mi",
            head_cpus="1",
            head_memory="2Gi",
            backoff_limit=1,
            ttl_seconds_after_finished=0,
        )
        cluster.submit(build_rayjob(request, profile, NAMESPACE))

    def run_folder(self, name: str) -> Path:
        return self.storage / "runs" / name

    def step(self, name: str) -> int:
        """Last logged step."""
        records = read_jsonl(self.run_folder(name) / "metrics.jsonl")
        return int(records[-1]["step"]) if records else 0

    def losses(self, name: str) -> dict[int, float]:
        """Loss by step; a step that was repeated after a restart counts as repeated."""
        records = read_jsonl(self.run_folder(name) / "metrics.jsonl")
        return {int(record["step"]): float(record["loss"]) for record in records}

    def starts(self, name: str) -> list[dict[str, Any]]:
        return read_jsonl(self.run_folder(name) / "starts.jsonl")

    def follow(self, cluster: KubernetesCluster, name: str) -> str:
        """Watch to the end as `ifsq submit` does; returns how it ended."""
        try:
            follow_job(cluster, name, self.say)
        except JobFailed as error:
            self.say(str(error))
            return "failed"
        return "complete"

    def say(self, line: str) -> None:
        self.shown.append(line)
        sys.stderr.write(f"{line}\n")


def answers(cluster: KubernetesCluster) -> bool:
    from data_pipelines.errors import UserError

    try:
        cluster.list_jobs()
    except UserError:
        return False
    return True


def bridge_missing() -> bool:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return "hostsw" not in listed.stdout.split()


def namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    return [name for name in names if name.startswith("pod")]


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until `true`; fails after a while."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - began


def worker_pods(cluster: KubernetesCluster) -> list[str]:
    found = cluster.read(
        "workers",
        lambda **options: cluster.core.list_namespaced_pod(
            NAMESPACE, label_selector="ray.io/node-type=worker", **options
        ),
    )
    pods = (found or {}).get("items", [])
    return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]


def scenario_complete(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    began = time.monotonic()
    stage.submit(cluster, "plain")
    outcome = stage.follow(cluster, "plain")
    return {"outcome": outcome, "seconds": time.monotonic() - began}


def scenario_pipeline(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    """After `complete`: its tokenizer's tokens, a generator on them, samples; a job each."""
    jobs = {
        "tokens": ["source=runs/demo/data/train", "tokenizer=runs/plain", "output=runs/tokens"],
        "generator": [
            "data.url=runs/tokens",
            "data.tokenizer=runs/plain",
            "output=runs/generator",
            f"steps={stage.steps}",
        ],
        "samples": ["generator=runs/generator", "tokenizer=runs/plain", "output=runs/samples"],
    }
    facts: dict[str, Any] = {}
    for name, overrides in jobs.items():
        began = time.monotonic()
        stage.submit_recipe(cluster, name, load_recipe(f"demo/{name}", overrides))
        facts[name] = stage.follow(cluster, name)
        facts[f"{name}_seconds"] = time.monotonic() - began
    tokens = json.loads((stage.storage / "runs/tokens/tokens.json").read_text())
    facts["rows"], facts["expected_rows"] = tokens["num_rows"], tokens["expected_rows"]
    return facts


def scenario_delete(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    stage.submit(cluster, "deleted")
    facts: dict[str, Any] = {}

    def disturb() -> None:
        wait_until(lambda: stage.step("deleted") >= stage.steps // 2, 300, "half way")
        facts["deleted_at_step"] = stage.step("deleted")
        pod = worker_pods(cluster)[-1]
        cluster.core.delete_namespaced_pod(pod, NAMESPACE)
        facts["seconds_to_resume"] = wait_until(
            lambda: len(stage.starts("deleted")) > 1, 300, "resuming"
        )
        facts["resumed_from_step"] = stage.starts("deleted")[-1]["first_step"]

    return in_parallel(stage, cluster, "deleted", disturb, facts)


def scenario_suspend(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    stage.submit(cluster, "queued", queue="lab")
    facts: dict[str, Any] = {}

    def set_suspended(value: bool) -> None:
        cluster._objects.patch_namespaced_custom_object(
            "ray.io", "v1", NAMESPACE, "rayjobs", "queued", {"spec": {"suspend": value}}
        )

    def disturb() -> None:
        time.sleep(3)
        facts["pods_while_queued"] = len(worker_pods(cluster))
        set_suspended(False)
        wait_until(lambda: stage.step("queued") >= stage.steps // 2, 300, "half way")
        facts["suspended_at_step"] = stage.step("queued")
        set_suspended(True)
        wait_until(lambda: not worker_pods(cluster), 120, "workers leaving")
        time.sleep(5)
        set_suspended(False)
        facts["seconds_to_resume"] = wait_until(
            lambda: len(stage.starts("queued")) > 1, 300, "resuming"
        )
        facts["resumed_from_step"] = stage.starts("queued")[-1]["first_step"]

    return in_parallel(stage, cluster, "queued", disturb, facts)


def scenario_preempt(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    stage.submit(cluster, "preempted")
    facts: dict[str, Any] = {}

    def disturb() -> None:
        # Not at a multiple of the checkpoint interval, so that a checkpoint there has one cause.
        wait_until(lambda: stage.step("preempted") >= 130, 300, "step 130")
        facts["evicted_at_step"] = stage.step("preempted")
        evict(worker_pods(cluster)[-1])
        facts["seconds_to_resume"] = wait_until(
            lambda: len(stage.starts("preempted")) > 1, 300, "resuming"
        )
        facts["resumed_from_step"] = stage.starts("preempted")[-1]["first_step"]
        facts["steps_lost"] = facts["evicted_at_step"] - facts["resumed_from_step"]

    return in_parallel(stage, cluster, "preempted", disturb, facts)


def evict(pod: str) -> None:
    """The kubelet's first signal to a pod: SIGTERM to its first process."""
    for process in psutil.process_iter(["environ"]):
        if not (process.info["environ"] or {}).get("HOME", "").endswith(pod):
            continue
        status = Path(f"/proc/{process.pid}/status").read_text()
        inside = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
        if len(inside) > 1 and inside[-1] == "1":
            process.send_signal(signal.SIGTERM)
            return
    raise RuntimeError(f"no first process of pod {pod}")


def in_parallel(
    stage: Stage,
    cluster: KubernetesCluster,
    name: str,
    disturb: Callable[[], None],
    facts: dict[str, Any],
) -> dict[str, Any]:
    began = time.monotonic()
    thread = threading.Thread(target=disturb)
    thread.start()
    facts["outcome"] = stage.follow(cluster, name)
    thread.join()
    facts |= {"seconds": time.monotonic() - began, "starts": len(stage.starts(name))}
    return facts | compared(stage.losses("plain"), stage.losses(name))


def compared(expected: dict[int, float], found: dict[int, float]) -> dict[str, Any]:
    """Worst relative difference of two loss curves over the steps of the first."""
    if not expected:
        return {}
    both = sorted(expected.keys() & found.keys())
    worst = max((abs(found[step] / expected[step] - 1), step) for step in both)
    return {
        "steps_missing": len(expected) - len(both),
        "worst_loss_difference": worst[0],
        "worst_at_step": worst[1],
        "last_loss": found[both[-1]],
        "last_loss_undisturbed": expected[both[-1]],
    }


def scenario_outage(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    stage.submit(cluster, "outage")
    facts: dict[str, Any] = {}

    def disturb() -> None:
        wait_until(lambda: stage.step("outage") >= stage.steps // 4, 300, "a quarter")
        facts["outage_from_step"] = stage.step("outage")
        stage.operator.send_signal(signal.SIGSTOP)
        time.sleep(OUTAGE_SECONDS)
        stage.operator.send_signal(signal.SIGCONT)
        facts["outage_to_step"] = stage.step("outage")

    return in_parallel(stage, cluster, "outage", disturb, facts)


SCENARIOS = {
    "complete": scenario_complete,
    "outage": scenario_outage,
    "pipeline": scenario_pipeline,
    "delete": scenario_delete,
    "suspend": scenario_suspend,
    "preempt": scenario_preempt,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenarios", nargs="+", choices=sorted(SCENARIOS))
    parser.add_argument("--base", type=Path, default=Path("/tmp/ifsq-minikuberay"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    options.base.mkdir(parents=True, exist_ok=True)
    stage = Stage(options.base, options.steps)
    stage.prepare()
    for name in options.scenarios:
        with stage.running() as cluster:
            facts = {"scenario": name, **SCENARIOS[name](stage, cluster)}
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
