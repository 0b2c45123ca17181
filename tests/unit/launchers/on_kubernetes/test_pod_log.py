"""Lines of a pod's log: whole ones while it runs, also the last once it has ended, none twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launchers.on_kubernetes.logs import PodLog


class Connection:
    """One answer of the API server, in the pieces in which it came."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    def stream(self, *_: Any, **__: Any) -> Any:
        return iter(self._chunks)

    def release_conn(self) -> None:
        pass

    def close(self) -> None:
        pass


class Pods:
    """A cluster whose pod has one log; each call is the next connection to it."""

    namespace = "ml"

    def __init__(self, *connections: Connection) -> None:
        self._left = list(connections)
        self.asked: list[dict[str, Any]] = []
        self.core = self

    def reach(self, _what: str, call: Callable[[], Any], *_: object) -> Any:
        return call()

    def read_namespaced_pod_log(self, *_: object, **options: Any) -> Connection:
        self.asked.append(options)
        return self._left.pop(0)


def stamped(second: int, text: str) -> bytes:
    return f"2026-01-01T00:00:{second:02d}.000000000Z {text}".encode()


def test_the_last_line_of_an_ended_log_needs_no_line_break() -> None:
    """It is the error itself where a process was killed."""
    log = PodLog(Pods(Connection(b"first\nsec", b"ond\nKilled")), "p")  # type: ignore[arg-type]
    assert list(log.lines(follow=False)) == ["first", "second", "Killed"]


def test_half_a_line_of_a_cut_connection_comes_whole_from_the_next() -> None:
    cut = Connection(stamped(1, "a") + b"\n" + stamped(2, "half"))
    whole = Connection(
        b"\n".join([stamped(1, "a"), stamped(2, "half a line"), stamped(3, "b"), b""])
    )
    pods = Pods(cut, whole)
    log = PodLog(pods, "p")  # type: ignore[arg-type]
    assert list(log.lines(follow=True)) == ["a"]
    assert list(log.lines(follow=False)) == ["half a line", "b"]
    assert "since_seconds" not in pods.asked[0]
    assert pods.asked[1]["since_seconds"] > 60


def test_lines_without_stamps_are_counted() -> None:
    pods = Pods(Connection(b"a\nb\n"), Connection(b"a\nb\nb\nc"))
    log = PodLog(pods, "p")  # type: ignore[arg-type]
    assert list(log.lines(follow=True)) == ["a", "b"]
    assert list(log.lines(follow=False)) == ["b", "c"]


def test_the_number_of_lines_wanted_is_asked_for() -> None:
    pods = Pods(Connection(b""), Connection(b""))
    log = PodLog(pods, "p")  # type: ignore[arg-type]
    assert list(log.lines(follow=False, tail=5)) == list(log.lines(follow=True)) == []
    assert [options.get("tail_lines") for options in pods.asked] == [5, None]
    assert [options["follow"] for options in pods.asked] == [False, True]
