"""The progress line, on a terminal and in a file."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from ifsq_train.metrics import progress
from ifsq_train.metrics.progress import ProgressLine, format_duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_line_has_progress_rate_eta_and_values(clock: Clock) -> None:
    stream = io.StringIO()
    line = ProgressLine(600, "steps", "demo-tokenizer", stream)
    line.update(79)
    clock.now += 10
    line.update(120, loss=0.03123)
    assert stream.getvalue().splitlines()[-1] == (
        "demo-tokenizer  120/600 steps  4.1 steps/s  eta 1m57s  loss 0.0312"
    )


def test_a_file_gets_a_line_every_five_seconds_and_the_last_one(clock: Clock) -> None:
    stream = io.StringIO()
    line = ProgressLine(100, "steps", "job", stream)
    for step in range(1, 10):
        line.update(step)
        clock.now += 1
    line.close()
    shown = re.findall(r"job  (\d+)/100", stream.getvalue())
    assert shown == ["1", "6", "9"]


def test_a_terminal_line_is_updated_in_place_and_ended_once(clock: Clock) -> None:
    stream = Terminal()
    line = ProgressLine(3, "steps", "job", stream)
    for step in (1, 2, 3):
        line.update(step)
        clock.now += 1
    line.close()
    assert stream.getvalue().count("\r") == 3
    assert stream.getvalue().count("\n") == 1


def test_a_resumed_job_is_not_credited_with_earlier_steps(clock: Clock) -> None:
    stream = Terminal()
    line = ProgressLine(2000, "steps", "job", stream)
    line.update(1000)
    clock.now += 10
    line.update(1020)
    assert "2 steps/s" in stream.getvalue()


def test_the_rate_follows_a_change_of_speed(clock: Clock) -> None:
    stream = Terminal()
    line = ProgressLine(10_000, "steps", "job", stream)
    for second in range(100):
        line.update(second)
        clock.now += 1
    for second in range(40):
        line.update(100 + 10 * second)
        clock.now += 1
    assert "  10 steps/s" in stream.getvalue().split("\r")[-1]


def test_the_rate_counts_on_past_a_restart_from_a_checkpoint(clock: Clock) -> None:
    stream = Terminal()
    line = ProgressLine(100, "steps", "job", stream)
    for step in (50, 55, 40, 45):
        line.update(step)
        clock.now += 1
    assert "5 steps/s" in stream.getvalue().split("\r")[-1]


def test_nothing_is_written_when_nothing_happened() -> None:
    stream = io.StringIO()
    ProgressLine(5, "steps", "job", stream).close()
    assert stream.getvalue() == ""


def test_a_finished_job_shows_no_eta(clock: Clock, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as stream:
        line = ProgressLine(2, "steps", "job", stream)
        line.update(1)
        clock.now += 1
        line.update(2)
        line.close()
        stream.seek(0)
        assert stream.read() == "job  1/2 steps\njob  2/2 steps  1 steps/s\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (117, "1m57s"), (11_100, "3h05m"), (187_300, "2d04h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
