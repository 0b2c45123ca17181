"""Whatever stands in a stored document, opening it gives the data that was written or one error.

Every case is a document with a few bytes changed, cut off, or a value replaced in well-formed JSON
("re-sealed": with its checksums brought up to date), from a fixed seed.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import UserError
from data_pipelines.manifest import ShardManifest, decode_index
from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.format import ShardMetadata
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.writer import facts_sha256, read_job

SEED = 20260131
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.25, 1e308, "", "x", "0", [], [1],
    {}, {"a": 1}, [[]], "a" * 3000, "..", "/etc/passwd", "\ud800",
]  # fmt: skip


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, a part cut out, doubled or overwritten, or the end cut off."""
    changed = bytearray(data)
    kind = rng.randrange(6)
    at = rng.randrange(len(changed))
    length = rng.choice([1, 2, 8, 64, 512])
    if kind == 0:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for _ in range(rng.randrange(1, 9)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + length]
    elif kind == 4:
        changed[at:at] = changed[at : at + length]
    else:
        changed[at : at + length] = bytes(min(length, len(changed) - at))
    return bytes(changed)


def places_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a JSON document."""
    yield path
    pairs = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else pairs:
        yield from places_of(inner, (*path, key))


def replaced(rng: random.Random, document: Any) -> Any:
    """The document with one value replaced or removed, or one added."""
    changed = json.loads(json.dumps(document))
    path = rng.choice([path for path in places_of(changed) if path])
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    action = rng.randrange(8)
    if action == 0:
        del holder[path[-1]]
    elif action == 1 and isinstance(holder, dict):
        holder["unexpected"] = rng.choice(ODD_VALUES)
    else:
        holder[path[-1]] = rng.choice(ODD_VALUES)
    return changed


def survey(cases: int, one: Callable[[random.Random], str]) -> dict[str, int]:
    """Run `one` for every seed; how many cases came out how. Anything but UserError is raised."""
    outcomes: dict[str, int] = {}
    for number in range(cases):
        try:
            outcome = one(random.Random(SEED + number))
        except UserError as error:
            text = str(error)
            outcome = "refused" if "\n" not in text and len(text) < 2000 else f"unclear: {text}"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert not [outcome for outcome in outcomes if outcome.startswith("unclear")]
    return outcomes


def everything_of(folder: Path) -> tuple[Any, ...]:
    """What a token dataset gives its users."""
    dataset = TokenDataset.open(folder)
    batch = dataset.read(np.arange(dataset.num_samples))
    return (
        batch.tokens.tobytes(), batch.labels.tobytes(), dataset.spec.to_dict(), dataset.digest,
        dataset.spec.latent_statistics,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "cases"), [
    ("tokens.json", 900), ("tokens.arrow", 300), ("shards/tokens-00000001.arrow", 500),
])  # fmt: skip
def test_mutated_token_files_are_never_read_as_other_data(
    tmp_path: Path, token_folder: Path, name: str, cases: int
):
    expected = everything_of(token_folder)
    folder = tmp_path / "copy"
    shutil.copytree(token_folder, folder)
    path = folder / name
    written = path.read_bytes()

    def one(rng: random.Random) -> str:
        path.unlink()
        path.write_bytes(mutated(rng, written))
        assert everything_of(folder) == expected
        return "as written"

    outcomes = survey(cases, one)
    assert outcomes["refused"] > cases // 2


def test_token_datasets_without_a_checksum_of_their_own_are_checked_too(
    tmp_path: Path, token_folder: Path
):
    """As written before tokens.json had one."""
    folder = tmp_path / "copy"
    shutil.copytree(token_folder, folder)
    path = folder / "tokens.json"
    facts = json.loads(path.read_text())
    del facts["sha256"]
    written = (json.dumps(facts, indent=1) + "\n").encode()
    path.write_bytes(written)
    expected = everything_of(folder)

    def one(rng: random.Random) -> str:
        path.write_bytes(mutated(rng, written))
        found = everything_of(folder)
        assert found[:4] == expected[:4] or found[2]["latent_statistics"] is not None
        statistics, original = found[4], expected[4]
        assert np.allclose(statistics.mean, original.mean, rtol=1e-8)
        assert np.allclose(statistics.std, original.std, rtol=1e-8)
        return "as written"

    assert survey(600, one)["refused"] > 300


def test_resealed_tokens_json_is_refused_or_read(tmp_path: Path, token_folder: Path):
    folder = tmp_path / "copy"
    shutil.copytree(token_folder, folder)
    path = folder / "tokens.json"
    facts = json.loads(path.read_text())

    def one(rng: random.Random) -> str:
        changed = replaced(rng, facts)
        if isinstance(changed, dict):
            try:
                changed["sha256"] = facts_sha256(changed)
            except UnicodeEncodeError:
                changed["sha256"] = "0" * 64
        path.write_text(json.dumps(changed))
        everything_of(folder)
        return "read"

    assert survey(800, one)["refused"] > 400


def test_replaced_values_in_a_job_or_a_shard_are_refused_or_read(
    tmp_path: Path, token_folder: Path
):
    job = json.loads((token_folder / "job.json").read_text())
    storage = open_storage(tmp_path / "job")
    shard = TokenDataset.open(token_folder).shard(0)
    metadata = json.loads(shard.metadata.to_bytes())

    def one_job(rng: random.Random) -> str:
        storage.write("job.json", json.dumps(replaced(rng, job)).encode())
        assert read_job(storage) is not None
        return "read"

    def one_shard(rng: random.Random) -> str:
        ShardMetadata.from_bytes(json.dumps(replaced(rng, metadata)).encode())
        return "read"

    assert survey(300, one_job)["refused"] > 100
    assert survey(500, one_shard)["refused"] > 200


@pytest.mark.parametrize(("name", "cases"), [
    ("manifest.json", 500), ("manifest.arrow", 200), ("index/shard-000000.arrow", 300),
])  # fmt: skip
def test_mutated_image_documents_are_never_read_as_others(
    tmp_path: Path, image_folder: Path, name: str, cases: int
):
    def facts(folder: Path) -> tuple[Any, ...]:
        manifest = ShardManifest.open(folder)
        rows = [manifest.rows(shard).table.to_pylist() for shard in range(manifest.num_shards)]
        return manifest.shards(), manifest.classes, manifest.digest, rows

    expected = facts(image_folder)
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    path = folder / name
    written = path.read_bytes()

    def one(rng: random.Random) -> str:
        path.write_bytes(mutated(rng, written))
        assert facts(folder) == expected
        return "as written"

    assert survey(cases, one)["refused"] > cases // 2


def test_resealed_image_documents_are_refused_or_read(tmp_path: Path, image_folder: Path):
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    path = folder / "manifest.json"
    facts = json.loads(path.read_text())
    index = (image_folder / "index/shard-000000.arrow").read_bytes()

    def one(rng: random.Random) -> str:
        path.write_text(json.dumps(replaced(rng, facts)))
        ShardManifest.open(folder).rows(0)
        return "read"

    def one_index(rng: random.Random) -> str:
        decode_index(mutated(rng, index))
        return "read"

    assert survey(500, one)["refused"] > 200
    assert survey(400, one_index)["refused"] > 100


@pytest.fixture
def token_folder(tmp_path: Path) -> Path:
    from tests.support.hostile_datasets import write_tokens

    return write_tokens(tmp_path / "tokens")


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    from tests.support.hostile_datasets import write_images

    return write_images(tmp_path / "images")


def test_a_shard_changed_behind_an_open_dataset_is_noticed_by_the_next_process(
    token_folder: Path,
):
    """Same size, same name: only the bytes differ."""
    path = token_folder / "shards/tokens-00000000.arrow"
    data = bytearray(path.read_bytes())
    packed = TokenDataset.open(token_folder).shard(0).packed[1].tobytes()
    data[data.index(packed)] ^= 1
    path.write_bytes(data)
    assert hashlib.sha256(data).hexdigest() != TokenDataset.open(token_folder).entry(0).sha256
    with pytest.raises(UserError, match="is damaged"):
        TokenDataset.open(token_folder).read(np.array([0]))


def test_a_shard_cut_while_it_is_mapped_is_an_error(token_folder: Path):
    dataset = TokenDataset.open(token_folder)
    dataset.read(np.array([0]))
    path = token_folder / "shards/tokens-00000000.arrow"
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="has 100 bytes"):
        dataset.read(np.array([1]))
