"""Jobs through a stand-in for KubeRay and the kubelet, with real Ray nodes in own networks.

Needs root, iproute2, and the reference folder with ``tools/minikuberay.py`` beside the checkout:

    python -m tests.benchmarks.kubernetes.pod_scenarios complete pipeline delete

Each scenario submits the demo's tokenizer stage to two worker pods with the code of `ifsq submit`,
and prints what it measured as one line of JSON:

- complete: nothing happens to it.
- delete: one worker pod is deleted half way; the job must resume and complete.
- suspend: Kueue's way of preempting: suspended half way, later resumed.
- preempt: a worker pod gets SIGTERM; a checkpoint of that very step must be there.
- head: the head pod is deleted past half way; the same attempt must go on with a new head.
- pipeline: after `complete`, its tokenizer's tokens, a generator on them, and samples.
- demo: the whole demo, pack to report, as one job on an empty claim, with local code (`--code`).
- mistake: a recipe whose dataset is not there; it must end with its message after one attempt.
- outage: nobody answers for 25 s and then, for 5 s, nobody has any rights; the job runs on and the
  watcher returns.

Run `complete` first: the losses of the others are compared with its, step by step. How each has to
end, and what the user must have been told, is in `EXPECTED`; the exit code is 1 if one does not.
Reasons that need no running job (quota, images, topology) are in the unit tests.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from ifsq_train.config.load import load_recipe
from launchers.jobs.code import bundle_code
from launchers.jobs.demo import DemoConfig
from launchers.on_kubernetes.cluster import KubernetesCluster
from tests.support.pod_stage import (
    NAMESPACE,
    PATIENCE,
    Stage,
    delete_a_pod,
    in_parallel,
    lose_the_head,
    make_a_mistake,
    wait_until,
    worker_pods,
)
from tests.support.repository import REPOSITORY

OUTAGE_SECONDS, UNREADY_SECONDS = 25, 5


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


def scenario_suspend(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    stage.submit(cluster, "queued", queue="lab")
    facts: dict[str, Any] = {}

    def set_suspended(value: bool) -> None:
        cluster.objects.patch_namespaced_custom_object(
            "ray.io", "v1", NAMESPACE, "rayjobs", "queued", {"spec": {"suspend": value}}
        )

    def disturb() -> None:
        time.sleep(3)
        facts["pods_while_queued"] = len(worker_pods(cluster))
        set_suspended(False)
        wait_until(lambda: stage.step("queued") >= stage.steps // 2, PATIENCE, "half way")
        facts["suspended_at_step"] = stage.step("queued")
        set_suspended(True)
        wait_until(lambda: not worker_pods(cluster), PATIENCE, "workers leaving")
        time.sleep(5)
        set_suspended(False)
        facts["seconds_to_resume"] = wait_until(
            lambda: len(stage.starts("queued")) > 1, PATIENCE, "resuming"
        )
        facts["resumed_from_step"] = stage.starts("queued")[-1]["first_step"]

    return in_parallel(stage, cluster, "queued", disturb, facts)


def scenario_preempt(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    stage.submit(cluster, "preempted")
    facts: dict[str, Any] = {}

    def disturb() -> None:
        # Not at a multiple of the checkpoint interval, so that a checkpoint there has one cause.
        due = stage.steps * 13 // 20
        wait_until(lambda: stage.step("preempted") >= due, PATIENCE, f"step {due}")
        facts["evicted_at_step"] = stage.step("preempted")
        evict(worker_pods(cluster)[-1])
        facts["seconds_to_resume"] = wait_until(
            lambda: len(stage.starts("preempted")) > 1, PATIENCE, "resuming"
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


def scenario_outage(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    stage.submit(cluster, "outage")
    facts: dict[str, Any] = {}

    def disturb() -> None:
        wait_until(lambda: stage.step("outage") >= stage.steps // 4, PATIENCE, "a quarter")
        facts["outage_from_step"] = stage.step("outage")
        stage.restart_api_server(OUTAGE_SECONDS, UNREADY_SECONDS)
        facts["outage_to_step"] = stage.step("outage")

    return in_parallel(stage, cluster, "outage", disturb, facts)


def scenario_demo(stage: Stage, cluster: KubernetesCluster) -> dict[str, Any]:
    """`ifsq submit demo --code .` with short trainings."""
    began = time.monotonic()
    recipe = DemoConfig(output="runs/whole", steps=stage.steps)
    stage.submit_recipe(cluster, "whole", recipe, code=bundle_code(REPOSITORY))
    outcome = stage.follow(cluster, "whole")
    folder = stage.run_folder("whole")
    result = folder / "result.json"
    return {
        "outcome": outcome,
        "seconds": time.monotonic() - began,
        "report": (folder / "report.html").is_file(),
        "stages": sorted(json.loads(result.read_text())["stages"]) if result.is_file() else [],
    }


SCENARIOS = {
    "demo": scenario_demo,
    "mistake": make_a_mistake,
    "complete": scenario_complete,
    "outage": scenario_outage,
    "pipeline": scenario_pipeline,
    "delete": delete_a_pod,
    "head": lose_the_head,
    "suspend": scenario_suspend,
    "preempt": scenario_preempt,
}


EXPECTED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "complete": ({"outcome": "complete"}, [r"\[plain\] starting", r"\[plain\] succeeded"]),
    "delete": (
        {"outcome": "complete", "steps_missing": 0, "worst_loss_difference": 0.0},
        [r"\[deleted\] succeeded"],
    ),
    "head": (
        {
            "outcome": "complete",
            "same_cluster": True,
            "failed_attempts": 0,
            "steps_missing": 0,
            "worst_loss_difference": 0.0,
        },
        [r"\[headless\] succeeded"],
    ),
    "suspend": (
        {
            "outcome": "complete",
            "pods_while_queued": 0,
            "steps_missing": 0,
            "worst_loss_difference": 0.0,
        },
        [r"\[queued\] queued in lab", r"\[queued\] running", r"\[queued\] succeeded"],
    ),
    "preempt": (
        {"outcome": "complete", "steps_missing": 0, "worst_loss_difference": 0.0},
        [r"\[preempted\] succeeded"],
    ),
    "outage": (
        {"outcome": "complete", "starts": 1, "steps_missing": 0, "worst_loss_difference": 0.0},
        [
            r"\[outage\] the API server cannot be reached .*; the job goes on",
            r"\[outage\] the API server answers again",
            r"\[outage\] succeeded",
        ],
    ),
    "pipeline": (
        {"tokens": "complete", "generator": "complete", "samples": "complete"},
        [r"\[tokens\] succeeded", r"\[generator\] succeeded", r"\[samples\] succeeded"],
    ),
    "demo": ({"outcome": "complete", "report": True}, [r"\[whole\] succeeded"]),
    "mistake": (
        {"outcome": "failed", "failed_attempts": 0, "job_status": "STOPPED"},
        [r"error: .*runs/nothing", r"job 'mistake' failed: stopped without a retry"],
    ),
}
"""By scenario: facts that must be so, and lines a user must have seen."""


def faults(name: str, facts: dict[str, Any], shown: list[str]) -> list[str]:
    """What a scenario should have done and has not; losses are compared where both are known."""
    wanted, lines = EXPECTED[name]
    wrong = [
        f"{key} is {facts[key]!r}, not {value!r}"
        for key, value in wanted.items()
        if key in facts and facts[key] != value
    ]
    wrong += [f"{key} is not known" for key in ("outcome",) if key in wanted and key not in facts]
    wrong += [
        f"no line /{pattern}/ was shown"
        for pattern in lines
        if not any(re.search(pattern, line) for line in shown)
    ]
    if facts.get("resumed_from_step", 0) < facts.get("evicted_at_step", 0):
        wrong.append("steps were lost although the pod was told to leave")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenarios", nargs="+", choices=sorted(SCENARIOS))
    parser.add_argument("--base", type=Path, default=Path("/tmp/ifsq-minikuberay"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    options.base.mkdir(parents=True, exist_ok=True)
    stage = Stage(options.base, options.steps)
    stage.prepare()
    failed = False
    for name in options.scenarios:
        stage.shown.clear()
        with stage.running() as cluster:
            facts = {"scenario": name, **SCENARIOS[name](stage, cluster)}
        facts["faults"] = faults(name, facts, stage.shown)
        failed = failed or bool(facts["faults"])
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
