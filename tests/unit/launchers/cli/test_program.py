"""What `ifsq` itself offers, whatever the command."""

from __future__ import annotations

from importlib import metadata

import pytest
from typer.testing import CliRunner

from launchers.cli.program import app


@pytest.mark.parametrize(
    ("revision", "shown"), [("0123456789ab-dirty", " (0123456789ab-dirty)"), (None, "")]
)
def test_the_version_is_shown_with_the_commit_of_a_checkout(
    monkeypatch: pytest.MonkeyPatch, revision: str | None, shown: str
) -> None:
    monkeypatch.setattr("ifsq_train.versions.source_revision", lambda: revision)
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"ifsq {metadata.version('ifsq-train')}{shown}\n")


def test_a_shell_can_ask_for_completions() -> None:
    asked = {"_IFSQ_COMPLETE": "complete_bash", "COMP_WORDS": "ifsq pre", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], prog_name="ifsq", env=asked)
    assert done.output.split() == ["precompute"]


def test_what_cannot_train_is_not_submitted() -> None:
    job = ["demo/tokenizer", "task.model.quantizer.alpha=1e9", "data.url=d", "output=o"]
    refused = CliRunner().invoke(app, ["submit", *job, "--to", "k8s", "--dry-run", "--name", "a"])
    assert "alpha: found 1000000000.0, so large that" in str(refused.exception)
