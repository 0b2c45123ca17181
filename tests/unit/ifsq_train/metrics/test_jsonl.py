"""The run log: what survives a kill and a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from ifsq_train.metrics.jsonl import JsonlWriter, read_jsonl


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


def test_damage_before_the_last_line_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"log\.jsonl line 2 is not a JSON object"):
        read_jsonl(path)
