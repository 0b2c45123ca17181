"""The commands of docs/kubernetes.md and docs/monitoring.md, run in their order.

Operators and a registry are not on this machine: the API server is the reference folder's, which
knows the CRDs, and an operator's work is done by the test. Docker's commands are only read.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from launchers.cli.program import app
from launchers.monitoring.prometheus_server import find_prometheus
from launchers.on_kubernetes.profile import ClusterProfile
from tests.support.kube_api import Api, in_background, load_tool, run_through
from tests.support.ranks import free_port
from tests.support.repository import REPOSITORY

pytestmark = pytest.mark.heavy


def commands(page: str) -> list[list[str]]:
    """Every command of the page's bash blocks, as words; lines that go on are joined."""
    text = (REPOSITORY / "docs" / page).read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def api_server(shared_dir: Path) -> Any:
    pytest.importorskip("kubernetes")
    fakekube = load_tool(shared_dir, "fakekube")
    server = fakekube.serve(str(shared_dir / "crds" / "*.json"), 0, token="right")
    yield server
    server.shutdown()


def run_ifsq(words: list[str]) -> Result:
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done


def test_the_jobs_of_the_page(
    api_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Api(api_server, tmp_path, namespace="ml")
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig()))
    shown: dict[str, str] = {}
    for words in commands("kubernetes.md"):
        if words[0] != "ifsq":
            continue
        if words[1] == "submit" and "--dry-run" not in words:
            operator = in_background(lambda: run_through(api, "demo-tokenizer"))
            shown["submit"] = run_ifsq(words).output
            operator.join()
        else:
            shown[words[1]] = run_ifsq(words).output
    assert shown.keys() == {"submit", "jobs", "status", "logs", "cancel"}
    assert "step 2" in shown["submit"]
    assert "succeeded" in shown["jobs"]
    assert "cancelled" in shown["cancel"]
    assert not any(key[2] == "rayjobs" for key in api.kube.obj)


def test_the_charts_commands(helm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    seen = set()
    for words in commands("kubernetes.md"):
        if words[0] != "helm":
            continue
        extra = ["--dry-run=client"] if words[1] == "install" else []
        done = subprocess.run([helm, *words[1:], *extra], capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        seen.add(words[1])
    assert seen == {"lint", "template", "install"}


def test_the_image_is_built_from_files_that_exist() -> None:
    found = [words for words in commands("kubernetes.md") if words[:2] == ["docker", "build"]]
    for words in found:
        assert (REPOSITORY / words[words.index("-f") + 1]).is_file()
    assert found


def test_no_other_program_is_named() -> None:
    """So that a new command cannot stay untested."""
    assert {words[0] for words in commands("kubernetes.md")} == {"docker", "helm", "ifsq"}
    assert {words[0] for words in commands("monitoring.md")} == {"ifsq", "python"}


def test_the_profile_of_the_page_is_valid() -> None:
    text = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    import yaml

    assert ClusterProfile.model_validate(yaml.safe_load(block)).topology is not None


def test_the_commands_of_monitoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grafana_foundation_sdk")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for words in commands("monitoring.md"):
        if words[0] == "ifsq":
            flags = ["--seconds", "0.5"] + (
                ["--port", str(free_port())] if find_prometheus() else []
            )
            run_ifsq([*words, *flags])
        else:
            assert words == ["python", "-m", "k8s.dashboards.build"]
            from k8s.dashboards.build import main

            main(tmp_path)
            assert len(list(tmp_path.glob("*.json"))) == 7


def test_every_metric_is_in_the_documentation() -> None:
    from ifsq_train.metrics.names import METRICS

    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    rows = [f"| `{spec.name}` | {spec.kind} |" for spec in METRICS]
    assert [row for row in rows if row not in text] == []
