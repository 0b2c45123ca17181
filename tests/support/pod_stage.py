"""The stand-in cluster: a bridge, an API server and an operator, and what runs on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ifsq_train.config.load import Recipe, load_recipe
from ifsq_train.metrics.jsonl import read_jsonl
from launchers.first_steps.digits import write_digits
from launchers.jobs.code import CodeBundle
from launchers.jobs.demo import DemoConfig
from launchers.jobs.request import JobRequest
from launchers.jobs.verdict import JobFailed
from launchers.on_kubernetes.access import head_pod
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.describe import describe_job
from launchers.on_kubernetes.follow import follow_job
from launchers.on_kubernetes.profile import ClusterProfile
from launchers.on_kubernetes.submission import submit_job
from launchers.stages import held_out, pack_images
from tests.support.ranks import free_port
from tests.support.repository import REPOSITORY, SHARED

TOOLS = SHARED / "tools"
PORT = free_port()
CLAIM = "data"
NAMESPACE = "default"
PATIENCE = 1800.0
"""Seconds a step of a scenario may take on a busy machine."""


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
        self,
        cluster: KubernetesCluster,
        name: str,
        recipe: Recipe | DemoConfig,
        queue: str | None = None,
        code: CodeBundle | None = None,
    ) -> None:
        """Any recipe on two nodes; with local code the packages of the image are not used."""
        env = {} if code else {"PYTHONPATH": str(REPOSITORY)}
        request = JobRequest(
            name=name,
            recipe=recipe,
            nodes=2,
            image="local",
            queue=queue,
            claim=CLAIM,
            mount=f"/mnt/ifsq-{os.getpid()}",
            env={**env, "OMP_NUM_THREADS": "1"},
            code=code,
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
        submit_job(cluster, request, profile)

    def restart_api_server(self, down: float, unready: float) -> None:
        """Nobody answers for a while, then nobody has any rights; returns when all is well."""
        url = f"http://127.0.0.1:{PORT}/__restart?down={down}&unready={unready}&code=403"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
            answer.read()
        time.sleep(down + unready)

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


def delete_a_pod(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    stage.submit(cluster, "deleted")
    facts: dict[str, Any] = {}

    def disturb() -> None:
        wait_until(lambda: stage.step("deleted") >= stage.steps // 2, PATIENCE, "half way")
        facts["deleted_at_step"] = stage.step("deleted")
        pod = worker_pods(cluster)[-1]
        cluster.core.delete_namespaced_pod(pod, NAMESPACE)
        facts["seconds_to_resume"] = wait_until(
            lambda: len(stage.starts("deleted")) > 1, PATIENCE, "resuming"
        )
        facts["resumed_from_step"] = stage.starts("deleted")[-1]["first_step"]

    return in_parallel(stage, cluster, "deleted", disturb, facts)


def lose_the_head(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    """At once, as with its node: KubeRay makes a new head in the same cluster, which is no failed
    attempt, and its submitter's next pod sends the same job again (raycluster_controller.go,
    shouldDeletePod; common/job.go)."""
    stage.submit(cluster, "headless")
    facts: dict[str, Any] = {"status": []}

    def disturb() -> None:
        wait_until(lambda: stage.step("headless") >= stage.steps * 13 // 20, PATIENCE, "past half")
        facts["lost_at_step"] = stage.step("headless")
        cluster_name = cluster.get("headless")["status"]["rayClusterName"]
        cluster.core.delete_namespaced_pod(
            head_pod(cluster, "headless"), NAMESPACE, grace_period_seconds=0
        )

        def resumed() -> bool:
            _, rows = describe_job(cluster, "headless")
            lines = [f"{key}: {value}" for key, value in rows if key in ("phase", "reason")]
            facts["status"] += [line for line in lines if line not in facts["status"]]
            return len(stage.starts("headless")) > 1

        facts["seconds_to_resume"] = wait_until(resumed, PATIENCE, "resuming")
        resumed()
        facts["resumed_from_step"] = stage.starts("headless")[-1]["first_step"]
        status = cluster.get("headless")["status"]
        facts["same_cluster"] = status["rayClusterName"] == cluster_name
        facts["failed_attempts"] = int(status.get("failed") or 0)

    return in_parallel(stage, cluster, "headless", disturb, facts)


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


def make_a_mistake(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    """Missing data is the user's to mend: one attempt, its message, no retry."""
    began = time.monotonic()
    recipe = load_recipe("demo/tokenizer", ["data.url=runs/nothing", "output=runs/mistake"])
    stage.submit_recipe(cluster, "mistake", recipe)
    outcome = stage.follow(cluster, "mistake")
    job = cluster.get("mistake")
    _, rows = describe_job(cluster, "mistake")
    return {
        "outcome": outcome,
        "seconds": time.monotonic() - began,
        "failed_attempts": int(job["status"].get("failed") or 0),
        "job_status": job["status"].get("jobStatus"),
        "message": [value for key, value in rows if key == "said"],
    }
