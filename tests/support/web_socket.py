"""The server's end of a WebSocket (RFC 6455), for what kubectl sends through one."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
import threading
from urllib.parse import SplitResult, urlsplit

_CONTINUATION, _BINARY, _END, _PING, _PONG = 0, 2, 8, 9, 10
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocket:
    """A connection whose client asks to change to a WebSocket.

    Attributes:
        url: that was asked for.
    """

    def __init__(self, client: socket.socket, protocol: str) -> None:
        self._client, self._in = client, client.makefile("rb")
        self._sending = threading.Lock()
        self.url: SplitResult = urlsplit(self._in.readline().split(b" ")[1].decode())
        key = hashlib.sha1(f"{self._headers()['sec-websocket-key']}{_GUID}".encode()).digest()
        accept = base64.b64encode(key).decode()
        client.sendall(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Protocol: {protocol}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )

    def _headers(self) -> dict[str, str]:
        found = {}
        while line := self._in.readline().strip():
            name, _, value = line.decode().partition(":")
            found[name.lower()] = value.strip()
        return found

    def message(self) -> bytes | None:
        """The next whole message of the client; None at its end."""
        data = b""
        while True:
            head = self._in.read(2)
            if len(head) < 2:
                return None
            kind, size = head[0] & 15, head[1] & 127
            if size >= 126:
                size = int.from_bytes(self._in.read(2 if size == 126 else 8), "big")
            mask = self._in.read(4)
            masked = self._in.read(size)
            repeated = (mask * (size // 4 + 1))[:size]
            plain = int.from_bytes(masked, "big") ^ int.from_bytes(repeated, "big")
            if kind == _END:
                return None
            if kind == _PING:
                self._send(_PONG, plain.to_bytes(size, "big"))
            elif kind in (_BINARY, _CONTINUATION):
                data += plain.to_bytes(size, "big")
                if head[0] & 128:
                    return data

    def send(self, data: bytes) -> None:
        """One message of at most 65,535 bytes; nothing if the client has gone away."""
        self._send(_BINARY, data)

    def end(self) -> None:
        """Say that no more will come."""
        self._send(_END, struct.pack("!H", 1000))

    def _send(self, kind: int, data: bytes) -> None:
        size = len(data)
        length = bytes([size]) if size < 126 else struct.pack("!BH", 126, size)
        try:
            with self._sending:
                self._client.sendall(bytes([128 | kind]) + length + data)
        except OSError:
            pass  # the client has gone away
