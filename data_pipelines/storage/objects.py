"""A bucket prefix behind the S3 interface, through obstore.

A store that serves many requests answers some of them late or not at all. Small ranges are
therefore asked for twice: first with a limit of a few times what is usual, then patiently.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError, UserError, checked_range, missing_object
from data_pipelines.storage.credentials import HOW_INSTEAD, has_credentials

QUICK_TIMEOUTS_SECONDS = (0.25, 0.5, 1.0)
"""Limits of the first try of a small range: a stalled body is given up early."""
QUICK_BYTES = 1 << 20
QUICK_RETRIES = 2
QUICK_FIRST_PAUSE = timedelta(milliseconds=25)
"""Before a first try is repeated; every further pause is longer, the patient try's start anew."""
QUICK_FACTOR = 5
"""A first try may take so many times what requests usually take."""
SMALL_RANGE_TIMEOUT_SECONDS = 5
"""obstore's default waits half a minute on a stalled body; a short limit and retries do better."""
LARGE_OBJECT_TIMEOUT_SECONDS = 300
MAX_RETRIES = 8
LIST_TRIES = 8
"""Of a listing whose answer is cut; every try goes on behind what was found."""
FIRST_PAUSE = timedelta(milliseconds=100)
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Any of these in the environment says whom to be; the last three are set by EKS and ECS."""
_COPY_CHUNK_BYTES = 16 << 20
_NEWEST_WEIGHT = 0.05


_ENDPOINT = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?(/[\w./~%-]*)?", re.ASCII)
"""obstore aborts on what is no address."""


class Patience:
    """How long the first try of a small range may take, from how long requests took so far."""

    def __init__(self) -> None:
        self.usual_seconds: float | None = None

    @property
    def step(self) -> int | None:
        """Index into QUICK_TIMEOUTS_SECONDS; None where requests are too slow for quick tries."""
        if self.usual_seconds is None:
            return len(QUICK_TIMEOUTS_SECONDS) - 1
        needed = QUICK_FACTOR * self.usual_seconds
        return next((i for i, limit in enumerate(QUICK_TIMEOUTS_SECONDS) if limit >= needed), None)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Learns from the time of the block, unless it raises."""
        began = time.perf_counter()
        yield
        spent, usual = time.perf_counter() - began, self.usual_seconds
        # Threads may overwrite each other here; the average loses a value and is none the worse.
        self.usual_seconds = spent if usual is None else usual + _NEWEST_WEIGHT * (spent - usual)


class ObjectStorage:
    """A bucket prefix behind the S3 interface, through obstore.

    Credentials, region and endpoint come from the usual AWS_* environment variables
    (AWS_ENDPOINT_URL for other servers than Amazon's).
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._open()

    def _open(self) -> None:
        try:
            import obstore
        except ImportError:
            raise UserError(
                f"{self.url} needs the package obstore, which is not installed; "
                "run: pip install 'ifsq-train[s3]'"
            ) from None
        _check_access(self.url)
        self._obstore = obstore
        self._quick = [
            _open_store(self.url, limit, QUICK_RETRIES, QUICK_FIRST_PAUSE)
            for limit in QUICK_TIMEOUTS_SECONDS
        ]
        self._ranges = _open_store(self.url, SMALL_RANGE_TIMEOUT_SECONDS)
        self._objects = _open_store(self.url, LARGE_OBJECT_TIMEOUT_SECONDS)
        self._patience = Patience()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectStorage, (self.url,))

    def delete_stale_temporaries(self) -> None:
        """An unfinished upload is invisible; buckets expire its parts by their own rules."""

    def local_path(self, path: str) -> None:  # noqa: ARG002
        return None

    def read(self, path: str) -> bytes:
        """In ranges, so that a stalled body costs seconds and not the limit of a whole object."""
        from obstore.exceptions import PreconditionError

        while True:
            with _naming(self.url, path):
                facts = self._obstore.head(self._ranges, path)
                parts = range(0, int(facts["size"]), _COPY_CHUNK_BYTES)
                with contextlib.suppress(PreconditionError):  # replaced meanwhile: once more
                    return b"".join(self._part(path, first, facts) for first in parts)

    def _part(self, path: str, first: int, facts: Any) -> bytes:
        """A range of the object that `facts` describe, with more patience at every try."""
        from obstore.exceptions import GenericError

        end = min(first + _COPY_CHUNK_BYTES, int(facts["size"]))
        same: Any = {"range": (first, end), "if_match": facts["e_tag"]}
        quick = [self._quick[-1]] if end - first <= QUICK_BYTES else []
        for store in [*quick, self._ranges]:
            with contextlib.suppress(GenericError):
                data = bytes(self._obstore.get(store, path, options=same).bytes())
                if len(data) == end - first:
                    return data
        data = bytes(self._obstore.get(self._objects, path, options=same).bytes())
        return checked_range(self.url, path, first, end - first, data)

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        if size > QUICK_BYTES:
            store = self._ranges if size <= _COPY_CHUNK_BYTES else self._objects
            return self._read_range(store, path, offset, size)
        data = self._read_quickly(path, offset, size)
        if data is None:
            with self._patience.measured():
                data = self._read_range(self._ranges, path, offset, size)
        return data

    def _read_range(self, store: Any, path: str, offset: int, size: int) -> bytes:
        with _naming(self.url, path):
            data = bytes(self._obstore.get_range(store, path, start=offset, length=size))
        return checked_range(self.url, path, offset, size, data)

    def _read_quickly(self, path: str, offset: int, size: int) -> bytes | None:
        """The bytes if they come soon; None after any fault, which a patient try then names."""
        from obstore.exceptions import BaseError

        step = self._patience.step
        if step is None:
            return None
        with contextlib.suppress(BaseError, FileNotFoundError), self._patience.measured():
            data = self._obstore.get_range(self._quick[step], path, start=offset, length=size)
            return bytes(data) if len(data) == size else None
        return None

    def size(self, path: str) -> int:
        with _naming(self.url, path):
            return int(self._obstore.head(self._ranges, path)["size"])

    def exists(self, path: str) -> bool:
        with _naming(self.url, path, "looking for"):
            try:
                self._obstore.head(self._ranges, path)
            except FileNotFoundError:
                return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        folder = prefix.rpartition("/")[0] or None
        found: list[str] = []
        try:
            with _naming(self.url, prefix):
                for left in reversed(range(LIST_TRIES)):
                    if _list_on(self._ranges, folder, found, last=left == 0):
                        break
        except DataError as error:
            # Some servers create a bucket with its first object; until then it holds nothing.
            if "NoSuchBucket" not in str(error.__cause__):
                raise
        return sorted(path for path in found if path.startswith(prefix))

    def write(self, path: str, data: bytes) -> None:
        with _naming(self.url, path, "writing"):
            self._obstore.put(self._objects, path, data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        with _naming(self.url, path, "writing"):
            try:
                self._obstore.put(self._objects, path, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def upload(self, path: str, source: Path) -> None:
        with _naming(self.url, path, "writing"):
            self._obstore.put(self._objects, path, source)

    def delete(self, path: str) -> None:
        if self.exists(path):
            with _naming(self.url, path, "deleting"):
                self._obstore.delete(self._objects, path)


def _list_on(store: Any, folder: str | None, found: list[str], *, last: bool) -> bool:
    """Append what comes after the last path found; False where the answer was cut, which the
    store does not ask for again by itself."""
    import obstore
    from obstore.exceptions import GenericError

    try:
        for batch in obstore.list(store, prefix=folder, offset=found[-1] if found else None):
            found.extend(entry["path"] for entry in batch)
    except GenericError as error:
        if last or "NoSuchBucket" in str(error):
            raise
        return False
    return True


def _check_access(url: str) -> None:
    """Without credentials in the environment, obstore would ask the network for some."""
    if not url.removeprefix("s3:").strip("/"):
        raise UserError("s3:// names no bucket; use s3://bucket/prefix")
    _, _, prefix = url.removeprefix("s3:").strip("/").partition("/")
    if "\\" in prefix or "//" in prefix or {".", ".."} & set(prefix.split("/")):
        raise UserError(
            f"{url}: a prefix with a backslash, an empty part, `.` or `..` is another place on"
            " some stores; use another one"
        )
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        if has_credentials(endpoint := os.environ.get(name, "")):
            raise UserError(f"{name}: {HOW_INSTEAD}")
        if endpoint and not _ENDPOINT.fullmatch(endpoint):
            raise UserError(
                f"{name}={endpoint[:80]!r} is no address of a store; use https://host or"
                " http://host:port"
            )
    skip = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes", "on")
    if not skip and not any(os.environ.get(name) for name in CREDENTIALS):
        raise UserError(
            f"{url} needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
            " AWS_SKIP_SIGNATURE=true for a public bucket"
        )


def _open_store(
    url: str,
    timeout_seconds: float,
    max_retries: int = MAX_RETRIES,
    first_pause: timedelta = FIRST_PAUSE,
) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    # Not by URL, in which %, # and ? mean something else: `exp#1` and `exp` are two places.
    bucket, _, prefix = url.removeprefix("s3:").lstrip("/").partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") or os.environ.get("AWS_ENDPOINT", "")
    try:
        return S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "timeout": f"{round(timeout_seconds * 1000)}ms",
                "allow_http": endpoint.startswith("http://"),
            },
            retry_config={"max_retries": max_retries, "backoff": {"init_backoff": first_pause}},
        )
    except BaseError as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UserError(f"{url}: {reason}; correct the AWS_* variables") from None


@contextmanager
def _naming(url: str, path: str, doing: str = "reading") -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError:
        raise missing_object(url, path) from None
    except BaseError as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{doing} {url}/{path} failed: {first_line}; check the store") from error
