"""What `ifsq submit --env` sends as it is given, and what it refuses."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from launchers.cli import app
from launchers.jobs.request import parse_env

SUBMIT = ["submit", "demo/tokenizer", "--to", "ray", "--dry-run"]


@pytest.mark.parametrize(
    "item",
    ["NCCL_DEBUG=INFO", "OMP_NUM_THREADS=4", "AWS_ENDPOINT_URL=https://s3.example.com:9000",
     "TORCH_NCCL_TRACE_BUFFER_SIZE=2000", "TOKENIZERS_PARALLELISM=false", "ANYTHING="],
)  # fmt: skip
def test_harmless_variables_travel(item: str) -> None:
    name, _, value = item.partition("=")
    assert parse_env([item]) == {name: value}


@pytest.mark.parametrize(
    "name",
    ["DATABASE", "MY_SETTING", "WANDB_API_KEY", "HF_TOKEN", "GITHUB_PAT", "AWS_ACCESS_KEY_ID",
     "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "IFSQ_PASSWORD", "nccl_debug", "MYSQL_PWD"],
)  # fmt: skip
def test_other_variables_travel_by_reference_only(name: str) -> None:
    with pytest.raises(UserError, match=f"--secret {name}=SECRET:KEY") as caught:
        parse_env([f"{name}=hunter2"])
    assert "hunter2" not in str(caught.value)
    assert parse_env([f"{name}=hunter2"], plain=True) == {name: "hunter2"}


@pytest.mark.parametrize("plain", [False, True])
def test_a_value_that_is_a_url_with_credentials_is_refused(plain: bool) -> None:
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL: a URL may not hold cred") as caught:
        parse_env(["AWS_ENDPOINT_URL=https://me:hunter2@s3.example.com"], plain=plain)
    assert "hunter2" not in str(caught.value)


def test_what_is_no_assignment_is_not_shown() -> None:
    with pytest.raises(UserError, match="is not KEY=VALUE") as caught:
        parse_env(["hunter2 is my password"])
    assert "hunter2" not in str(caught.value)


def test_the_option_says_that_all_may_travel() -> None:
    refused = CliRunner().invoke(app, [*SUBMIT, "--env", "MY_SETTING=1"])
    assert isinstance(refused.exception, UserError)
    assert "--env-plain" in str(refused.exception)
    done = CliRunner().invoke(app, [*SUBMIT, "--env", "MY_SETTING=1", "--env-plain"])
    assert done.exit_code == 0, done.output
