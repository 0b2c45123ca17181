"""Ports for servers that tests start."""

from __future__ import annotations

import os
import random
import socket

_FIRST, _LAST = 20_001, 32_000
"""Below the range that the system hands to outgoing connections (32768 and up), where any
connection of any process could take a port between its choice and its use, and above those that
Ray gives its workers (10002 to 19999)."""


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nothing listens on, on any address of this machine.

    Raises:
        RuntimeError: there are not enough.
    """
    draw = random.Random(os.urandom(8))
    found: list[int] = []
    for port in draw.sample(range(_FIRST, _LAST), 1_000):
        if _is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"found {len(found)} free ports of {count}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
