"""Precompute on Ray: whatever is killed, the bytes are those of one undisturbed process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import UserError
from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.verify import verify_tokens
from data_pipelines.work_items import WorkItem
from ifsq_train.precompute.job import preflight, run_precompute_local
from launchers.on_ray.actor_pool import MAX_DEATHS_PER_ITEM, ActorPool
from launchers.on_ray.cluster import ray_session
from launchers.on_ray.precompute import ENCODER_WORDS, precompute_on_ray
from tests.support.precompute_parts import (
    NUM_IMAGES,
    NUM_VIEWS,
    configure,
    make_parts,
    published_bytes,
)

TAG = "IFSQ_TEST_PRECOMPUTE"
"""Environment variable by which a test finds the processes it started, and no others."""
DRIVER = """
import json, os, signal, sys
from ifsq_train.config import PrecomputeConfig
from launchers.on_ray.precompute import precompute_on_ray

def on_item(done, total, rows):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

config = PrecomputeConfig.model_validate_json(sys.argv[1])
report = precompute_on_ray(config, num_actors=2, on_item=on_item)
print(json.dumps([report.items_done, report.items_skipped, "ray" in sys.modules]))
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One image per item, so that there is something left whatever is killed."""
    return make_parts(tmp_path_factory.mktemp("precompute")) | {"samples_per_shard": 1}


@pytest.fixture(scope="module")
def undisturbed(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "tokens"
    run_precompute_local(configure(parts, folder), device="cpu")
    return folder


@pytest.fixture(scope="module")
def ray_running() -> Iterator[Any]:
    """One local cluster for the tests that disturb only actors."""
    os.environ[TAG] = f"{os.getpid()}"
    with ray_session(None, min_cpus=2) as ray:
        yield ray
    del os.environ[TAG]


def tagged_processes(tag: str, title: str) -> list[int]:
    """Processes whose environment has the tag and whose command line the title."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            tagged = f"{TAG}={tag}".encode() in (folder / "environ").read_bytes().split(b"\0")
            titled = title.encode() in (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        if tagged and titled:
            found.append(int(folder.name))
    return found


def run_driver(parts: dict[str, Any], folder: Path, tag: str, kill_at: int) -> Any:
    """Precompute in a process of its own, which kills itself after some items."""
    config = configure(parts, folder).model_dump_json()
    return subprocess.run(
        [sys.executable, "-c", DRIVER, config, str(kill_at)],
        env=os.environ | {TAG: tag},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_killed_driver_leaves_what_the_next_one_finishes(
    parts: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    folder, tag = tmp_path / "tokens", f"driver-{os.getpid()}"
    killed = run_driver(parts, folder, tag, kill_at=5)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    made = len(open_storage(folder).list("shards/"))
    assert 5 <= made < NUM_IMAGES
    assert not (folder / "tokens.json").exists()

    done = run_driver(parts, folder, tag, kill_at=-1)
    assert done.returncode == 0, done.stderr
    items_done, items_skipped, _ = json.loads(done.stdout.splitlines()[-1])
    assert items_done + items_skipped == NUM_IMAGES
    assert items_skipped >= 5
    assert published_bytes(folder) == published_bytes(undisturbed)

    deadline = time.monotonic() + 30
    while (left := tagged_processes(tag, "ray::EncoderActor")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == [], "encoders of a killed driver live on"


def test_finished_dataset_does_not_start_ray(parts: dict[str, Any], undisturbed: Path) -> None:
    before = published_bytes(undisturbed)
    done = run_driver(parts, undisturbed, "finished", kill_at=-1)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, NUM_IMAGES, False]
    assert published_bytes(undisturbed) == before


def test_killed_actor_is_replaced(
    ray_running: Any, parts: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    calls: list[tuple[int, int, int]] = []

    def on_item(done: int, total: int, rows: int) -> None:
        calls.append((done, total, rows))
        if done == 3:
            os.kill(tagged_processes(os.environ[TAG], "ray::EncoderActor")[0], signal.SIGKILL)

    config = configure(parts, tmp_path / "tokens")
    report = precompute_on_ray(config, num_actors=2, on_item=on_item)
    rows = NUM_IMAGES * NUM_VIEWS
    assert (report.rows, report.missing_rows, report.duplicate_rows) == (rows, 0, 0)
    assert report.actor_restarts == 1
    assert calls == [(i + 1, NUM_IMAGES, NUM_VIEWS * (i + 1)) for i in range(NUM_IMAGES)]
    assert verify_tokens(tmp_path / "tokens").ok
    assert published_bytes(tmp_path / "tokens") == published_bytes(undisturbed)


def test_users_mistake_in_an_actor_is_one_line(
    ray_running: Any, parts: dict[str, Any], tmp_path: Path
) -> None:
    """Damage that only reading the images shows."""
    broken = tmp_path / "dataset"
    broken.mkdir()
    for name, data in published_bytes(Path(parts["source"])).items():
        (broken / name).parent.mkdir(exist_ok=True)
        (broken / name).write_bytes(bytes(len(data)) if name.endswith(".tar") else data)
    config = configure(parts, tmp_path / "tokens", source=str(broken))
    with pytest.raises(UserError, match="the dataset or the decoder is broken") as error:
        precompute_on_ray(config, num_actors=2)
    assert "\n" not in str(error.value)


def test_folder_of_another_job_is_refused(parts: dict[str, Any], undisturbed: Path) -> None:
    with pytest.raises(UserError, match="view_seed: 0, not 1"):
        precompute_on_ray(configure(parts, undisturbed, view_seed=1), num_actors=2)


def test_item_that_ends_every_actor_is_named(
    ray_running: Any, parts: dict[str, Any], tmp_path: Path
) -> None:
    spec = preflight(configure(parts, tmp_path))

    @ray_running.remote
    class Dying:
        def open(self) -> Any:
            return spec

        def make(self, _: WorkItem) -> None:
            os._exit(1)

    pool = ActorPool(ray_running, Dying.remote, 1, ENCODER_WORDS)
    with pytest.raises(UserError, match=r"images 5 to 5 ended their encoder 3 times"):
        list(pool.make([WorkItem(5, 5, 1)]))
    assert pool.restarts == MAX_DEATHS_PER_ITEM - 1
    pool.close()


def test_actors_that_cannot_open_end_the_run(ray_running: Any) -> None:
    @ray_running.remote
    class NeverOpening:
        def open(self) -> None:
            os._exit(1)

    pool = ActorPool(ray_running, NeverOpening.remote, 1, ENCODER_WORDS)
    with pytest.raises(UserError, match="3 encoders in a row died while opening"):
        pool.opened()
    pool.close()


def test_report_of_a_finished_dataset_is_that_of_the_run(
    parts: dict[str, Any], undisturbed: Path
) -> None:
    config = configure(parts, undisturbed)
    report = precompute_on_ray(config, num_actors=1)
    assert report.rows == report.expected_rows == NUM_IMAGES * NUM_VIEWS
    assert report.digest == TokenDataset.open(undisturbed).digest
