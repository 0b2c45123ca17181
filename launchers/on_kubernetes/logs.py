"""The output of a job on Kubernetes, line by line, over connections that may drop."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost, Patience
from launchers.on_kubernetes.cluster import KubernetesCluster

_QUIET_SECONDS = 60
"""A connection without output for this long is opened anew: it may be dead."""
_RETRY_SECONDS = 1.0
_LOG = "pods/log"
_NOISE = re.compile(
    r"(INFO|SUCC|WARN|WARNING) .*(cli|job_manager|sdk|worker)\.py:\d+ -- "
    r"|^Running entrypoint for job "
)
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.?\d*(?:Z|[+-]\d\d:\d\d)) ?")


class PodLog:
    """The log of one pod; after a lost connection it goes on with the next line.

    Lines carry the kubelet's time stamps: a new connection asks for what came since the last one
    and leaves out what is not newer. Without stamps it counts the lines it has shown.

    Args:
        cluster: where the pod is.
        pod: its name.
    """

    def __init__(self, cluster: KubernetesCluster, pod: str) -> None:
        self._cluster = cluster
        self._pod = pod
        self._last_stamp = ""
        self._seen = 0
        """Lines shown, for logs without time stamps."""

    def lines(self, *, follow: bool, tail: int | None = None) -> Iterator[str]:
        """Lines of one connection, without their time stamps.

        Raises:
            ConnectionLost: the connection ended before the pod did.
            UserError: access is denied.
        """
        response = self._cluster.reach(self._pod, lambda: self._open(follow, tail), _LOG)
        if response is None:
            return
        count, shown_until = 0, self._last_stamp
        try:
            for raw in _whole_lines(self._chunks(response), keep_rest=not follow):
                stamp, text = split_stamp(raw)
                count += 1
                if stamp <= shown_until if stamp else count <= self._seen:
                    continue
                self._seen, self._last_stamp = count, stamp
                yield text
        finally:
            response.release_conn()
            response.close()

    def _chunks(self, response: Any) -> Iterator[bytes]:
        stream = response.stream(4096, decode_content=False)
        while True:
            chunk = self._cluster.reach(self._pod, lambda: next(stream, None), _LOG)
            if chunk is None:
                return
            yield chunk

    def _open(self, follow: bool, tail: int | None) -> Any:
        options: dict[str, Any] = {"tail_lines": tail} if tail is not None else {}
        if self._last_stamp:
            age = datetime.now(UTC) - datetime.fromisoformat(self._last_stamp[:19] + "+00:00")
            # A little more than needed, as clocks differ; what was shown is left out.
            options["since_seconds"] = max(1, int(age.total_seconds()) + 60)
        return self._cluster.core.read_namespaced_pod_log(
            self._pod,
            self._cluster.namespace,
            follow=follow,
            timestamps=True,
            _preload_content=False,
            _request_timeout=(5, _QUIET_SECONDS),
            **options,
        )


def _whole_lines(chunks: Iterator[bytes], *, keep_rest: bool) -> Iterator[str]:
    """Complete lines. What follows the last line break may be half a line of a connection that was
    cut: it is kept only of a log that has ended."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest and keep_rest:
        yield rest.decode(errors="replace")


def split_stamp(line: str) -> tuple[str, str]:
    """The kubelet's time stamp (empty if there is none) and the line itself."""
    match = _STAMP.match(line)
    return (match[1], line[match.end() :]) if match else ("", line)


def is_noise(line: str) -> bool:
    """Whether a line is Ray's own about how it was asked to run the job."""
    return _NOISE.search(line) is not None


class JobLogFollower:
    """Follows the output of a job in a thread, through retries and lost connections.

    The output is that of the submitter pod; a retry of the job has a new one.

    Args:
        cluster: where the job is.
        name: of the job.
        show: called with every line.
        keep: number of last lines kept in `last_lines`.
    """

    def __init__(
        self,
        cluster: KubernetesCluster,
        name: str,
        show: Callable[[str], None],
        keep: int = 200,
    ) -> None:
        self.last_lines: deque[str] = deque(maxlen=keep)
        self.denied: UserError | None = None
        self._cluster, self._name, self._show = cluster, name, show
        self._stop = threading.Event()
        self._patience = Patience(cluster.patience_seconds, f"ifsq status {name}")
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def finish(self, timeout_seconds: float = 10.0) -> None:
        """The job has ended: read on to the end of its output, then stop."""
        self._stop.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        done: set[str] = set()
        logs: dict[str, PodLog] = {}
        try:
            while True:
                ending = self._stop.is_set()
                for pod in self._pods():
                    if pod not in done and self._follow(logs, pod):
                        done.add(pod)
                if ending:
                    return
                self._stop.wait(_RETRY_SECONDS)
        except UserError as error:
            self.denied = error

    def _pods(self) -> list[str]:
        try:
            pods = submitter_pods(self._cluster, self._name)
        except ConnectionLost as error:
            self._patience.lost(error)
            return []
        self._patience.found()
        return pods

    def _follow(self, logs: dict[str, PodLog], pod: str) -> bool:
        """Show what a pod says until it ends; False if the connection was lost."""
        log = logs.setdefault(pod, PodLog(self._cluster, pod))
        try:
            self._pass_on(log.lines(follow=True))
            # An API server that shuts down in order ends the stream as if the pod had ended.
            if not self._pod_ended(pod):
                return False
            self._pass_on(log.lines(follow=False))
        except ConnectionLost:
            return False
        return True

    def _pass_on(self, lines: Iterator[str]) -> None:
        for line in lines:
            if not is_noise(line):
                self.last_lines.append(line)
                self._show(line)

    def _pod_ended(self, pod: str) -> bool:
        found = self._cluster.read(
            pod,
            lambda **options: self._cluster.core.read_namespaced_pod(
                pod, self._cluster.namespace, **options
            ),
            "pod",
        )
        return found is None or found["status"].get("phase") in ("Succeeded", "Failed")


def submitter_pods(cluster: KubernetesCluster, name: str) -> list[str]:
    """Pods that show a job's output and have started, oldest first.

    Raises:
        ConnectionLost: no answer.
        UserError: access is denied.
    """
    found = cluster.list_pods(f"job-name={name}")
    started = [
        pod
        for pod in found
        if pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed")
    ]
    started.sort(key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    return [pod["metadata"]["name"] for pod in started]


def print_logs(
    cluster: KubernetesCluster, name: str, show: Callable[[str], None], tail: int | None
) -> None:
    """The output of a job so far: of its newest attempt.

    Raises:
        UserError: no such job, no output yet, or access is denied.
    """
    cluster.get(name)
    deadline = time.monotonic() + 30
    while True:
        try:
            pods = submitter_pods(cluster, name)
            if not pods:
                raise UserError(f"job '{name}' has no output yet; see `ifsq status {name}`")
            for line in PodLog(cluster, pods[-1]).lines(follow=False, tail=tail):
                if not is_noise(line):
                    show(line)
            return
        except ConnectionLost as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"the output of job '{name}' cannot be had now ({error}); is the pod's node"
                    f" there? see `ifsq status {name}`"
                ) from error
            time.sleep(_RETRY_SECONDS)
