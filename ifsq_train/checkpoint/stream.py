"""Tensors to a safetensors file without a second copy of them, hashed while they are written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 16 << 20
"""Written, hashed and read back at once."""
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
# The order in which the library lays tensors out: by type, then by name.
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")


def file_parts(tensors: Mapping[str, Tensor]) -> list[memoryview]:
    """A safetensors file of dense CPU tensors as pieces of memory: the header, then each tensor.

    The same bytes as `safetensors.torch.save` makes, which copies all of them.
    """
    names = sorted(tensors, key=lambda name: (_ORDER.index(_TYPES[tensors[name].dtype]), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        facts = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**facts, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    parts = [memoryview(len(text).to_bytes(8, "little") + text)]
    parts += [_bytes_of(tensors[name]) for name in names if tensors[name].numel()]
    return parts


def _bytes_of(tensor: Tensor) -> memoryview:
    assert tensor.is_contiguous()
    values: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)


class Hashed:
    """Pieces of memory as chunks to write; a thread hashes what has been handed out.

    Attributes:
        digest: "bytes" and "sha256" once all chunks were taken.
    """

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = parts
        self.digest: dict[str, Any] = {}

    def __iter__(self) -> Iterator[memoryview]:
        """Chunk by chunk; may be gone through again, as for a second attempt."""
        sha256, size, hashing = hashlib.sha256(), 0, list[Future[None]]()
        with ThreadPoolExecutor(1, thread_name_prefix="checkpoint-hash") as thread:
            for chunk in chunks(self._parts):
                size += len(chunk)
                hashing.append(thread.submit(sha256.update, chunk))
                yield chunk
        for done in hashing:
            done.result()
        self.digest = {"bytes": size, "sha256": sha256.hexdigest()}


def chunks(parts: Sequence[memoryview]) -> Iterator[memoryview]:
    """The parts in pieces of at most CHUNK_BYTES."""
    for part in parts:
        for first in range(0, len(part), CHUNK_BYTES):
            yield part[first : first + CHUNK_BYTES]


def read_back(path: Path, parts: Sequence[memoryview]) -> None:
    """Read a file that was just written, past the page cache where the system lets us.

    Args:
        path: the file.
        parts: what was written, still in memory: comparing is quicker than hashing again.

    Raises:
        OSError: the storage gives other bytes than were written.
    """
    memory: Any = np.empty(CHUNK_BYTES, np.uint8)
    buffer = memoryview(memory)
    with path.open("rb", buffering=0) as file:
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for chunk in chunks(parts):
            filled = 0
            while filled < len(chunk) and (count := file.readinto(buffer[filled : len(chunk)])):
                filled += count
            if not np.array_equal(memory[:filled], np.frombuffer(chunk, np.uint8)):
                break
        else:
            if not file.read(1):
                return
    raise OSError(f"{path}: read back after writing, it is not what was written")
