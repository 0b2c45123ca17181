"""What a precompute reports to Prometheus: its driver counts for all encoders."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

from ifsq_train.metrics import names
from ifsq_train.metrics.prometheus import HOST_VARIABLE, endpoint_port, open_metrics
from ifsq_train.precompute.progress import ItemResult, OnItem


class PrecomputeMetrics:
    """The driver's reports; a context manager that closes the endpoint.

    The endpoint's address is in ``metrics_endpoint.json`` of the output folder, or, for outputs in
    object storage, of a folder of this machine (see `endpoint_folder`).

    Args:
        output: token dataset being written (path or s3://).
        encoders: encoders at work.

    Raises:
        UserError: the port of IFSQ_METRICS_PORT is unusable.
    """

    def __init__(self, output: str, encoders: int) -> None:
        self._folder = endpoint_folder(output)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._metrics = open_metrics(
            self._folder,
            rank=0,
            local_rank=0,
            port=endpoint_port(),
            host=os.environ.get(HOST_VARIABLE, "127.0.0.1"),
            begin=("ifsq_precompute_", names.QUARANTINED.name),
        )
        self._retries = 0
        self._metrics.set(names.PRECOMPUTE_ENCODERS, encoders)
        self._metrics.set(names.PRECOMPUTE_LAST_TIMESTAMP, time.time())
        self._metrics.observe_storage(self._folder)

    def __enter__(self) -> PrecomputeMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()

    def expect(self, rows: int) -> None:
        """Say how many rows the finished dataset will have."""
        self._metrics.set(names.PRECOMPUTE_EXPECTED_ROWS, rows)

    def counting(self, on_item: OnItem | None) -> OnItem:
        """A callback that reports the queue and the rows, then calls `on_item`."""

        def count(items_done: int, items: int, rows_done: int) -> None:
            self._metrics.set(names.PRECOMPUTE_PENDING, items - items_done)
            self._metrics.set(names.PRECOMPUTE_DONE_ROWS, rows_done)
            if on_item is not None:
                on_item(items_done, items, rows_done)

        return count

    def item(self, result: ItemResult, retries: int) -> None:
        """Count a published item.

        Args:
            result: what was published.
            retries: items given out again so far, because their encoder was lost.
        """
        self._metrics.inc(names.PRECOMPUTE_ITEMS)
        self._metrics.inc(names.PRECOMPUTE_ROWS, result.rows)
        self._metrics.inc(names.QUARANTINED, len(result.bad_samples))
        self._metrics.inc(names.PRECOMPUTE_RETRIES, retries - self._retries)
        self._retries = retries
        for stage, seconds in result.stage_seconds.items():
            self._metrics.inc(names.PRECOMPUTE_STAGE_SECONDS, seconds, stage=stage)
        self._metrics.set(names.PRECOMPUTE_LAST_TIMESTAMP, time.time())
        self._metrics.observe_process()
        self._metrics.observe_storage(self._folder)


def endpoint_folder(output: str) -> Path:
    """Where the address of a precompute's endpoint is written.

    Local outputs hold it themselves; for others it is a folder of this user on this machine.
    """
    if "://" not in output:
        return Path(output).absolute()
    digest = hashlib.sha256(output.encode()).hexdigest()[:12]
    name = f"ifsq-precompute-{os.getuid()}-{digest}"
    return Path(tempfile.gettempdir()) / name
