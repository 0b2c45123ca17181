"""Memory that is used again.

Large blocks go back to the operating system when they are freed, and every page of the next one
costs a fault: for the pixels of a 200,000-pixel JPEG as much as a third of decoding it, for a float
batch six times its conversion.
"""

import collections
import math
import threading
import weakref

import numpy as np
import torch
from numpy.typing import NDArray

MAX_SCRATCH_BYTES = 32 << 20
"""Scratch a thread keeps; larger requests get memory of their own."""
MAX_FREE_BLOCKS = 4


class Scratch:
    """One block for each thread, which the next `take` of the same thread hands out again."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """uint8 [num_bytes] of any content, valid until this thread takes again."""
        if num_bytes > MAX_SCRATCH_BYTES:
            return np.empty(num_bytes, np.uint8)
        block = getattr(self._of_thread, "block", None)
        if block is None or len(block) < num_bytes:
            block = np.empty(1 << (num_bytes - 1).bit_length() if num_bytes else 1, np.uint8)
            self._of_thread.block = block
        return block[:num_bytes]


class RecycledTensors:
    """Host tensors whose memory is used again once nobody holds them or a view of them.

    Keeps at most four free blocks. Thread-safe.
    """

    def __init__(self) -> None:
        self._free: collections.deque[NDArray[np.uint8]] = collections.deque(maxlen=MAX_FREE_BLOCKS)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """As torch.empty on the CPU."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes == 0:
            return torch.empty(shape, dtype=dtype)
        block = self._take(num_bytes)
        # The storage holds this array, and goes when the last tensor that shares it does.
        held = block[:num_bytes]
        weakref.finalize(held, self._free.append, block).atexit = False
        return torch.from_numpy(held).view(dtype).view(shape)

    def _take(self, num_bytes: int) -> NDArray[np.uint8]:
        try:
            block = self._free.popleft()
        except IndexError:
            return np.empty(num_bytes, np.uint8)
        # Shapes change rarely: a block of another size is not worth keeping.
        return block if len(block) == num_bytes else np.empty(num_bytes, np.uint8)
