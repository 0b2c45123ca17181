"""Files of arrays that are not what they say."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.array_files import open_npz
from data_pipelines.errors import DataError


def stored(name: str, data: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    file = io.BytesIO()
    described = {"shape": shape, "fortran_order": False, "descr": dtype}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(tmp_path: Path, save: object) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", arr_0=images, empty=np.zeros(0), one=np.int64(3))  # type: ignore[operator]
    for source in (tmp_path / "a.npz", (tmp_path / "a.npz").read_bytes()):
        with open_npz(source, "a.npz") as arrays:
            assert np.array_equal(arrays["arr_0"], images)
            assert arrays["one"] == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (stored("a", header((10**9, 1000, 3)) + b"12"), "by its header, found 1"),
        (stored("a", header((2,)) + b"123"), "by its header"),
        (stored("a", header((1,), "|O") + bytes(8)), "Python objects"),
        (stored("a", b"no array"), "not an .npz file"),
        (b"PK\3\4 nothing", "not an .npz file"),
        (b"", "not an .npz file"),
    ],
)
def test_other_files_are_one_line(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_npz(data, "x.npz")


def test_a_bomb_is_refused_before_it_grows() -> None:
    size = 100_000_000
    bomb = stored("a", header((size,)) + bytes(size), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 200_000
    with pytest.raises(DataError, match="more than 200-fold is refused"):
        open_npz(bomb, "x.npz")


def test_an_encrypted_or_broken_member_is_one_line() -> None:
    whole = stored("a", header((3,)) + b"123", zipfile.ZIP_DEFLATED)
    entry = whole.index(b"PK\1\2")
    for offset in (6, entry + 8):  # the flag for encryption, beside the data and in the directory
        whole = whole[:offset] + bytes([whole[offset] | 1]) + whole[offset + 1 :]
    with pytest.raises(DataError, match=r"x\.npz: not an \.npz file"):
        open_npz(whole, "x.npz")
    good = bytearray(stored("a", header((3,)) + b"123", zipfile.ZIP_DEFLATED))
    good[35:60] = bytes(25)
    with pytest.raises(DataError, match=r"x\.npz: not an \.npz file"):
        open_npz(bytes(good), "x.npz")


def test_files_are_closed_with_their_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros(3))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_npz(tmp_path / "a.npz", "a.npz") as arrays:
        assert arrays["arr_0"].shape == (3,)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
