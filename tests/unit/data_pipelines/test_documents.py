"""What JSON and YAML documents may be, and that bounds hold before anything large is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.documents import (
    MAX_DEPTH,
    as_object,
    parse_json,
    read_file,
    read_json,
    read_object,
)
from data_pipelines.errors import DataError
from data_pipelines.yaml_documents import MAX_YAML_NODES, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[1", "not JSON"),
        ("NaN", "not a JSON number"),
        ("1e999", "too large a number"),
        ("[-1e400]", "too large a number"),
        ("1" * 400, "too large a number"),
        ("1" * 5000, "too large a number"),
        ('"\\ud800"', "surrogates"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested too deeply"),
        ("[" + "0," * 5_000_000 + "0]", "at most 4000000"),
    ],
)
def test_json_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        parse_json(text.encode(), "the document")
    assert str(caught.value).count("the document") == 1


def test_json_that_is_read() -> None:
    assert parse_json(b"\xef\xbb\xbf[1, 1e300]", "it") == [1, 1e300]
    nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(nested.encode(), "it")
    assert parse_json(b'{"a": 1, "a": 2}', "it") == {"a": 2}
    with pytest.raises(DataError, match="the key 'a' twice"):
        parse_json(b'{"a": 1, "a": 2}', "it", unique_keys=True)
    assert parse_json(b"Infinity", "it", allow_nan=True) == float("inf")
    with pytest.raises(DataError, match="holds a list"):
        as_object([], "it")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        (
            "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}",
            {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}},
        ),
        ("a: 2020-01-02\n".encode("utf-16"), "date"),
        ("- a\n- {a: 1, b: {a: 2}}\n", ["a", {"a": 1, "b": {"a": 2}}]),
    ],
)
def test_yaml_that_is_read(text: Any, found: Any) -> None:
    value = parse_yaml(text, "it")
    if found == "date":
        assert value["a"].isoformat() == "2020-01-02"
    else:
        assert value == found


def test_aliases_count_as_what_they_stand_for() -> None:
    lists = [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    text = "\n".join(["- &a0 [0, 0, 0, 0]", *lists])
    with pytest.raises(DataError, match=f"more than {MAX_YAML_NODES} values"):
        parse_yaml(text, "it")
    with pytest.raises(DataError, match="holds itself"):
        parse_yaml("a: &b {c: *b}", "it")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"12345")
    for name in ("pipe", "folder", "device", "nothing"):
        for read in (read_file, read_json, read_yaml):
            with pytest.raises(DataError, match=name):
                read(tmp_path / name)
    with pytest.raises(DataError, match="has 5 bytes, at most 4"):
        read_file(tmp_path / "large", 4)
    assert read_file(tmp_path / "large", 5) == b"12345"
    with pytest.raises(DataError, match="holds a int"):
        read_object(tmp_path / "large")
