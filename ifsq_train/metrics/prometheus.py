"""Prometheus metrics of a run: many processes write, one endpoint per node serves.

Every process keeps its numbers in memory-mapped files of a folder of its node
(`prometheus_client`'s multiprocess mode); the process of local rank 0 merges them whenever it
is scraped. So a lost worker takes no numbers with it, and no process waits for another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from data_pipelines.errors import UserError
from data_pipelines.storage.open import LocalStorage
from data_pipelines.storage.private import make_private
from ifsq_train.metrics.names import (
    DEVICE_MEMORY,
    METRICS,
    RESIDENT_MEMORY,
    STORAGE_FREE,
    STORAGE_SIZE,
    MetricSpec,
)

logger = logging.getLogger(__name__)

_FILE_BYTES = 512 << 10
"""Of each kind of metric; some 2,000 series."""
_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_storage_lock = threading.RLock()
_FOLDER_PREFIX = "ifsq-metrics"
_ABANDONED_SECONDS = 600.0
_BIND_ATTEMPTS, _BIND_PAUSE_SECONDS = 20, 0.25


def open_metrics(
    run_dir: Path,
    rank: int,
    local_rank: int,
    port: int | None = 0,
    *,
    host: str = "127.0.0.1",
    begin: tuple[str, ...] = ("",),
) -> Metrics:
    """Metrics of this process; local rank 0 also starts its node's endpoint.

    Args:
        run_dir: folder of the run; processes of a run on one node find each other by it. The
            endpoint's address is written to a file in it that Prometheus' file service
            discovery reads (``metrics_endpoint*.json``).
        rank: this process in the run; metrics of scope ``run`` are kept by rank 0 only.
        local_rank: this process on its node.
        port: port of the endpoint; 0 takes a free one, None starts none.
        host: address to listen on; ``0.0.0.0`` to be scraped from other machines.
        begin: what names of counters begin with that are exported as 0 from the start; others
            appear with their first value.

    Where the folder or the port cannot be used, that is said in the log, and the process has no
    metrics or no endpoint.
    """
    try:
        directory = metrics_directory(run_dir)
        if local_rank == 0:
            _remove_files_of_dead_processes(directory)
            _remove_abandoned_folders(directory)
        _reserve_files(directory)
    except (OSError, UserError) as error:
        logger.warning("no Prometheus metrics of this process, the run goes on: %s", error)
        return Metrics(None, rank, None, clean=False, begin=begin)
    server = None
    if local_rank == 0 and port is not None:
        server = _open_server(directory, host, port, _endpoint_file(run_dir, rank), run_dir.name)
    return Metrics(directory, rank, server, clean=local_rank == 0, begin=begin)


def _open_server(
    directory: Path, host: str, port: int, announcement: Path, run: str
) -> MetricsServer | None:
    """The node's endpoint; None, and a word about it, where there cannot be one."""
    try:
        server = MetricsServer(directory, host, port)
    except (OSError, UserError) as error:
        logger.warning("no metrics endpoint on this node, the run goes on: %s", error)
        return None
    try:
        server.announce(announcement, run)
    except (OSError, UserError) as error:
        logger.warning("the metrics endpoint is not announced: %s", error)
    return server


def _reserve_files(directory: Path) -> None:
    """Give this process's files their space now.

    The library maps files with holes; writing to a hole on a full disk ends a process with SIGBUS.

    Raises:
        OSError: there is no space, or no folder.
    """
    for kind in ("counter", "gauge_livesum", "gauge_mostrecent", "histogram"):
        path = directory / f"{kind}_{os.getpid()}.db"
        if path.exists():
            continue
        try:
            with path.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def metrics_directory(run_dir: Path) -> Path:
    """The run's folder for metric files on this node; never on shared storage, where the
    process ids of different machines would collide.

    Raises:
        UserError: it exists and belongs to another user.
    """
    name = hashlib.sha256(str(Path(run_dir).resolve()).encode()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"{_FOLDER_PREFIX}-{os.getuid()}-{name}"
    make_private(directory)
    return directory


class Metrics:
    """What one process reports. Use `open_metrics`.

    Values of metrics of scope ``run`` are dropped on every rank but 0, so callers need not ask.
    Counters and histograms named by `begin` start at 0; a gauge appears with its first value.

    Args:
        directory: where the node's processes keep their files; None keeps nothing.
        rank: this process in the run.
        server: the node's endpoint, in the process that runs it.
        clean: remove this process's files at the end; for local rank 0, whose end is the run's.
        begin: see `open_metrics`.
    """

    def __init__(
        self,
        directory: Path | None,
        rank: int,
        server: MetricsServer | None,
        clean: bool,
        begin: tuple[str, ...] = ("",),
    ) -> None:
        from prometheus_client import CollectorRegistry, values
        from prometheus_client.values import MultiProcessValue

        self.server = server
        self._directory = directory
        self._rank = rank
        self._clean = clean
        self._process = psutil.Process()
        self._registry = CollectorRegistry()
        self._storage = MultiProcessValue()
        self._close_files = values._multi_process_cleanups.pop()
        self._metrics: dict[MetricSpec, Any] = {}
        for spec in METRICS:
            if spec.kind != "gauge" and not spec.labels and spec.name.startswith(begin):
                self._child(spec, {})
        self.observe_process()

    def set(self, spec: MetricSpec, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        assert spec.kind == "gauge"
        if child := self._child(spec, labels):
            child.set(value)

    def inc(self, spec: MetricSpec, amount: float = 1.0, /, **labels: str) -> None:
        """Add to a counter; `amount` >= 0."""
        assert spec.kind == "counter"
        if child := self._child(spec, labels):
            child.inc(amount)

    def observe(self, spec: MetricSpec, value: float, /, **labels: str) -> None:
        """Add an observation to a histogram."""
        assert spec.kind == "histogram"
        if child := self._child(spec, labels):
            child.observe(value)

    def observe_process(self) -> None:
        """Bring this process's memory, on the host and on its GPU, up to date."""
        self.set(RESIDENT_MEMORY, self._process.memory_info().rss)
        torch = sys.modules.get("torch")  # a process without torch has no GPU memory
        if torch is not None and torch.cuda.is_initialized():
            self.set(DEVICE_MEMORY, torch.cuda.memory_reserved())

    def observe_storage(self, folder: Path) -> None:
        """Bring free and total space of the folder's file system up to date."""
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            return
        self.set(STORAGE_FREE, usage.free)
        self.set(STORAGE_SIZE, usage.total)

    def _child(self, spec: MetricSpec, labels: dict[str, str]) -> Any:
        # A zero from every other node would stand beside the run's one true value.
        if self._directory is None or (spec.scope == "run" and self._rank != 0):
            return None
        try:
            with self._own_storage():
                if spec not in self._metrics:
                    self._metrics[spec] = _create_metric(spec, self._registry)
                metric = self._metrics[spec]
                return metric.labels(**labels) if spec.labels else metric
        except OSError as error:
            logger.warning("metrics of this process end here, the run goes on: %s", error)
            self._directory = None
            return None

    @contextlib.contextmanager
    def _own_storage(self) -> Iterator[None]:
        """Files of metrics made inside go to our directory.

        The library picks its storage when it is imported, and the folder when a file is first
        needed. Another package may have imported it before us, or an earlier run of this process
        may have used another folder. Both are given back: processes started later, such as Ray's
        own, would keep their numbers in a folder that is removed with the run.
        """
        from prometheus_client import values

        with _storage_lock:
            before, storage = os.environ.get(_DIRECTORY_VARIABLE), values.ValueClass
            os.environ[_DIRECTORY_VARIABLE] = str(self._directory)
            values.ValueClass = self._storage  # type: ignore[misc,assignment]
            try:
                yield
            finally:
                values.ValueClass = storage
                if before is None:
                    os.environ.pop(_DIRECTORY_VARIABLE, None)
                else:
                    os.environ[_DIRECTORY_VARIABLE] = before

    def close(self) -> None:
        """Take this process's live gauges back; local rank 0 also stops the endpoint."""
        from prometheus_client import multiprocess

        if self.server is not None:
            self.server.close()
        directory, self._directory = self._directory, None
        self._metrics.clear()
        self._close_files()
        if directory is None:
            return
        multiprocess.mark_process_dead(os.getpid(), str(directory))  # pyright: ignore
        if self._clean:
            _remove_files_of_dead_processes(directory, and_own=True)
            with contextlib.suppress(OSError):
                directory.rmdir()  # other processes of the run may still have files there


def _create_metric(spec: MetricSpec, registry: Any) -> Any:
    """The prometheus_client object of a metric, backed by a file."""
    import prometheus_client

    arguments: dict[str, Any] = {"labelnames": spec.labels, "registry": registry}
    if spec.kind == "gauge":
        # Of a gauge of the run the newest value counts, whichever rank 0 process set it.
        mode = "mostrecent" if spec.scope == "run" else "livesum"
        arguments["multiprocess_mode"] = mode
    if spec.kind == "histogram":
        arguments["buckets"] = spec.buckets
    make: Callable[..., Any] = getattr(prometheus_client, spec.kind.capitalize())
    return make(spec.name, spec.help, **arguments)


def _remove_files_of_dead_processes(directory: Path, *, and_own: bool = False) -> None:
    """Counters of processes that are gone would otherwise be added for ever."""
    for path in directory.glob("*.db"):
        name = path.stem.rpartition("_")[2]
        if not name.isdigit():
            continue
        pid = int(name)
        if not psutil.pid_exists(pid) or (and_own and pid == os.getpid()):
            path.unlink(missing_ok=True)


def _remove_abandoned_folders(own: Path) -> None:
    """Folders that killed runs of this user left on this node, after ten minutes without a word.

    A process of another container that shares the temporary folder is not seen by its id; its
    files change, though.
    """
    newest = time.time() - _ABANDONED_SECONDS
    for folder in own.parent.glob(f"{_FOLDER_PREFIX}-{os.getuid()}-*"):
        with contextlib.suppress(OSError):
            files = list(folder.iterdir())
            if folder == own or any(path.stat().st_mtime > newest for path in (folder, *files)):
                continue
            _remove_files_of_dead_processes(folder)
            folder.rmdir()


def _endpoint_file(run_dir: Path, rank: int) -> Path:
    """One file per node: of the node with rank 0, and of every other named after its first."""
    suffix = "" if rank == 0 else f"-{rank:05d}"
    return Path(run_dir) / f"metrics_endpoint{suffix}.json"


class MetricsServer:
    """Serves the merged metrics of a node at ``/metrics`` from a background thread.

    Args:
        directory: where the node's processes keep their files.
        host: address to listen on.
        port: port to listen on; 0 takes a free one, see attribute `port`.

    Raises:
        UserError: the port stays taken.
    """

    def __init__(self, directory: Path, host: str, port: int) -> None:
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(directory))
        self._host = host
        self._httpd, self._thread = _serve(host, port, registry)
        self.port = int(self._httpd.server_address[1])
        self._endpoint_file: Path | None = None

    def announce(self, path: Path, run: str) -> None:
        """Write the address where Prometheus' file service discovery finds it."""
        everywhere = self._host in ("", "0.0.0.0", "::")
        name = socket.gethostname() if everywhere else self._host
        target = f"[{name}]:{self.port}" if ":" in name else f"{name}:{self.port}"
        groups = [{"targets": [target], "labels": {"run": run}}]
        path.parent.mkdir(parents=True, exist_ok=True)
        LocalStorage(path.parent).write(path.name, json.dumps(groups).encode())
        self._endpoint_file = path

    def close(self) -> None:
        """Stop serving and withdraw the address."""
        if self._endpoint_file is not None:
            self._endpoint_file.unlink(missing_ok=True)
        closing = threading.Thread(target=self._httpd.shutdown)
        closing.start()
        # The server looks every half second whether it shall end, and after every request.
        with contextlib.suppress(OSError):
            socket.create_connection(self._httpd.server_address[:2], timeout=1).close()
        closing.join()
        self._httpd.server_close()
        self._thread.join()


def _serve(host: str, port: int, registry: Any) -> tuple[Any, threading.Thread]:
    """Listen; waits a little for a port that the previous worker group is about to release."""
    from prometheus_client import start_http_server

    for attempt in range(1, _BIND_ATTEMPTS + 1):
        try:
            return start_http_server(port, host, registry)
        except OSError as error:
            if attempt == _BIND_ATTEMPTS or port == 0:
                raise UserError(
                    f"metrics port {port} on {host} cannot be used ({error.strerror});"
                    " choose another, or 0 for a free one"
                ) from error
            time.sleep(_BIND_PAUSE_SECONDS)
    raise AssertionError("unreachable")


PORT_VARIABLE = "IFSQ_METRICS_PORT"


HOST_VARIABLE = "IFSQ_METRICS_HOST"


def endpoint_port() -> int | None:
    """The port IFSQ_METRICS_PORT asks for; 0 for any, None for no endpoint.

    Raises:
        UserError: neither a port number nor ``off``.
    """
    text = os.environ.get(PORT_VARIABLE, "0")
    if text == "off":
        return None
    if text.isascii() and text.isdigit() and int(text) < 65536:
        return int(text)
    raise UserError(f"{PORT_VARIABLE}={text!r} is not a port; use 0 to 65535, or off")
