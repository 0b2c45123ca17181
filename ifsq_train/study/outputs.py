"""The folders a study writes into, under the one rule of `data_pipelines.storage.outputs`."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterable
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.storage.open import Storage, open_storage
from data_pipelines.storage.outputs import Writer, claim
from ifsq_train.study.expand import Expansion
from ifsq_train.study.report import INDEX_HEAD, SIGNATURE
from ifsq_train.study.stage import KINDS
from ifsq_train.study.store import RECORD, Store

_DIGEST = "?" * 16
_STAGES = tuple(f"{kind}-{_DIGEST}" for kind in KINDS)
_OF_EARLIER = "stages have results."
"""On pages of earlier releases, which were signed only where there were results."""
_TITLE = INDEX_HEAD.partition("\n")[0]


def _has_records(storage: Storage) -> bool:
    """A store of before there were markers."""
    return _any(storage, [f"{stage}/{RECORD}" for stage in _STAGES])


def _has_copies(storage: Storage) -> bool:
    return _any(storage, [f"{stage}.json" for stage in _STAGES])


def _is_report(storage: Storage) -> bool:
    folder = storage.local_path("")
    index = None if folder is None else folder / "index.md"
    return index is not None and index.is_file() and index.read_text().startswith(_TITLE)


def _any(storage: Storage, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(n, p) for n in storage.list() for p in patterns)


_STORE = Writer("ifsq study run", tuple(f"{stage}/*" for stage in _STAGES), _has_records)
_RESULTS = Writer(
    "ifsq study run --results",
    tuple(f"{stage}.{end}" for stage in _STAGES for end in ("json", "png")),
    _has_copies,
    marks=False,
)
_REPORT = Writer("ifsq study report", ("*.md", "*/*"), _is_report, marks=False)


def claim_store(root: Path) -> None:
    """Mark a store as one.

    Raises:
        UserError: it is no folder, or holds something else than stages.
    """
    _claim(root, _STORE)


def claim_results(folder: Path) -> None:
    """Make sure that copies of records may be written into a folder.

    Raises:
        UserError: it is no folder, or holds something else than records.
    """
    _claim(folder, _RESULTS)


def claim_pages(folder: Path, names: Iterable[str]) -> None:
    """Make sure that the pages of some studies may be written into a folder.

    Pages are made from records alone and can be made again, so those that are there are replaced.

    Raises:
        UserError: the folder is somebody else's, or a page in it is.
    """
    _claim(folder, _REPORT)
    for name in names:
        page = folder / f"{name}.md"
        text = page.read_text(errors="replace") if page.is_file() else SIGNATURE
        if SIGNATURE not in text and _OF_EARLIER not in text:
            raise UserError(
                f"{page} was not written by `{_REPORT.command}`; choose another --output, or"
                " move it"
            )


def _claim(folder: Path, writer: Writer) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; `{writer.command}` needs a folder")
    claim(open_storage(folder), writer)


def remove_stages(expansion: Expansion, store: Store, results: Path | None) -> int:
    """Remove what the stages of a study left behind; returns of how many."""
    removed = 0
    for stage in expansion.stages.values():
        folder = store.folder(stage)
        if folder.is_dir():
            shutil.rmtree(folder)
            removed += 1
        for end in ("json", "png") if results is not None else ():
            assert results is not None
            (results / f"{stage.folder}.{end}").unlink(missing_ok=True)
    return removed
