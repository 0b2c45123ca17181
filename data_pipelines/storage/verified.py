"""Which files of this machine were found intact, so that their bytes are hashed once.

A file is known by device, inode, size, and the times of its last change. Processes of this user
share what they found through one file in a private folder; losing it costs hashing again.
"""

import hashlib
import os
import threading
import time
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.regular_files import open_regular
from data_pipelines.storage.private import private_folder

_RECENT_SECONDS = 3.0
"""A file changed just now may be changed again within the clock's resolution: not remembered."""
_MAX_BYTES = 8 << 20


class VerifiedFiles:
    """Hashes files and remembers, across processes, which have the sha256 they should have."""

    def __init__(self, folder_name: str = "ifsq-verified") -> None:
        self._folder_name = folder_name
        self._known: set[str] | None = None
        self._lock = threading.Lock()

    def is_known(self, path: Path, sha256: str) -> bool:
        """Whether these very bytes were hashed before and were right."""
        with self._lock:
            if self._known is None:
                self._known = self._load()
            return _identity(path.stat(), sha256) in self._known

    def matches(self, path: Path, sha256: str) -> bool:
        """Hash the file; whether it has the sha256 (hex). The whole file is read."""
        with open_regular(path) as file:
            before = os.fstat(file.fileno())
            found = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
        return found == sha256 and _identity(before, "") == _identity(after, "")

    def remember(self, path: Path, sha256: str) -> None:
        """Note that the file was found intact."""
        found = path.stat()
        if time.time() - max(found.st_mtime, found.st_ctime) < _RECENT_SECONDS:
            return
        line = _identity(found, sha256)
        with self._lock:
            known = self._known if self._known is not None else self._load()
            self._known = known
            if line in known:
                return
            known.add(line)
        self._append(line)

    def _file(self) -> Path | None:
        try:
            return private_folder(self._folder_name) / "sha256"
        except (OSError, UserError):
            return None  # without a place to remember, every process hashes for itself

    def _load(self) -> set[str]:
        path = self._file()
        try:
            if path is None or path.stat().st_size > _MAX_BYTES:
                if path is not None:
                    path.unlink()
                return set()
            return set(path.read_text(encoding="ascii", errors="replace").split("\n"))
        except OSError:
            return set()

    def _append(self, line: str) -> None:
        path = self._file()
        if path is None:
            return
        try:
            # One short append: lines of several processes do not mix. A torn one matches nothing.
            with path.open("a", encoding="ascii") as file:
                file.write(f"\n{line}\n")
        except OSError:
            return


def _identity(found: os.stat_result, sha256: str) -> str:
    return (
        f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} "
        f"{sha256}"
    )


VERIFIED = VerifiedFiles()
"""Of this process."""
