"""Token shards in a real object store: two runs at once, a line that fails; the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.storage.open import open_storage
from ifsq_train.config import PrecomputeConfig
from ifsq_train.precompute.job import run_precompute_local
from tests.support.precompute_parts import make_parts
from tests.support.repository import REPOSITORY
from tests.support.s3_server import environment, flaky_proxy, s3_server

RUN = """
import sys
from ifsq_train.config import PrecomputeConfig
from ifsq_train.precompute.job import run_precompute_local
run_precompute_local(PrecomputeConfig.model_validate_json(sys.argv[1]), device="cpu")
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server with the images in a bucket, and the environment of its clients."""
    with s3_server(tmp_path_factory.mktemp("s3")) as client, environment(client):
        yield client


@pytest.fixture(scope="module")
def job(client: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe without its output."""
    folder = tmp_path_factory.mktemp("parts")
    parts = make_parts(folder)
    source, local = open_storage("s3://tokens/images"), open_storage(parts["source"])
    for path in local.list():
        source.write(path, local.read(path))
    return {**parts, "source": source.url, "samples_per_shard": 1}


@pytest.fixture(scope="module")
def undisturbed(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of a run on a local disk."""
    folder = str(tmp_path_factory.mktemp("undisturbed") / "tokens")
    run_precompute_local(PrecomputeConfig.model_validate({**job, "output": folder}), device="cpu")
    return published(folder)


def published(url: str) -> dict[str, bytes]:
    storage = open_storage(url)
    return {path: storage.read(path) for path in storage.list()}


def start(job: dict[str, Any], output: str) -> subprocess.Popen[str]:
    config = PrecomputeConfig.model_validate({**job, "output": output})
    return subprocess.Popen(
        [sys.executable, "-c", RUN, config.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        text=True,
    )


@pytest.mark.slow
def test_two_runs_of_one_job_at_the_same_time(
    job: dict[str, Any], undisturbed: dict[str, bytes]
) -> None:
    runs = [start(job, "s3://tokens/twice") for _ in range(2)]
    for run in runs:
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0, output
    assert published("s3://tokens/twice") == undisturbed


@pytest.mark.slow
def test_storage_that_fails_and_cuts_and_stalls(
    shared_dir: Path, client: dict[str, str], job: dict[str, Any], undisturbed: dict[str, bytes]
) -> None:
    tool = shared_dir / "tools" / "flaky_proxy.py"
    with flaky_proxy(tool, client) as proxy:
        proxy.set(p503=0.1, ptrunc=0.05, pstall=0.005)
        run = start(job, "s3://tokens/flaky")
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 0, output
        assert proxy.set()["e503"] > 0, "the proxy did nothing"
    assert published("s3://tokens/flaky") == undisturbed
