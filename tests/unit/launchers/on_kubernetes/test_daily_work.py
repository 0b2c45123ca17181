"""The loop of daily work: versions, local code, resuming, progress, names, the project file."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from launchers.cli.program import app
from launchers.jobs.code import bundle_code
from launchers.jobs.project import project_defaults
from launchers.on_kubernetes.access import node_of_ranks
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.overview import progress_text
from launchers.on_kubernetes.submission import stored_request
from launchers.on_kubernetes.versions import dropped_fields, operator_version, parse_version
from tests.support.kube_api import Api, make_job

SUBMIT = ["submit", "demo/tokenizer", "--image", "i", "--storage", "data", "--nodes", "2"]


def run(*words: str) -> Any:
    return CliRunner().invoke(app, [*words])


def finish(api: Api, name: str = "demo-tokenizer") -> None:
    api.set_status(name, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")


# ------------------------------------------------------------ versions


def test_versions_are_read_from_tags_and_labels() -> None:
    def deployment(image: str, **labels: str) -> dict[str, Any]:
        template = {"spec": {"containers": [{"image": image}]}}
        return {"metadata": {"labels": labels}, "spec": {"template": template}}

    assert operator_version(deployment("quay.io/kuberay/operator:v1.7.0")) == (1, 7, 0)
    assert operator_version(deployment("r:5000/op:1.4.2@sha256:ab")) == (1, 4, 2)
    label = {"app.kubernetes.io/version": "1.6.1"}
    assert operator_version(deployment("r:5000/op@sha256:ab", **label)) == (1, 6, 1)
    assert operator_version(deployment("op:nightly")) == ()
    assert parse_version("v1.34.0-stub") == (1, 34, 0)


def test_fields_a_crd_drops_are_named() -> None:
    """API servers before 1.27 prune unknown fields without a word."""
    sent = {"a": {"b": 1, "c": [{"d": 2}]}, "e": False}
    assert dropped_fields(sent, {"a": {"b": 1, "c": [{"d": 2, "x": 1}]}}) == []
    assert dropped_fields(sent, {"a": {"c": [{}]}}) == ["spec.a.b", "spec.a.c[0].d"]


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/version", {"gitVersion": "v1.27.3"}, r"Kubernetes 1\.27\.3; 1\.30 or newer"),
        ("/apis", {"groups": []}, r"does not serve ray\.io/v1: install KubeRay 1\.5\.1"),
    ],
)
def test_a_cluster_that_is_too_old_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str, answer: dict[str, Any], message: str
) -> None:
    read = KubernetesCluster.read_path

    def changed(self: KubernetesCluster, asked: str, what: str, **query: str) -> Any:
        return answer if asked == path else read(self, asked, what, **query)

    monkeypatch.setattr(KubernetesCluster, "read_path", changed)
    done = run(*SUBMIT, "--dry-run")
    assert isinstance(done.exception, UserError)
    assert done.exception.args[0]
    with pytest.raises(UserError, match=message):
        raise done.exception
    if path == "/version":
        assert run(*SUBMIT, "--dry-run", "--allow-unsupported").exit_code == 0


# ------------------------------------------------------------ code


def package(folder: Path, text: str = "x = 1\n") -> Path:
    (folder / "plug").mkdir(parents=True)
    (folder / "plug" / "__init__.py").write_text(text)
    (folder / "plug" / "__pycache__").mkdir()
    (folder / "plug" / "__pycache__" / "a.py").write_text("")
    (folder / "plug" / "recipe.yaml").write_text("a: 1\n")
    (folder / "notes.md").write_text("no code")
    return folder


def test_code_is_packed_by_content(tmp_path: Path) -> None:
    first = bundle_code(package(tmp_path / "a"))
    assert bundle_code(package(tmp_path / "b")) == first
    assert bundle_code(package(tmp_path / "c", "x = 2\n")).digest != first.digest
    data = io.BytesIO(base64.b64decode(first.text))
    with tarfile.open(fileobj=data, mode="r:xz") as tar:
        assert tar.getnames() == ["plug/__init__.py", "plug/recipe.yaml"]


def test_code_that_does_not_fit_or_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no Python package"):
        bundle_code(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        bundle_code(tmp_path / "none")
    monkeypatch.setattr("launchers.jobs.code.MAX_TEXT_BYTES", 10)
    with pytest.raises(UserError, match="a job carries 10 at most"):
        bundle_code(package(tmp_path / "a"))


def test_code_travels_in_a_config_map_that_goes_with_the_job(api: Api, tmp_path: Path) -> None:
    done = run(*SUBMIT, "--no-wait", "--code", str(package(tmp_path / "a")))
    assert done.exit_code == 0, done.output
    job = api.kube.obj["ray.io", "v1", "rayjobs", "team", "demo-tokenizer"]
    maps = [o for key, o in api.kube.obj.items() if key[2] == "configmaps"]
    (owner,) = maps[0]["metadata"]["ownerReferences"]
    assert owner["uid"] == job["metadata"]["uid"]
    for group in ("headGroupSpec", "workerGroupSpecs"):
        spec = job["spec"]["rayClusterSpec"][group]
        pod = (spec[0] if isinstance(spec, list) else spec)["template"]["spec"]
        assert pod["initContainers"][0]["name"] == "unpack-code"
        env = {v["name"]: v.get("value") for v in pod["containers"][0]["env"]}
        assert env["PYTHONPATH"] == "/opt/ifsq-code"
        names = {v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v}
        assert names == {maps[0]["metadata"]["name"]}
    digest = job["metadata"]["annotations"]["ifsq.dev/code"]
    assert f"code       {digest}" in run("status", "demo-tokenizer").output


def test_a_job_whose_code_cannot_be_sent_is_not_left_behind(api: Api, tmp_path: Path) -> None:
    api.kube.deny.append(("create", "configmaps"))
    done = run(*SUBMIT, "--no-wait", "--code", str(package(tmp_path / "a")))
    assert isinstance(done.exception, UserError)
    assert "may not create ConfigMaps" in str(done.exception)
    assert not any(key[2] == "rayjobs" for key in api.kube.obj)


# ------------------------------------------------------------ resume, names, clean


def test_a_finished_job_resumes_under_a_new_name(api: Api) -> None:
    run(*SUBMIT, "--no-wait", "--env", "NCCL_DEBUG=INFO", "--secret", "W=s:k")
    refused = run("resume", "demo-tokenizer", "--no-wait")
    assert "has not finished" in str(refused.exception)
    finish(api)
    done = run("resume", "demo-tokenizer", "--no-wait")
    assert done.exit_code == 0, done.output
    jobs = {key[4]: o for key, o in api.kube.obj.items() if key[2] == "rayjobs"}
    assert jobs.keys() == {"demo-tokenizer", "demo-tokenizer-2"}
    old, new = stored_request(jobs["demo-tokenizer"]), stored_request(jobs["demo-tokenizer-2"])
    assert new[1] == old[1]
    assert new[0].recipe == old[0].recipe
    assert (new[0].env, new[0].secrets, new[0].claim) == (old[0].env, old[0].secrets, old[0].claim)


def test_a_taken_name_gets_a_number_when_asked_for(api: Api) -> None:
    run(*SUBMIT, "--no-wait")
    taken = run(*SUBMIT, "--no-wait")
    assert "--suffix" in str(taken.exception)
    assert "job 'demo-tokenizer-2' submitted" in run(*SUBMIT, "--no-wait", "--suffix").stderr


def test_records_of_finished_jobs_are_removed_and_others_kept(api: Api) -> None:
    run(*SUBMIT, "--no-wait")
    run(*SUBMIT, "--no-wait", "--name", "runs-on")
    finish(api)
    assert run("jobs", "--clean", "--older-than-hours", "24").stderr == ""
    done = run("jobs", "--clean")
    assert "job 'demo-tokenizer' removed" in done.stderr
    assert "runs-on" in done.stdout
    assert "demo-tokenizer" not in done.stdout


# ------------------------------------------------------------ jobs


def test_progress_comes_from_the_jobs_own_line() -> None:
    lines = ["start", "demo  120/600 steps  4.1 steps/s  eta 1m57s  loss 0.03  goodput 0.93", "x"]
    assert progress_text(lines) == "20% of 600 steps, eta 1m57s, goodput 0.93"
    assert progress_text(["precompute  5/10 views"]) == "50% of 10 views"
    assert progress_text(["nothing 3/4"]) == ""


def test_jobs_shows_progress_and_what_a_waiting_job_waits_for(api: Api) -> None:
    run(*SUBMIT, "--no-wait", "--name", "one")
    run(*SUBMIT, "--no-wait", "--name", "two")
    log = api.start_submitter("one", "one-abcde")
    log.write_text("demo  120/600 steps  4.1 steps/s  eta 1m57s\n")
    api.set_status("one", jobDeploymentStatus="Running", jobStatus="RUNNING")
    api.warn("two-abcde-head-xyz12", "0/3 nodes are available", "FailedScheduling")
    listed = run("jobs").stdout.splitlines()
    assert any(line.startswith("one ") and "20% of 600 steps" in line for line in listed)
    assert any(line.startswith("two ") and "0/3 nodes" in line for line in listed)


# ------------------------------------------------------------ the rest


def test_defaults_come_from_the_nearest_project_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profile.yaml").write_text("cpus_per_node: '2'\n")
    values = {"namespace": "ml", "image": "r/i:1", "storage": ["data"], "profile": "profile.yaml"}
    (tmp_path / ".ifsq.yaml").write_text(yaml.safe_dump(values))
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    found = project_defaults(inner)
    assert (found.namespace, found.image, found.storage) == ("ml", "r/i:1", ("data",))
    assert found.profile == str(tmp_path / "profile.yaml")
    monkeypatch.chdir(inner)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("IFSQ_IMAGE", raising=False)
    job = yaml.safe_load(run("submit", "demo/tokenizer", "--dry-run").stdout)
    assert job["metadata"]["namespace"] == "ml"
    (tmp_path / ".ifsq.yaml").write_text("namespaces: ml\n")
    with pytest.raises(UserError, match="namespaces"):
        project_defaults(inner)


def test_the_demo_is_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    words = ["submit", "demo", "--image", "i", "--storage", "data", "--dry-run"]
    job = yaml.safe_load(run(*words, "output=runs/d").stdout)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    env = {v["name"]: v.get("value") for v in head["env"]}
    assert yaml.safe_load(env["IFSQ_RECIPE"])["kind"] == "demo"
    wrong = run(*words, "outputs=x")
    assert "it takes output, images, steps" in str(wrong.exception)


def test_ranks_are_found_by_the_first_of_their_node() -> None:
    text = (
        '/m/runs/a/metrics_endpoint.json:[{"targets": ["tok-w-1:9464"], "labels": {}}]\n'
        '/m/runs/a/metrics_endpoint-00008.json:[{"targets": ["tok-w-2:9464"], "labels": {}}]\n'
    )
    assert node_of_ranks(text) == {0: "tok-w-1", 8: "tok-w-2"}


def test_two_claims_need_two_places() -> None:
    done = run(*SUBMIT, "--storage", "other", "--dry-run")
    assert "two claims at /mnt/ifsq" in str(done.exception)


def test_a_job_without_a_stored_request_says_so() -> None:
    job = make_job().to_manifest()
    job["metadata"]["annotations"] = {}
    with pytest.raises(UserError, match="use `ifsq submit` again"):
        stored_request(job)


def test_plug_ins_of_a_job_are_asked_for_and_not_run_here() -> None:
    """Anybody who may submit to the namespace could have put code into it."""
    job = make_job().to_manifest()
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"].append({"name": "IFSQ_PLUGINS", "value": "anything"})
    with pytest.raises(UserError, match="give them again with --plugin FILE"):
        stored_request(job)
