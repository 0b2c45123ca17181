"""`ifsq data copy`: what arrives, what is not sent again, and claims through a helper pod."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data_pipelines.copying import StoragePlace, copy_files
from data_pipelines.errors import DataError
from data_pipelines.storage.open import open_storage
from launchers.cli.program import app
from tests.support.kube_api import POD, Api, in_background
from tests.support.pod_exec import ExecLine


def dataset(folder: Path) -> Path:
    """Two shards in a folder, an empty file and a manifest."""
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "a.tar").write_bytes(os.urandom(100_000))
    (folder / "shards" / "b.tar").write_bytes(os.urandom(50_000))
    (folder / "empty").write_bytes(b"")
    (folder / "dataset.json").write_text("{}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def place(folder: Path) -> StoragePlace:
    return StoragePlace(open_storage(str(folder)))


def test_a_copy_is_equal_and_nothing_is_sent_twice(tmp_path: Path) -> None:
    source, target = dataset(tmp_path / "a"), tmp_path / "b"
    said: list[str] = []
    first = copy_files(place(source), place(target), said.append)
    assert content(target) == content(source)
    assert (first.files, first.sent) == (4, 4)
    assert "dataset.json" in said[-1]
    again = copy_files(place(source), place(target), said.append)
    assert (again.sent, again.sent_bytes) == (0, 0)


def test_what_differs_is_sent_again_although_its_size_is_right(tmp_path: Path) -> None:
    source, target = dataset(tmp_path / "a"), tmp_path / "b"
    copy_files(place(source), place(target), print)
    (target / "shards" / "a.tar").write_bytes(bytes(100_000))
    done = copy_files(place(source), place(target), print)
    assert done.sent == 1
    assert content(target) == content(source)


def test_a_copy_that_arrives_changed_is_an_error(tmp_path: Path) -> None:
    class Lossy(StoragePlace):
        def put(self, path: str, source: Path) -> None:
            source.write_bytes(source.read_bytes()[:-1] + b"?")
            super().put(path, source)

    source = dataset(tmp_path / "a")
    with pytest.raises(DataError, match="the copy has SHA-256"):
        copy_files(place(source), Lossy(open_storage(str(tmp_path / "b"))), print)
    assert not (tmp_path / "b" / "dataset.json").exists()


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no files"):
        copy_files(place(tmp_path / "a"), place(tmp_path / "b"), print)


@pytest.fixture
def claim(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A claim whose helper pods run at once; kubectl's commands in them run on this machine."""
    folder = tmp_path / "claim"
    folder.mkdir()
    monkeypatch.setattr("launchers.on_kubernetes.claim_place.MOUNT", str(folder))
    api.line = ExecLine(api.port)
    monkeypatch.setattr(api.kube, "token", None)  # kubectl sends none without TLS
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig()))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def run_pods() -> None:
        for _ in range(2000):
            for key in [k for k in list(api.kube.obj) if k[:3] == POD]:
                pod = api.kube.obj.get(key, {})
                if (pod.get("status") or {}).get("phase") == "Pending":
                    api._change(key, {"phase": "Running"})
            time.sleep(0.05)

    in_background(run_pods)
    return folder


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["data", "copy", *words, "--image", "r/i:1"])


def test_a_folder_goes_to_a_claim_and_back(claim: Path, api: Api, tmp_path: Path) -> None:
    source = dataset(tmp_path / "a")
    done = run(str(source), "claim://data/sets/x")
    assert done.exit_code == 0, (done.output, done.exception)
    assert content(claim / "sets" / "x") == content(source)
    back = run("claim://data/sets/x", str(tmp_path / "back"))
    assert back.exit_code == 0, (back.output, back.exception)
    assert content(tmp_path / "back") == content(source)
    assert not any(key[:3] == POD for key in api.kube.obj)


def test_a_half_written_file_of_a_claim_is_none(claim: Path, tmp_path: Path) -> None:
    source = dataset(tmp_path / "a")
    (claim / "x" / "shards").mkdir(parents=True)
    (claim / "x" / "shards" / "a.tar.part").write_bytes(b"half")
    assert run(str(source), "claim://data/x").exit_code == 0
    assert content(claim / "x") == content(source)


@pytest.mark.parametrize(
    ("url", "message"),
    [("claim://", "is not claim://CLAIM/PATH"), ("claim://data/../x", "is not claim://CLAIM/PATH")],
)
def test_wrong_claims_are_refused(tmp_path: Path, url: str, message: str) -> None:
    done = run(str(tmp_path), url)
    assert message in str(done.exception)


def test_a_claim_needs_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IFSQ_IMAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["data", "copy", str(tmp_path), "claim://data/x"])
    assert "--image" in str(done.exception)
