"""The commands against a Kubernetes API: what a user sees when things go right and wrong."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from launchers.cli.program import app
from launchers.jobs.verdict import JobFailed
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.follow import follow_job
from launchers.on_kubernetes.logs import PodLog, is_noise
from launchers.on_kubernetes.objects import RayJob
from tests.support.kube_api import Api, in_background, make_job, run_through

pytestmark = pytest.mark.heavy

SUBMIT = ["submit", "demo/tokenizer", "--image", "i", "--storage", "data", "--nodes", "2"]


def follow(cluster: KubernetesCluster, name: str) -> tuple[list[str], str | None]:
    """What the user sees, and why the job failed if it did."""
    lines: list[str] = []
    try:
        follow_job(cluster, name, lines.append)
    except JobFailed as error:
        return lines, str(error)
    return lines, None


def test_submit_watches_to_the_end(api: Api) -> None:
    operator = in_background(lambda: run_through(api, "demo-tokenizer"))
    done = CliRunner().invoke(app, SUBMIT)
    operator.join()
    assert done.exit_code == 0, done.output
    for text in ("starting", "running", "step 1", "step 2", "succeeded"):
        assert text in done.output


def test_dry_run_is_checked_by_the_server_and_keeps_nothing(api: Api) -> None:
    done = CliRunner().invoke(app, [*SUBMIT, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "the cluster would accept this job in namespace 'team'" in done.output
    assert "kind: RayJob" in done.output
    assert not api.kube.obj


def test_without_wait_it_says_how_to_return(api: Api) -> None:
    done = CliRunner().invoke(app, [*SUBMIT, "--no-wait", "--name", "mine"])
    assert done.exit_code == 0, done.output
    assert "ifsq logs mine --follow" in done.output
    listed = CliRunner().invoke(app, ["jobs"])
    assert re.search(r"^mine .*2  starting$", listed.output, re.MULTILINE)


def test_a_queued_job_says_where_it_waits(api: Api) -> None:
    CliRunner().invoke(app, [*SUBMIT, "--no-wait", "--name", "mine", "--queue", "lab"])
    shown = CliRunner().invoke(app, ["status", "mine"])
    assert re.search(r"phase +queued", shown.output)
    assert re.search(r"queue +lab", shown.output)


def test_a_name_is_taken_once(api: Api, cluster: KubernetesCluster) -> None:
    cluster.submit(make_job())
    with pytest.raises(UserError, match=r"a job 'tok' exists already.*another --name"):
        cluster.submit(make_job())


def test_cancel_deletes_the_job_and_a_watch_says_so(api: Api, cluster: KubernetesCluster) -> None:
    cluster.submit(make_job())
    other = KubernetesCluster.connect()
    operator = in_background(lambda: (time.sleep(0.5), other.cancel("tok"))[0])
    _, failure = follow(cluster, "tok")
    operator.join()
    assert failure == "job 'tok' was deleted before it finished"
    with pytest.raises(UserError, match="no job 'tok' in namespace 'team'; `ifsq jobs`"):
        cluster.cancel("tok")


def test_jobs_of_others_are_not_cancelled(api: Api, cluster: KubernetesCluster) -> None:
    foreign = make_job().to_manifest()
    foreign["metadata"]["labels"] = {}
    api.kube.create(("ray.io", "v1", "rayjobs"), "team", foreign, {})
    with pytest.raises(UserError, match="not submitted by `ifsq submit`"):
        cluster.cancel("tok")
    assert cluster.list_jobs() == []


def test_forbidden_names_the_right_that_is_missing(api: Api, cluster: KubernetesCluster) -> None:
    api.kube.deny.append(("create", "rayjobs"))
    with pytest.raises(UserError, match=r"may not create RayJobs in namespace 'team' \(403\)"):
        cluster.submit(make_job())


def test_an_expired_login_is_named(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(token="expired")))
    with pytest.raises(UserError, match=r"does not know you \(401\).*log in again"):
        KubernetesCluster.connect().submit(make_job())


def test_a_used_up_quota_is_not_called_a_missing_right(
    api: Api, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = (
        'rayjobs.ray.io "tok" is forbidden: exceeded quota: lab, requested:'
        " count/rayjobs.ray.io=1, used: count/rayjobs.ray.io=4, limited: count/rayjobs.ray.io=4"
    )
    kube_error = type(api.kube).create.__globals__["Err"]

    def refuse(*_: Any) -> None:
        raise kube_error(403, "Forbidden", refusal)

    monkeypatch.setattr(api.kube, "create", refuse)
    with pytest.raises(UserError, match=r"quota is used up.*exceeded quota: lab"):
        cluster.submit(make_job())


def test_what_the_server_refuses_is_told_in_its_words(cluster: KubernetesCluster) -> None:
    class Misspelt(RayJob):
        def to_manifest(self) -> dict[str, Any]:
            manifest = super().to_manifest()
            manifest["spec"]["backofLimit"] = 3
            return manifest

    job = make_job()
    with pytest.raises(UserError, match=r'refuses the job: .*unknown field "spec.backofLimit"'):
        cluster.submit(Misspelt(metadata=job.metadata, spec=job.spec))


def test_a_failed_job_ends_with_reason_and_the_ranks_last_lines(api: Api) -> None:
    def fail() -> None:
        api.wait_for_job("demo-tokenizer")
        log = api.start_submitter("demo-tokenizer", "s1")
        api.set_status("demo-tokenizer", jobDeploymentStatus="Running")
        noise = "".join(f"step {n}\n" for n in range(300))
        log.write_text(
            f"{noise}error: rank 1 failed first: ValueError('loss is NaN')\n"
            "Traceback ...\nrank 1 | last words of rank 1\n"
        )
        time.sleep(0.3)
        api.end_pod("s1", "Failed")
        api.set_status(
            "demo-tokenizer",
            jobDeploymentStatus="Failed",
            reason="AppFailed",
            message="Job entrypoint command failed with exit code 1",
        )

    operator = in_background(fail)
    done = CliRunner().invoke(app, SUBMIT)
    operator.join()
    assert done.exit_code == 1
    verdict = done.output.split("error: job", 1)[1]
    assert "AppFailed: Job entrypoint command failed with exit code 1" in verdict
    assert "rank 1 failed first: ValueError('loss is NaN')" in verdict
    assert "last words of rank 1" in verdict
    assert "step 299" not in verdict


@pytest.mark.slow
def test_an_api_server_that_is_away_is_waited_for(api: Api, cluster: KubernetesCluster) -> None:
    """The line is cut for some seconds, in which the job goes on and ends up saying more."""
    cluster.submit(make_job())
    output = [f"line {n}" for n in range(40)]

    def act() -> None:
        log = api.start_submitter("tok", "s1")
        api.set_status("tok", jobDeploymentStatus="Running")
        log.write_text("\n".join(output[:20]) + "\n")
        time.sleep(0.5)
        api.line.cut()
        time.sleep(2)
        with log.open("a") as file:
            file.write("\n".join(output[20:]) + "\n")
        time.sleep(1)
        api.line.mend()
        time.sleep(2.5)
        api.end_pod("s1", "Succeeded")
        api.set_status("tok", jobDeploymentStatus="Complete")

    operator = in_background(act)
    lines, failure = follow(cluster, "tok")
    operator.join()
    assert failure is None
    assert [line for line in lines if line.startswith("line ")] == output
    told = [line for line in lines if "API server" in line]
    assert len(told) == 2
    assert "cannot be reached" in told[0]
    assert "answers again" in told[1]


def test_patience_ends(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = KubernetesCluster.connect()
    monkeypatch.setattr(cluster, "patience_seconds", 1.0)
    cluster.submit(make_job())
    api.line.cut()
    with pytest.raises(UserError, match="ifsq status tok"):
        follow(cluster, "tok")


def test_a_retried_job_shows_the_output_of_every_attempt(
    api: Api, cluster: KubernetesCluster
) -> None:
    cluster.submit(make_job())

    def act() -> None:
        first = api.start_submitter("tok", "s1")
        api.set_status("tok", jobDeploymentStatus="Running")
        first.write_text("first attempt\n")
        time.sleep(0.5)
        api.end_pod("s1", "Failed")
        api.set_status("tok", jobDeploymentStatus="Retrying", failed=1)
        time.sleep(1.0)
        second = api.start_submitter("tok", "s2")
        api.set_status("tok", jobDeploymentStatus="Running")
        second.write_text("second attempt\n")
        time.sleep(0.5)
        api.end_pod("s2", "Succeeded")
        api.set_status("tok", jobDeploymentStatus="Complete")

    operator = in_background(act)
    lines, failure = follow(cluster, "tok")
    operator.join()
    assert failure is None
    assert [line for line in lines if "attempt" in line and "[tok]" not in line] == [
        "first attempt",
        "second attempt",
    ]
    assert "[tok] retrying (1 failed attempt)" in lines


def test_an_expired_watch_begins_anew(api: Api, cluster: KubernetesCluster) -> None:
    cluster.submit(make_job())
    api.kube.oldest = 10**9  # every resource version is too old

    def act() -> None:
        time.sleep(0.5)
        api.set_status("tok", jobDeploymentStatus="Running")
        time.sleep(0.5)
        api.kube.oldest = 0
        api.set_status("tok", jobDeploymentStatus="Complete")

    operator = in_background(act)
    lines, failure = follow(cluster, "tok")
    operator.join()
    assert failure is None
    assert lines[-1] == "[tok] succeeded"


def test_ctrl_c_detaches_and_says_how_to_return(api: Api) -> None:
    def act() -> None:
        api.wait_for_job("demo-tokenizer")
        time.sleep(0.7)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    in_background(act)
    done = CliRunner().invoke(app, [*SUBMIT, "--namespace", "team"])
    assert done.exit_code == 130
    assert "goes on. Come back with `ifsq logs demo-tokenizer --follow --namespace team`" in (
        done.output
    )
    assert ("ray.io", "v1", "rayjobs", "team", "demo-tokenizer") in api.kube.obj


def test_logs_of_a_finished_job(api: Api) -> None:
    CliRunner().invoke(app, [*SUBMIT, "--no-wait"])
    none_yet = CliRunner().invoke(app, ["logs", "demo-tokenizer"])
    assert isinstance(none_yet.exception, UserError)
    run_through(api, "demo-tokenizer")
    done = CliRunner().invoke(app, ["logs", "demo-tokenizer"])
    assert done.output == "step 1\nstep 2\n"


def test_what_ray_says_about_itself_is_left_out() -> None:
    ray = [
        "2026-11-25 15:22:37,869\tSUCC cli.py:68 -- \x1b[32mJob 'x' submitted successfully\x1b[39m",
        "2026-11-25 15:22:37,622\tINFO job_manager.py:581 -- Runtime env is setting up.",
        "2026-12-01 13:00:39,226\tWARN cli.py:85 -- \x1b[33mJob 'tok-khm8k' was stopped\x1b[39m",
        "Running entrypoint for job plain-508ff: ifsq run-job",
    ]
    own = ["demo  120/600 steps", "error: rank 1 failed first: ...", "INFO: resumed from step 100"]
    assert [line for line in ray + own if not is_noise(line)] == own


def test_a_connection_goes_on_after_the_last_line_by_its_time_stamp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kubelets stamp every line; what a new connection sends again is left out."""
    stamped = [f"2026-11-25T15:00:0{n}.00000000{n}Z line {n}\n".encode() for n in range(6)]
    sent: list[dict[str, Any]] = []

    class Connection:
        def __init__(self, chunks: list[bytes]) -> None:
            self._chunks = chunks

        def stream(self, *_: Any, **__: Any) -> Any:
            return iter(self._chunks)

        def release_conn(self) -> None: ...

        def close(self) -> None: ...

    connections = [Connection([*stamped[:3], stamped[3][:20]]), Connection(stamped[1:])]

    class Core:
        def read_namespaced_pod_log(self, *_: Any, **options: Any) -> Connection:
            sent.append(options)
            return connections[len(sent) - 1]

    class Cluster:
        namespace, core, patience_seconds = "team", Core(), 600.0

        def reach(self, _: str, call: Any, *_what: str) -> Any:
            return call()

    log = PodLog(Cluster(), "p")  # type: ignore[arg-type]
    first = [line for line in log.lines(follow=True) if line.startswith("line")]
    again = list(log.lines(follow=True))
    assert first + again == [f"line {n}" for n in range(6)]
    assert "since_seconds" not in sent[0]
    assert sent[1]["since_seconds"] > 0


def test_status_shows_why_pods_do_not_start(api: Api) -> None:
    CliRunner().invoke(app, [*SUBMIT, "--no-wait"])
    pod = "demo-tokenizer-abcde-workers-worker-fghij"
    api.warn(pod, "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    shown = CliRunner().invoke(app, ["status", "demo-tokenizer"])
    assert "3 Insufficient nvidia.com/gpu" in shown.output


def test_a_watch_tells_once_why_pods_do_not_start(
    api: Api, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.on_kubernetes.follow.REASON_SECONDS", 0.3)
    cluster.submit(make_job())

    def act() -> None:
        for number in range(64):
            pod = f"tok-abcde-workers-worker-{number:05d}"
            api.warn(pod, "0/3 nodes are available", "FailedScheduling")
            api.warn(pod.replace("tok-", "tok-2-"), "of another job", "FailedScheduling")
        time.sleep(4)
        api.set_status("tok", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    operator = in_background(act)
    lines, failure = follow(cluster, "tok")
    operator.join()
    assert failure is None
    assert [re.sub(r"\(\d+\)", "(n)", line) for line in lines] == [
        "[tok] starting",
        "[tok]   worker pods (n): FailedScheduling: 0/3 nodes are available",
        "[tok] succeeded",
    ]


def test_no_cluster_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no Kubernetes cluster is configured"):
        KubernetesCluster.connect()


def test_kubectl_takes_what_a_dry_run_prints(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """For those who keep their jobs in files."""
    monkeypatch.setattr(api.kube, "token", None)  # kubectl sends none without TLS
    kubectl = Path(sys.executable).parent / "kubectl"
    done = CliRunner().invoke(app, [*SUBMIT, "--dry-run", "--queue", "lab"])
    manifest = done.stdout
    command = [str(kubectl), "--kubeconfig", str(api.kubeconfig()), "create", "-f", "-"]
    command += ["--validate=false"]
    created = subprocess.run(command, input=manifest, capture_output=True, text=True, check=False)
    assert created.returncode == 0, created.stderr
    assert created.stdout == "rayjob.ray.io/demo-tokenizer created\n"
    shown = CliRunner().invoke(app, ["status", "demo-tokenizer"])
    assert "lab" in shown.output


def test_a_last_line_without_an_end_is_shown(api: Api, cluster: KubernetesCluster) -> None:
    """A process that dies writes no newline after its last words, which say why."""
    cluster.submit(make_job())

    def act() -> None:
        log = api.start_submitter("tok", "s1")
        api.set_status("tok", jobDeploymentStatus="Running")
        log.write_text("first\nMemoryError: the last words")
        time.sleep(0.3)
        api.end_pod("s1", "Failed")
        api.set_status("tok", jobDeploymentStatus="Failed", reason="AppFailed", message="code 1")

    operator = in_background(act)
    lines, failure = follow(cluster, "tok")
    operator.join()
    assert failure is not None
    assert "MemoryError: the last words" in lines
