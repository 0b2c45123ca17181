"""`kubectl port-forward` into pods of a stand-in API server: their ports are ports of this machine.

kubectl sends SPDY/3.1 through a WebSocket (k8s.io/client-go, tools/portforward): for each
connection a stream for errors and one for data, whose headers name the port and the connection.
Nothing of SPDY is here that kubectl does not use.
"""

from __future__ import annotations

import socket
import threading
import zlib
from collections.abc import Iterator

from tests.support.web_socket import WebSocket

PROTOCOL = "SPDY/3.1+portforward.k8s.io"
_SYN_STREAM, _SYN_REPLY, _PING = 1, 2, 6
_FIN = 1
_CHUNK = 16384
# SPDY draft 3, 2.6.10.1: what both ends know of headers before the first byte.
_WORDS = """options head post put delete trace accept accept-charset accept-encoding accept-language
accept-ranges age allow authorization cache-control connection content-base content-encoding
content-language content-length content-location content-md5 content-range content-type date etag
expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since
last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer
retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate
method get status|200 OK|version HTTP/1.1 url public set-cookie keep-alive origin"""
_CODES = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
)
_TEXT = (
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, "
    "Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch"
    "charset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _word(text: str) -> bytes:
    return len(text).to_bytes(4, "big") + text.encode()


def _dictionary() -> bytes:
    before, ok, after = _WORDS.split("|")
    words = [*before.split(), ok, *after.split()]
    return b"".join(map(_word, words)) + (_CODES + _TEXT).encode()


class Forward:
    """All forwarded connections of one kubectl.

    Args:
        client: connection on which it asks for a pod's ports.
        ports: a pod's name and port -> the port of this machine that stands for it.
        asked: gets the pod's name and port of every connection.
    """

    def __init__(
        self,
        client: socket.socket,
        ports: dict[tuple[str, int], int],
        asked: list[tuple[str, int]],
    ) -> None:
        self._client, self._socket = client, WebSocket(client, PROTOCOL)
        self._pod = self._socket.url.path.split("/")[-2]
        self._ports, self._asked = ports, asked
        words = _dictionary()
        self._unpack = zlib.decompressobj(zdict=words)
        self._pack = zlib.compressobj(zdict=words)
        self._sending = threading.Lock()
        self._errors: dict[str, int] = {}
        self._data: dict[int, socket.socket] = {}

    def serve(self) -> None:
        with self._client:
            for head, body in self._frames():
                if not head[0] & 128:
                    self._take(int.from_bytes(head[:4], "big"), head[4], body)
                elif head[3] == _SYN_STREAM:
                    self._open(int.from_bytes(body[:4], "big"), self._headers(body[10:]))
                elif head[3] == _PING:
                    self._socket.send(head + body)
            for connection in self._data.values():
                connection.close()

    def _frames(self) -> Iterator[tuple[bytes, bytes]]:
        buffer = b""
        while (message := self._socket.message()) is not None:
            buffer += message
            while len(buffer) >= 8 and len(buffer) >= 8 + int.from_bytes(buffer[5:8], "big"):
                size = 8 + int.from_bytes(buffer[5:8], "big")
                yield buffer[:8], buffer[8:size]
                buffer = buffer[size:]

    def _headers(self, block: bytes) -> dict[str, str]:
        plain, at, words = self._unpack.decompress(block), 4, list[str]()
        while at < len(plain):
            size = int.from_bytes(plain[at : at + 4], "big")
            words.append(plain[at + 4 : at + 4 + size].decode().lower())
            at += 4 + size
        return dict(zip(words[::2], words[1::2], strict=True))

    def _open(self, stream: int, headers: dict[str, str]) -> None:
        with self._sending:
            block = self._pack.compress(bytes(4)) + self._pack.flush(zlib.Z_SYNC_FLUSH)
            body = stream.to_bytes(4, "big") + block
            self._socket.send(
                bytes([128, 3, 0, _SYN_REPLY, 0]) + len(body).to_bytes(3, "big") + body
            )
        if headers["streamtype"] == "error":
            self._errors[headers["requestid"]] = stream
            return
        errors, port = self._errors.pop(headers["requestid"]), int(headers["port"])
        self._asked.append((self._pod, port))
        try:
            found = socket.create_connection(("127.0.0.1", self._ports[self._pod, port]))
        except (KeyError, OSError):
            self._send(errors, f"nothing listens on port {port} of the pod".encode(), 0)
            self._send(errors, b"", _FIN)
            self._send(stream, b"", _FIN)
            return
        self._data[stream] = found
        threading.Thread(target=self._answer, args=(stream, errors, found), daemon=True).start()

    def _answer(self, stream: int, errors: int, found: socket.socket) -> None:
        try:
            while data := found.recv(_CHUNK):
                self._send(stream, data, 0)
        except OSError:
            pass  # kubectl has ended
        self._send(stream, b"", _FIN)
        self._send(errors, b"", _FIN)

    def _take(self, stream: int, flags: int, data: bytes) -> None:
        found = self._data.get(stream)
        if found is None:
            return
        try:
            found.sendall(data)
            if flags & _FIN:
                found.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the port's program has ended the connection

    def _send(self, stream: int, data: bytes, flags: int) -> None:
        with self._sending:
            size = len(data).to_bytes(3, "big")
            self._socket.send(stream.to_bytes(4, "big") + bytes([flags]) + size + data)
