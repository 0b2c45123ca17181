"""`kubectl exec` into pods of a stand-in API server: the commands run on this machine.

Before the server stands a line that takes the connections on which kubectl asks for an exec and
speaks Kubernetes' WebSocket protocol ``v5.channel.k8s.io`` there (k8s.io/apimachinery,
pkg/util/remotecommand/constants.go): the first byte of a message is its channel, and 255 closes
one. All other connections are passed on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import subprocess
import threading
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from tests.support.kube_api import Line

STDIN, STDOUT, STDERR, STATUS, CLOSE = 0, 1, 2, 3, 255
_CONTINUATION, _BINARY, _END, _PING, _PONG = 0, 2, 8, 9, 10
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class ExecLine(Line):
    """A line to an API server whose pods' commands run here.

    Attributes:
        asked: pod, container and command of every exec.
        refused: why nobody may, if set.
    """

    def __init__(self, target_port: int) -> None:
        self.asked: list[tuple[str, str, list[str]]] = []
        self.refused = ""
        super().__init__(target_port)

    def begin(self, client: socket.socket) -> None:
        head = client.recv(65536, socket.MSG_PEEK)
        if b"/exec?" not in head.split(b"\r\n", 1)[0]:
            super().begin(client)
        elif self.refused:
            _refuse(client, self.refused)
        else:
            _Exec(client, self.asked).serve()


def _refuse(client: socket.socket, why: str) -> None:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden"}
    body = json.dumps({**status, "message": why, "code": 403}).encode()
    head = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with client:
        client.recv(65536)
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


class _Exec:
    """One command and its streams."""

    def __init__(self, client: socket.socket, asked: list[tuple[str, str, list[str]]]) -> None:
        self._client, self._in, self._asked = client, client.makefile("rb"), asked
        self._sending = threading.Lock()

    def serve(self) -> None:
        with self._client:
            target = self._in.readline().split(b" ")[1].decode()
            headers = dict(self._headers())
            query = parse_qs(urlsplit(target).query)
            pod = urlsplit(target).path.split("/")[-2]
            self._asked.append((pod, query.get("container", [""])[0], query["command"]))
            key = hashlib.sha1(f"{headers['sec-websocket-key']}{_GUID}".encode()).digest()
            self._client.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\nSec-WebSocket-Accept: "
                + base64.b64encode(key)
                + b"\r\n\r\n"
            )
            self._run(query["command"], wants_input=query.get("stdin") == ["true"])

    def _headers(self) -> list[tuple[str, str]]:
        found = []
        while line := self._in.readline().strip():
            name, _, value = line.decode().partition(":")
            found.append((name.lower(), value.strip()))
        return found

    def _run(self, command: list[str], *, wants_input: bool) -> None:
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE if wants_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()
            streams = [(STDOUT, process.stdout), (STDERR, process.stderr)]
            talkers = [threading.Thread(target=self._talk, args=found) for found in streams]
            for talker in talkers:
                talker.start()
            for talker in talkers:
                talker.join()
            code = process.wait()
        status: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            status = {
                "metadata": {},
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": f"command terminated with non-zero exit code: exit status {code}",
                "details": {"causes": causes},
            }
        self._send(_BINARY, bytes([STATUS]) + json.dumps(status).encode())
        self._send(_END, struct.pack("!H", 1000))

    def _talk(self, channel: int, stream: IO[bytes]) -> None:
        while data := stream.read1(16384):  # type: ignore[attr-defined]
            self._send(_BINARY, bytes([channel]) + data)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Input for the command; the end of the connection is the end of the command."""
        try:
            while (message := self._message()) is not None:
                if process.stdin is None or not message:
                    continue
                if message[0] == STDIN:
                    process.stdin.write(message[1:])
                    process.stdin.flush()
                elif message[0] == CLOSE and message[1] == STDIN:
                    process.stdin.close()
        except (OSError, ValueError):
            pass  # the command has ended first
        if process.poll() is None:
            process.terminate()

    def _message(self) -> bytes | None:
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

    def _send(self, kind: int, data: bytes) -> None:
        size = len(data)
        length = bytes([size]) if size < 126 else struct.pack("!BH", 126, size)
        try:
            with self._sending:
                self._client.sendall(bytes([128 | kind]) + length + data)
        except OSError:
            pass  # the client has gone away
