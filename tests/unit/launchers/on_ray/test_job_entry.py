"""What runs inside a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from data_pipelines.errors import DataError, UserError
from ifsq_train.config import LaunchConfig, TrainConfig, to_dict
from ifsq_train.config.load import load_recipe
from ifsq_train.config.paths import with_absolute_paths
from ifsq_train.training.failure import FailureLog
from launchers.jobs.request import JobRequest, check_request, parse_storage, recipe_text
from launchers.on_ray import job_entry
from launchers.on_ray.failure import TrainingFailed, explain
from launchers.on_ray.job_entry import log_tail, run_job, run_recipe


def test_outside_a_job_it_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IFSQ_RECIPE", raising=False)
    with pytest.raises(UserError, match="`ifsq submit` starts this command"):
        run_job()


def test_recipe_and_worker_group_arrive_and_paths_are_below_the_storage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = load_recipe("demo/tokenizer")
    request = JobRequest("tok", recipe, nodes=2, gpus_per_node=8)
    for key, value in request.job_environment(96.0).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("IFSQ_WORKDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[object, LaunchConfig]] = []
    monkeypatch.setattr(job_entry, "run_recipe", lambda r, launch: seen.append((r, launch)) or "")
    run_job()
    ((arrived, launch),) = seen
    assert isinstance(arrived, TrainConfig)
    assert arrived.output == str(tmp_path / "runs/demo/tokenizer")
    assert arrived.data.url == str(tmp_path / "runs/demo/data/train")
    assert (arrived.steps, arrived.seed) == (350, 0)
    assert (launch.num_workers, launch.gpus_per_worker, launch.cpus_per_worker) == (16, 1, 12.0)


@pytest.mark.parametrize("name", ["demo/tokenizer", "demo/generator", "demo/tokens"])
def test_absolute_paths_leave_everything_else_alone(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["output=s3://bucket/x"] if name == "demo/tokens" else [])
    changed = to_dict(with_absolute_paths(recipe, tmp_path))
    text = json.dumps(changed).replace(f"{tmp_path}/", "")
    assert json.loads(text) == to_dict(recipe)
    assert to_dict(with_absolute_paths(recipe, tmp_path))["output"].startswith(("/", "s3://"))


def test_the_end_of_a_ranks_log_is_shown(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    lines = [f"line {n}" for n in range(100)]
    (tmp_path / "logs" / "rank-00003.log").write_text("\n".join(lines))
    assert log_tail(tmp_path, 3) == lines[-20:]
    assert log_tail(tmp_path, 4) == []


def test_the_log_of_the_rank_that_failed_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    FailureLog(tmp_path, "launch").record("attempt", 1, RuntimeError("out of luck"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-00001.log").write_text("the last words")

    def train(*_: object) -> None:
        raise explain(tmp_path, "launch", RuntimeError("as Ray says it"))

    monkeypatch.setattr("launchers.on_ray.train.train_on_ray", train)
    recipe = load_recipe("demo/tokenizer", [f"output={tmp_path}"])
    with pytest.raises(TrainingFailed, match="rank 1 failed first") as failed:
        run_recipe(recipe, LaunchConfig())
    assert failed.value.rank == 1
    assert "rank 1 | the last words" in capsys.readouterr().err


def test_a_users_error_keeps_its_class_on_the_way_from_a_rank(tmp_path: Path) -> None:
    for launch, kind in (("first", DataError), ("second", UserError)):
        FailureLog(tmp_path, launch).record("attempt", 0, kind("damaged"))
        assert type(explain(tmp_path, launch, RuntimeError())) is kind


def test_a_working_folder_that_a_node_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in JobRequest("t", load_recipe("demo/tokenizer")).job_environment(1).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("IFSQ_WORKDIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none, .* is not a folder on this node; .*--workdir"):
        run_job()


def test_a_recipe_kubernetes_would_change_is_refused() -> None:
    recipe = load_recipe("demo/tokenizer", ["output=runs/$(HOME)"])
    with pytest.raises(UserError, match=r"'\$\('"):
        recipe_text(recipe)
    assert yaml.safe_load(recipe_text(load_recipe("demo/tokenizer")))["kind"] == "train"


def test_a_batch_that_does_not_split_is_found_before_submitting() -> None:
    with pytest.raises(UserError, match="global_batch_size"):
        check_request(JobRequest("x", load_recipe("demo/tokenizer"), nodes=3, gpus_per_node=3))


def test_evaluation_runs_on_one_worker_and_sampling_on_all() -> None:
    check_request(JobRequest("x", load_recipe("demo/samples"), nodes=2))
    recipe = load_recipe("demo/evaluation")
    with pytest.raises(UserError, match="one worker"):
        check_request(JobRequest("x", recipe, nodes=2))


@pytest.mark.parametrize("text", ["", ":/a", "Claim", "a:b", "a:/b c"])
def test_wrong_storage_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--storage"):
        parse_storage(text)
    assert parse_storage("data") == ("data", "/mnt/ifsq")
    assert parse_storage("data:/x") == ("data", "/x")
