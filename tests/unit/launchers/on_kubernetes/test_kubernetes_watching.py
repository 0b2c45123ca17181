"""Watching survives a restarting API server; nothing aborts when output is a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from launchers.cli.program import app
from launchers.jobs.verdict import JobFailed
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.follow import follow_job
from tests.support.kube_api import Api, in_background, make_job, run_through
from tests.support.repository import REPOSITORY

pytestmark = pytest.mark.heavy

SUBMIT = ["submit", "demo/tokenizer", "--image", "i", "--storage", "data", "--nodes", "2"]


def follow(cluster: KubernetesCluster, name: str) -> tuple[list[str], str | None]:
    lines: list[str] = []
    try:
        follow_job(cluster, name, lines.append)
    except JobFailed as error:
        return lines, str(error)
    return lines, None


@pytest.mark.parametrize("code", [401, 403])
def test_a_restarting_server_that_knows_nobody_is_waited_for(
    api: Api, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A new API server refuses known users until its authorizer has read the roles."""
    monkeypatch.setattr("launchers.on_kubernetes.watching.WATCH_SECONDS", 1)
    cluster.submit(make_job())

    def act() -> None:
        log = api.start_submitter("tok", "s1")
        api.set_status("tok", jobDeploymentStatus="Running", jobStatus="RUNNING")
        log.write_text("before\n")
        time.sleep(1.5)
        api.restart(down=0.5, unready=3, code=code)
        time.sleep(6)
        with log.open("a") as file:
            file.write("after\n")
        time.sleep(1)
        api.end_pod("s1", "Succeeded")
        api.set_status("tok", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    operator = in_background(act)
    lines, failure = follow(cluster, "tok")
    operator.join()
    assert failure is None
    assert [line for line in lines if line in ("before", "after")] == ["before", "after"]
    assert lines[-1] == "[tok] succeeded"


def test_access_that_is_taken_away_for_good_ends_the_watch(
    api: Api, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.jobs.patience.REFUSAL_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr("launchers.on_kubernetes.watching.WATCH_SECONDS", 1)
    cluster.submit(make_job())
    in_background(lambda: (time.sleep(0.5), api.kube.deny.append(("*", "rayjobs")))[0])
    with pytest.raises(UserError, match=r"may not get RayJobs in namespace 'team' \(403\)"):
        follow(cluster, "tok")


def test_only_the_callers_thread_speaks(api: Api, cluster: KubernetesCluster) -> None:
    """A daemon thread inside a write to standard output makes the interpreter abort (SIGABRT) when
    it ends; so threads hand over what they read."""
    cluster.submit(make_job())
    operator = in_background(lambda: run_through(api, "tok"))
    speakers = set[str]()
    follow_job(cluster, "tok", lambda _: speakers.add(threading.current_thread().name))
    operator.join()
    assert speakers == {threading.current_thread().name}


def test_leaving_while_output_flows_into_a_slow_pipe_is_no_abort(api: Api) -> None:
    """Ctrl-C while the reader of the pipe is slower than the job."""
    KubernetesCluster.connect().submit(make_job())
    log = api.start_submitter("tok", "s1")
    api.set_status("tok", jobDeploymentStatus="Running", jobStatus="RUNNING")
    log.write_text("".join(f"line {n} {'x' * 200}\n" for n in range(20_000)))
    command = [sys.executable, "-m", "launchers.cli", "logs", "tok", "--follow"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1.5)  # the pipe is full now, and a write into it waits
        process.send_signal(signal.SIGINT)
        while os.read(process.stdout.fileno(), 1 << 12):
            time.sleep(0.002)  # a slow reader: some thread is always inside a write
        _, errors = process.communicate(timeout=120)
    assert b"Fatal Python error" not in errors
    assert process.returncode == 130, errors
    assert b"detached; job 'tok' goes on" in errors


def test_a_wrong_context_is_called_that(api: Api) -> None:
    done = CliRunner().invoke(app, ["jobs", "--context", "prod"])
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == "the kubeconfig has no context 'prod'; it has: test"


def test_a_dry_run_the_cluster_refuses_is_an_error(api: Api) -> None:
    api.kube.deny.append(("create", "rayjobs"))
    done = CliRunner().invoke(app, [*SUBMIT, "--dry-run"])
    assert isinstance(done.exception, UserError)
    assert "may not create RayJobs" in str(done.exception)


def test_a_dry_run_of_a_taken_name_is_an_error(api: Api, cluster: KubernetesCluster) -> None:
    cluster.submit(make_job(name="demo-tokenizer"))
    done = CliRunner().invoke(app, [*SUBMIT, "--dry-run"])
    assert isinstance(done.exception, UserError)
    assert "exists already" in str(done.exception)


def test_a_dry_run_without_a_cluster_still_checks_and_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = CliRunner().invoke(app, [*SUBMIT, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "not checked by a cluster" in done.stderr
    assert yaml.safe_load(done.stdout)["kind"] == "RayJob"


def test_a_stopped_job_failed_and_says_that_it_is_not_retried(api: Api) -> None:
    """KubeRay: STOPPED is Complete, with no retry; a user's mistake ends a job this way."""
    CliRunner().invoke(app, [*SUBMIT, "--no-wait"])
    log = api.start_submitter("demo-tokenizer", "s1")
    log.write_text("start\nerror: data/train: there is no dataset here\n")
    api.end_pod("s1", "Succeeded")
    api.set_status("demo-tokenizer", jobDeploymentStatus="Complete", jobStatus="STOPPED", failed=0)
    shown = CliRunner().invoke(app, ["status", "demo-tokenizer"])
    assert shown.exit_code == 1
    assert "stopped without a retry" in shown.output
    assert "error: data/train: there is no dataset here" in shown.output
    followed = CliRunner().invoke(app, ["logs", "demo-tokenizer", "--follow"])
    assert followed.exit_code == 1
    assert "there is no dataset here" in followed.output.split("error: job", 1)[1]


def test_an_operator_that_is_not_there_is_noticed(
    api: Api, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.on_kubernetes.reasons.UNNOTICED_SECONDS", 0)
    cluster.submit(make_job())
    shown = CliRunner().invoke(app, ["status", "tok"])
    assert "is the KubeRay operator running" in shown.output


def test_pods_that_are_ready_without_a_submission_are_noticed(
    api: Api, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KubeRay says only in its own log that it cannot reach or find the dashboard."""
    monkeypatch.setattr("launchers.on_kubernetes.reasons.STUCK_SECONDS", 0)
    cluster.submit(make_job())
    api.set_status("tok", jobDeploymentStatus="Initializing", rayClusterName="tok-abcde")
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    earlier = {"ifsq.dev/job": "tok", "ray.io/cluster": "tok-fghij"}
    api.add_pod("tok-fghij-head-xyz12", earlier, conditions=[ready])
    before = CliRunner().invoke(app, ["status", "tok"])
    assert "does not submit" not in before.output
    labels = {"ifsq.dev/job": "tok", "ray.io/cluster": "tok-abcde"}
    api.add_pod("tok-abcde-head-xyz12", labels, conditions=[ready])
    shown = CliRunner().invoke(app, ["status", "tok"])
    assert "KubeRay does not submit the job" in shown.output


def test_a_job_stops_itself_at_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from launchers.on_ray import refusal

    stopped: list[Any] = []
    handlers: list[Any] = []
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    class Client:
        def __init__(self, address: str) -> None:
            stopped.append(address)

        def stop_job(self, job_id: str) -> None:
            stopped.append(job_id)
            handlers.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", Client)
    settings = json.dumps({"metadata": {"job_submission_id": "tok-abcde"}})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", settings)
    monkeypatch.delenv("IFSQ_STOP_ON_REFUSAL", raising=False)
    assert refusal.stop_own_job(0) is False
    monkeypatch.setenv("IFSQ_STOP_ON_REFUSAL", "1")
    try:
        assert refusal.stop_own_job(0) is True
    finally:
        after = signal.signal(signal.SIGTERM, before)
    assert stopped == [refusal.DASHBOARD, "tok-abcde"]
    assert handlers == [signal.SIG_DFL], "the mistake is the job's last word"
    assert after is not signal.SIG_DFL
