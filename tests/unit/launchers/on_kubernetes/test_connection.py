"""Wrong contexts, logins, addresses, names: one line each that says what to mend."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from launchers.cli.program import app
from launchers.on_kubernetes.api_errors import NoCluster
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.rayjob_rules import check_rayjob
from tests.support.kube_api import Api, make_job
from tests.support.ranks import free_port

SUBMIT = ["submit", "demo/tokenizer", "--image", "i", "--nodes", "2", "--no-wait"]


@pytest.fixture
def config(api: Api, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Changes the kubeconfig's only cluster or user."""

    def change(part: str, values: dict[str, Any]) -> None:
        path = api.kubeconfig()
        found = yaml.safe_load(path.read_text())
        found[f"{part}s"][0][part] = values
        path.write_text(yaml.safe_dump(found))
        monkeypatch.setenv("KUBECONFIG", str(path))

    return change


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["no-such-login-program"], "No such file or directory: 'no-such-login-program'"),
        (["sh", "-c", "echo please log in >&2; exit 1"], "please log in"),
        (["echo", "{}"], "exec: "),
    ],
)
def test_a_login_program_that_fails_is_not_taken_for_an_expired_login(
    config: Any, caplog: pytest.LogCaptureFixture, command: list[str], said: str
) -> None:
    """The client logs it and asks on as nobody, which the server then answers with 401."""
    version = "client.authentication.k8s.io/v1"
    program = {"apiVersion": version, "command": command[0], "args": command[1:]}
    config("user", {"exec": program | {"interactiveMode": "Never"}})
    with pytest.raises(UserError, match="login program of the kubeconfig's user failed") as error:
        KubernetesCluster.connect()
    assert said in str(error.value)
    assert not caplog.records
    assert not logging.getLogger().filters


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("http://127.0.0.1:{free}", "connection refused"),
        ("https://127.0.0.1:{own}", "TLS: "),
        ("https://no-such-host.invalid", "the name of its host is not known here"),
    ],
)
def test_why_no_server_answers(api: Api, config: Any, server: str, said: str) -> None:
    config("cluster", {"server": server.format(free=free_port(), own=api.port)})
    with pytest.raises(NoCluster, match="is it the right --context") as error:
        KubernetesCluster.connect().list_jobs()
    assert f"cannot be reached ({said}" in str(error.value)


def test_a_kubeconfig_that_names_a_missing_file_is_not_called_missing(
    config: Any, tmp_path: Path
) -> None:
    """A dry run without any cluster is not refused; this one has a cluster."""
    missing = str(tmp_path / "ca.crt")
    config("cluster", {"server": "https://127.0.0.1:1", "certificate-authority": missing})
    with pytest.raises(UserError, match=r"kubeconfig .* cannot be used .*ca\.crt") as error:
        KubernetesCluster.connect()
    assert not isinstance(error.value, NoCluster)


@pytest.mark.parametrize(
    "image", ["Name:1", "https://r.example/i:1", "a b:1", "i:", "i@sha256:12", "r.example/Org/i"]
)
def test_an_image_that_no_kubelet_can_read_is_refused(image: str) -> None:
    with pytest.raises(UserError, match=r"image '.*' is not allowed"):
        check_rayjob(make_job(image=image))


@pytest.mark.parametrize(
    "image", ["i", "r.example:5000/a/b_c__d-e:1.2-x", "[::1]:5000/a", f"a/b@sha256:{'0a' * 32}"]
)
def test_images_as_registries_name_them(image: str) -> None:
    check_rayjob(make_job(image=image))


def submitted(*words: str) -> str:
    done = CliRunner().invoke(app, [*SUBMIT, *words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_a_claim_or_queue_that_is_not_there_is_said_at_once(api: Api) -> None:
    """Both may be made later, so the job is taken; whoever may not look is told nothing."""
    where = ["--storage", "dta", "--queue", "ifsqq"]
    queue = {"metadata": {"name": "ifsq"}, "spec": {"clusterQueue": "ifsq"}}
    api.kube.create(("kueue.x-k8s.io", "v1beta2", "localqueues"), api.namespace, queue, {})
    shown = submitted(*where, "--dry-run")
    assert "namespace 'team' has no claim 'dta': the job's pods wait" in shown
    assert "has no LocalQueue 'ifsqq' (it has: ifsq): the job waits" in shown
    size = {"requests": {"storage": "1Gi"}}
    claim: dict[str, Any] = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteMany"]},
    }
    claim["spec"]["resources"] = size
    api.kube.create(("", "v1", "persistentvolumeclaims"), api.namespace, claim, {})
    shown = submitted("--storage", "data", "--queue", "ifsq")
    assert " has no " not in shown
    api.kube.deny += [("get", "persistentvolumeclaims"), ("*", "localqueues")]
    assert " has no " not in submitted(*where, "--name", "other")
