"""One packing: has the shards made, keeps count and publishes the dataset."""

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import UserError
from data_pipelines.images.packing.account import Account
from data_pipelines.images.packing.options import PackOptions
from data_pipelines.images.packing.shards import (
    ShardOptions,
    ShardResult,
    ShardWork,
    delete_leftovers,
    make_shard,
)
from data_pipelines.manifest import (
    MANIFEST_JSON,
    ShardManifest,
    publish_manifest,
    read_manifest_json,
)
from data_pipelines.storage.open import Storage
from data_pipelines.storage.outputs import Writer, claim
from data_pipelines.threads import default_threads

logger = logging.getLogger(__name__)

QUARANTINE_FILE = "quarantine.jsonl"
_NAMED_CLASSES = 3


def _packed_before(storage: Storage) -> bool:
    """Whether a folder without a marker was packed, or begun, by an earlier release."""
    names = [name for name in storage.list() if not name.startswith(".")]
    own = all(any(fnmatchcase(name, pattern) for pattern in PACKED_FILES) for name in names)
    return own and any(name.startswith("index/") for name in names)


PACKED_FILES = (
    "shard-[0-9][0-9][0-9][0-9][0-9][0-9].tar",
    "index/shard-[0-9][0-9][0-9][0-9][0-9][0-9].arrow",
    "manifest.json",
    "manifest.arrow",
    "quarantine.jsonl",
)
PACKER = Writer("ifsq data pack", PACKED_FILES, _packed_before, result="dataset")


class Packing:
    """Has the shards made, keeps count, and publishes the dataset."""

    def __init__(
        self,
        storage: Storage,
        classes: Sequence[str],
        options: PackOptions,
        fingerprint: str | None,
        num_items: int | None,
        account: Account,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        self.storage, self.classes, self.options = storage, classes, options
        self.fingerprint, self.num_items = fingerprint, num_items
        self.source = source or {}
        self.account = account
        self._budget = ErrorBudget(options.max_bad_samples)
        self._results: list[ShardResult] = []
        self._num_done = 0

    def run(self, works: Iterable[ShardWork]) -> ShardManifest:
        """Make all shards and the manifest, or what is missing of them."""
        finished = self.storage.exists(MANIFEST_JSON)
        claim(
            self.storage,
            PACKER,
            self._job(),
            finished=finished and not self._is_ours(),
            overwrite=self.options.overwrite,
        )
        if finished and not self.options.overwrite:
            return self._existing()
        if self.fingerprint is not None and (found := self.storage.list("index/shard-")):
            logger.info("continuing %s, which has %d shards", self.storage.url, len(found))
        try:
            for result in self._make(works):
                self._results.append(result)
                for bad in result.bad:
                    self._budget.record(bad)
        finally:
            self._write_quarantine()
        return self._publish()

    def _job(self) -> dict[str, Any]:
        """What decides the dataset, for the folder's marker."""
        options = {**self.options.identity(), "seed": self.options.seed}
        names = ", ".join(self.classes[:_NAMED_CLASSES])
        source = {
            **self.source,
            "images": self.num_items,
            "classes": f"{len(self.classes)} ({names})" if names else "none",
            "fingerprint": self.fingerprint,
        }
        return {"source": source, **options}

    def _is_ours(self) -> bool:
        """Whether the finished dataset was packed from the same source with the same options."""
        found = read_manifest_json(self.storage).get("fingerprint")
        return self.fingerprint is not None and found == self.fingerprint

    def _make(self, works: Iterable[ShardWork]) -> Iterator[ShardResult]:
        options = self.options
        threads = options.threads or (1 if options.map_shards else default_threads())
        shard = ShardOptions(self.fingerprint, threads, options.max_pixels, options.resize)
        make = functools.partial(make_shard, target_url=self.storage.url, options=shard)
        if options.map_shards is None:
            for work in works:
                first = self._num_done
                yield make(work, on_item=self._one_done)
                self._show(first + len(work.items))
        else:
            for result in options.map_shards(make, works):
                yield result
                self._show(self._num_done + result.num_items)

    def _one_done(self) -> None:
        self._show(self._num_done + 1)

    def _show(self, num_done: int) -> None:
        if num_done != self._num_done and self.options.on_progress:
            self.options.on_progress(num_done, self.num_items)
        self._num_done = num_done

    def _publish(self) -> ShardManifest:
        results = sorted(self._results, key=lambda result: result.number)
        shards = [result.entry for result in results if result.entry is not None]
        if not shards:
            reason = next((f" ({b.key}: {b.reason})" for r in results for b in r.bad), "")
            raise UserError(
                f"nothing was packed into {self.storage.url}: there were no usable images{reason}"
            )
        self._finish_account(results)
        self.account.check(self.options.max_bad_samples, self.storage.url)
        delete_leftovers(self.storage, results)
        self.storage.delete_stale_temporaries()
        extra = {
            "fingerprint": self.fingerprint,
            "num_bad_samples": self._budget.num_bad,
            "account": self.account.to_dict(),
        }
        publish_manifest(self.storage, shards, classes=self.classes, extra=extra)
        return ShardManifest.open(self.storage)

    def _finish_account(self, results: Sequence[ShardResult]) -> None:
        account = self.account
        counts: Counter[int] = Counter()
        for result in results:
            account.lose(result.bad)
            counts.update(result.counts)
        account.taken = sum(counts.values())
        account.count_classes(counts, len(self.classes))
        passed_over = sum(account.passed_over.values())
        rest = account.seen - account.taken - account.num_lost - passed_over
        if account.unit == "rows" and rest > 0:
            account.passed_over["rows without an image that img2dataset did not get"] = rest
        account.seen = max(account.seen, account.taken + account.num_lost)

    def _existing(self) -> ShardManifest:
        if not self._is_ours():
            found = read_manifest_json(self.storage)
            raise UserError(
                f"{self.storage.url} already holds another dataset ({found.get('num_samples')}"
                f" samples, digest {str(found.get('digest'))[:12]}); choose another target or"
                " delete it first"
            )
        logger.info("%s is packed from the same source already; nothing to do", self.storage.url)
        return ShardManifest.open(self.storage)

    def _write_quarantine(self) -> None:
        results = sorted(self._results, key=lambda result: result.number)
        bad = [sample for result in results for sample in result.bad]
        if bad:
            lines = (json.dumps(asdict(sample)) + "\n" for sample in bad)
            self.storage.write(QUARANTINE_FILE, "".join(lines).encode())
            logger.warning(
                "%d bad images left out, see %s/%s", len(bad), self.storage.url, QUARANTINE_FILE
            )
