"""Small real folders and datasets of images."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.manifest import ShardManifest
from tests.support.image_samples import write_class_folder


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    return write_class_folder(tmp_path / "source")


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardManifest:
    """15 images in several shards; read only."""
    root = tmp_path_factory.mktemp("dataset")
    source = write_class_folder(root / "source")
    return pack_folder(source, root / "packed", shard_bytes=20_000, threads=2)


@pytest.fixture
def dataset_copy(small_dataset: ShardManifest, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small_dataset.storage.url, tmp_path / "copy"))


@pytest.fixture
def tree_bytes() -> Callable[[Path], dict[str, bytes]]:
    """All files of a folder by relative path."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read
