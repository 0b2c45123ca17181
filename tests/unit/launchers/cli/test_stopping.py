"""SIGINT and SIGTERM: one line that says what is kept, and the exit code shells expect."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from launchers.cli import program
from launchers.cli.stopping import Stopped, leave

SAID = {
    ("data", "verify", "x"): "nothing that was there has changed",
    ("data", "copy", "x", "y"): "files that arrived are kept",
    ("evaluate", "x"): "it begins anew",
    ("precompute", "x"): "finished token shards are kept",
    ("sample", "x"): "finished parts are kept",
    ("train", "x"): "the run's last checkpoint is kept",
    ("study", "run", "x"): "finished stages are kept",
    ("run-job",): "what the job has finished is kept",
}


@pytest.mark.parametrize("words", SAID)
def test_what_is_kept_is_said(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        leave(Stopped(signal.SIGTERM), list(words))
    assert ended.value.code == 143
    said = capsys.readouterr().err
    assert said.startswith("stopped by SIGTERM: ")
    assert SAID[words] in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_is_one_line_and_its_exit_code(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_arguments: Any) -> list[Any]:
        os.kill(os.getpid(), number)
        signal.pause()
        return []

    monkeypatch.setattr("ifsq_train.config.load.list_recipes", stop)
    monkeypatch.setattr(sys, "argv", ["ifsq", "recipes"])
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            program.main()
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == 128 + number
    said = capsys.readouterr().err
    assert said.startswith(f"stopped by {number.name}: nothing that was there has changed")
    assert len(said.splitlines()) == 1
