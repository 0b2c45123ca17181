"""How many threads a process should use."""

import os

MAX_DEFAULT_THREADS = 16


def default_threads() -> int:
    """CPUs this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)), MAX_DEFAULT_THREADS)
