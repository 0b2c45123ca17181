"""`kubectl exec` into pods of a stand-in API server: the commands run on this machine.

Before the server stands a line that takes the connections on which kubectl asks for an exec, and
speaks Kubernetes' WebSocket protocol ``v5.channel.k8s.io`` there (k8s.io/apimachinery,
pkg/util/remotecommand/constants.go): the first byte of a message is its channel, and 255 closes
one. Those that ask for ports go to `tests.support.pod_forward`, all others are passed on.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from typing import IO, Any
from urllib.parse import parse_qs

from tests.support.kube_api import Line
from tests.support.pod_forward import Forward
from tests.support.web_socket import WebSocket

STDIN, STDOUT, STDERR, STATUS, CLOSE = 0, 1, 2, 3, 255


class ExecLine(Line):
    """A line to an API server whose pods' commands run here.

    Attributes:
        asked: pod, container and command of every exec.
        refused: why nobody may, if set.
        ports: a pod's name and port -> the port of this machine that stands for it.
        forwarded: pod and port of every connection that was asked for.
    """

    def __init__(self, target_port: int) -> None:
        self.asked: list[tuple[str, str, list[str]]] = []
        self.refused = ""
        self.ports: dict[tuple[str, int], int] = {}
        self.forwarded: list[tuple[str, int]] = []
        super().__init__(target_port)

    def begin(self, client: socket.socket) -> None:
        first = client.recv(65536, socket.MSG_PEEK).split(b"\r\n", 1)[0]
        asks_for_port = b"/portforward" in first
        if not asks_for_port and b"/exec?" not in first:
            super().begin(client)
        elif self.refused:
            _refuse(client, self.refused)
        elif asks_for_port:
            Forward(client, self.ports, self.forwarded).serve()
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
        self._client, self._socket = client, WebSocket(client, "v5.channel.k8s.io")
        self._asked = asked

    def serve(self) -> None:
        with self._client:
            query = parse_qs(self._socket.url.query)
            pod = self._socket.url.path.split("/")[-2]
            self._asked.append((pod, query.get("container", [""])[0], query["command"]))
            self._run(query["command"], wants_input=query.get("stdin") == ["true"])

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
        self._socket.send(bytes([STATUS]) + json.dumps(status).encode())
        self._socket.end()

    def _talk(self, channel: int, stream: IO[bytes]) -> None:
        while data := stream.read1(16384):  # type: ignore[attr-defined]
            self._socket.send(bytes([channel]) + data)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Input for the command; the end of the connection is the end of the command."""
        try:
            while (message := self._socket.message()) is not None:
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
