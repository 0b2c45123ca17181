"""Whose an output folder is: the one rule for every command that writes into one.

A folder belongs to the command whose marker it has: `ifsq-output.json`, or the file that says what
the folder is being filled with where the command has such a file of its own (``job.json`` of
samples and tokens). A folder that is not empty and belongs to nobody, or to another command, is
refused; a finished result of other settings is refused with the keys that differ, unless it shall
be overwritten. Only files that the command itself writes are ever removed.
"""

import contextlib
import fnmatch
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.differences import as_text, changed_keys
from data_pipelines.documents import parse_json
from data_pipelines.errors import UserError
from data_pipelines.storage.open import Storage

logger = logging.getLogger(__name__)

MARKER = "ifsq-output.json"
MARKER_VERSION = 1
_NAMED = 3


def _never(_storage: Storage) -> bool:
    return False


@dataclass(frozen=True)
class Writer:
    """A command that fills a folder.

    Attributes:
        command: such as ``ifsq sample``.
        files: patterns (`fnmatch`) of the paths it writes, below the folder.
        recognises: whether a folder without the marker is its own all the same, by the files of
            earlier releases or by a file of its own that takes the marker's place.
        marks: whether it writes the marker; not where a file of its own takes its place.
        result: what its results are called in messages.
    """

    command: str
    files: tuple[str, ...]
    recognises: Callable[[Storage], bool] = _never
    marks: bool = True
    result: str = "result"

    def own_files(self, storage: Storage) -> list[str]:
        """The files of a folder that this command wrote."""
        found = [name for name in storage.list() if name != MARKER]
        return [n for n in found if any(fnmatch.fnmatchcase(n, p) for p in self.files)]


def claim(
    storage: Storage,
    writer: Writer,
    job: Mapping[str, Any] | None = None,
    *,
    finished: bool = False,
    overwrite: bool | None = None,
) -> None:
    """Make sure that a command may write into a folder, and mark the folder as its own.

    Temporary files of killed processes are deleted there once they are ten minutes old.

    Args:
        storage: the folder.
        writer: the command.
        job: JSON-able settings that decide the result; kept in the marker.
        finished: whether the folder holds a finished result.
        overwrite: True removes what the command wrote there before; None lets the caller replace a
            finished result of other settings; False refuses that.

    Raises:
        UserError: the folder is somebody else's, or holds a finished result of other settings.
    """
    marker = read_marker(storage)
    if marker is not None and marker.get("made_by") != writer.command:
        raise UserError(
            f"{storage.url} was made by `{marker.get('made_by')}`; `{writer.command}` does not"
            " write there: choose another output folder"
        )
    if marker is None and not writer.recognises(storage) and (found := foreign_files(storage)):
        raise UserError(
            f"{storage.url} is not empty and was not made by `{writer.command}`: it holds"
            f" {_some(found)}; choose another output folder, or move them"
        )
    if overwrite:
        remove_own(storage, writer)
    elif finished and overwrite is False and marker is not None and job is not None:
        was = marker.get("job")
        refuse_other_settings(storage, writer, was if isinstance(was, dict) else {}, job)
    storage.delete_stale_temporaries()
    if writer.marks:
        _write_marker(storage, writer, job or {}, marker)


def refuse_other_settings(
    storage: Storage, writer: Writer, was: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raise UserError with every key that differs, if one does."""
    if changed := changed_keys(dict(was), json.loads(json.dumps(dict(now)))):
        raise UserError(
            f"{storage.url} already holds another {writer.result}, made by `{writer.command}` with"
            f" other settings ({'; '.join(as_text(changed))}); choose another output folder, or"
            f" pass --overwrite, which removes {_some(writer.own_files(storage))}"
        )


def claim_file(
    path: Path,
    command: str,
    was: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """The same rule for a command whose result is one file.

    Args:
        path: the file.
        command: such as ``ifsq evaluate``.
        was: settings that the file there was made with; empty where it is the command's own but
            does not say; None where it is somebody else's.
        now: settings of the result to be written.
        overwrite: whether a result of other settings may be replaced.

    Raises:
        UserError: the file is somebody else's, or a result of other settings.
    """
    if not path.exists() or path.is_dir():
        return  # writing over a folder fails by itself
    if was is None:
        raise UserError(f"{path} was not made by `{command}`; choose another output")
    changed = changed_keys(dict(was), json.loads(json.dumps(dict(now)))) if was else {}
    if changed and not overwrite:
        raise UserError(
            f"{path} already holds a result of `{command}`, made with other settings"
            f" ({'; '.join(as_text(changed))}); choose another output, or pass --overwrite, which"
            " replaces this file"
        )
    if overwrite:
        logger.warning("--overwrite: replacing %s", path)


def read_marker(storage: Storage) -> dict[str, Any] | None:
    """The marker of a folder: made_by, job, files; None where there is none."""
    if not storage.exists(MARKER):
        return None
    try:
        found = parse_json(storage.read(MARKER), MARKER)
    except UserError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("made_by"), str):
        raise UserError(f"{storage.url}/{MARKER} is damaged; choose another output folder")
    return found


def remove_own(storage: Storage, writer: Writer) -> None:
    """Remove what a command wrote into its folder, and say so; nothing else is touched."""
    own = writer.own_files(storage)
    if own:
        logger.warning("--overwrite: removing %s from %s", _some(own), storage.url)
    for name in own:
        storage.delete(name)
    root = storage.local_path("")
    folders = {folder for name in own for folder in PurePosixPath(name).parents if folder.name}
    for folder in sorted(folders, reverse=True):
        if root is not None:
            with contextlib.suppress(OSError):  # something else is in it
                (root / folder).rmdir()


def foreign_files(storage: Storage) -> list[str]:
    """Files of a folder apart from hidden ones and from folders below it that have a marker."""
    found = [name for name in storage.list() if not name.startswith(".")]
    marked = tuple(n.removesuffix(MARKER) for n in found if n.endswith(f"/{MARKER}"))
    return [name for name in found if not (marked and name.startswith(marked))]


def _write_marker(
    storage: Storage, writer: Writer, job: Mapping[str, Any], before: dict[str, Any] | None
) -> None:
    marker = {
        "version": MARKER_VERSION,
        "made_by": writer.command,
        "job": json.loads(json.dumps(dict(job))),
        "files": list(writer.files),
    }
    if marker != before:
        storage.write(MARKER, (json.dumps(marker, indent=1, sort_keys=True) + "\n").encode())


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    shown = ", ".join(names[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
