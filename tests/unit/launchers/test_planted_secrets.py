"""Secrets of the environment are in nothing that the project writes or shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from launchers.cli import app
from tests.support.precompute_parts import make_parts, tokenizer_recipe

PLANTED = "hunter2-planted"
NAMES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "HF_TOKEN", "IFSQ_API_KEY")


def run(*words: str) -> Any:
    return CliRunner().invoke(app, [*words])


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, PLANTED)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("secrets")
def test_runs_and_reports_hold_none(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "parts")
    recipe = tokenizer_recipe(tmp_path / "run")
    recipe["data"]["url"] = parts["source"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    trained = run("train", "mine.yaml", "--launcher", "local")
    assert trained.exit_code == 0, trained.output
    page = run("report", "run", "--output", "page/report.html")
    assert page.exit_code == 0, page.output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"result.json", "report.html"} <= names
    assert any("checkpoints" in path.parts for path in written)
    for path in written:
        assert PLANTED.encode() not in path.read_bytes(), path
    assert PLANTED not in trained.output + page.output
    assert json.loads((tmp_path / "run/result.json").read_text())["environment"]


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("to", ["k8s", "ray", "local"])
def test_rendered_jobs_hold_none(monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    words = ["submit", "demo/tokenizer", "--to", to, "--dry-run", "--env", "NCCL_DEBUG=INFO"]
    if to == "k8s":
        words += ["--image", "i", "--storage", "data", "--secret", "WANDB_API_KEY=wandb:key"]
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "demo-tokenizer" in done.output
    assert PLANTED not in done.output


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize(
    "words",
    [
        ("config", "show", "demo/tokenizer", "name=${oc.env:HF_TOKEN}"),
        ("config", "validate", "demo/tokenizer", "name=${oc.env:IFSQ_API_KEY}"),
        ("config", "show", "demo/tokenizer", f"data.url=s3://me:{PLANTED}@bucket/x"),
        ("data", "info", f"s3://me:{PLANTED}@bucket/x"),
        ("data", "verify", f"https://example.com/x?token={PLANTED}"),
        ("data", "pack", f"s3://me:{PLANTED}@bucket/x", "out"),
        ("data", "copy", f"s3://me:{PLANTED}@bucket/x", "out"),
        ("data", "copy", "x", f"s3://me:{PLANTED}@bucket/x"),
        ("report", f"https://me:{PLANTED}@example.com/run"),
        ("checkpoint", "verify", f"https://me:{PLANTED}@example.com/run"),
        ("submit", "demo/tokenizer", "--to", "ray", "--env", f"MINE={PLANTED}"),
        ("submit", "demo", "--to", "ray", "--dry-run", f"output=s3://me:{PLANTED}@bucket/x"),
        ("train", f"https://me:{PLANTED}@example.com/recipe.yaml"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_refusals_show_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: tuple[str, ...]
) -> None:
    from launchers.cli.program import main

    monkeypatch.setattr("sys.argv", ["ifsq", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith("error: ")
    assert PLANTED not in said.out + said.err
