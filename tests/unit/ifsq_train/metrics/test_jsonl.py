"""The run log: what survives a kill and a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifsq_train.metrics.jsonl import JsonlWriter, LastRecord, read_jsonl


def log_steps(path: Path, first_step: int, steps: range) -> None:
    writer = JsonlWriter(path, first_step)
    for step in steps:
        writer.write({"step": step, "loss": 1 / step})
    writer.close()


def test_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    log_steps(tmp_path / "whole", 0, range(1, 9))
    log_steps(tmp_path / "resumed", 0, range(1, 7))
    log_steps(tmp_path / "resumed", 4, range(5, 9))
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_opening_drops_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    log_steps(path, 1, range(2, 3))
    assert [record["step"] for record in read_jsonl(path)] == [1, 2]


def test_a_fresh_start_empties_an_old_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log_steps(path, 0, range(1, 4))
    JsonlWriter(path, 0).close()
    assert path.read_bytes() == b""


def test_lines_without_a_step_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"note": "hello"}\n{"step": 3}\n')
    JsonlWriter(path, 1).close()
    assert read_jsonl(path) == [{"note": "hello"}]


def test_lines_are_readable_before_the_writer_closes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    writer = JsonlWriter(path, 0)
    writer.write({"step": 1})
    assert read_jsonl(path) == [{"step": 1}]
    writer.close()


@pytest.mark.parametrize("tail", ['{"step": 2', '{"step": 2}', "\0\0\0\n", "12\n"])
def test_reader_leaves_out_a_torn_last_line(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + tail)
    assert read_jsonl(path) == [{"step": 1}]


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "absent") == []


@pytest.mark.parametrize("damage", [b"not json", bytes(5000), b"[1]", b"[" * 20_000, b"\xff\xfe"])
def test_damaged_lines_are_passed_over_and_named(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]
    assert "the first is line 2" in caplog.text
    JsonlWriter(path, 1).close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_full_disk_ends_the_log_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "log.jsonl").symlink_to(full)
    log = JsonlWriter(tmp_path / "log.jsonl", 0)
    log.write({"step": 1})
    log.write({"step": 2})
    log.close()
    assert caplog.text.count("No space left on device") == 1


def test_the_last_record_is_read_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    last = LastRecord(path)
    assert last.take() is None
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(50_000)) + '{"ste')
    assert last.take() == {"step": 49_999}
    assert last.take() is None
    with path.open("a") as file:
        file.write('p": 7}\n')
    assert last.take() == {"step": 7}
