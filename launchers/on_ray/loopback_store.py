"""torch.distributed's rendezvous store on loopback, for workers that are all on this machine.

PyTorch's own store listens on every address and asks for no password. It takes a socket that is
open already, though: rank 0 opens one on 127.0.0.1, and all ranks, rank 0 too, come as clients.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch import config as torch_config
from ray.train.torch.config import _TorchBackend  # pyright: ignore[reportPrivateUsage]

_ADDRESS = "127.0.0.1"
_stores: list[Any] = []
"""Of this process; a store serves for as long as it is kept."""


def serve_on_loopback() -> tuple[str, int]:
    """Serve a store from this process; its address and port."""
    from torch.distributed import TCPStore

    listener = socket.create_server((_ADDRESS, 0), backlog=1024)
    port = listener.getsockname()[1]
    # The store closes the descriptor itself.
    store = TCPStore(
        _ADDRESS,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        use_libuv=False,
    )
    _stores.append(store)
    return _ADDRESS, port


def _come_as_client() -> None:
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"


class LoopbackTorchConfig(TorchConfig):
    """`TorchConfig` for workers of one machine."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the process group up."""
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """As Ray does it, with the store that rank 0 serves on loopback."""
        worker_group.execute(_come_as_client)
        before = torch_config.get_address_and_port
        torch_config.get_address_and_port = serve_on_loopback
        try:
            super().on_start(worker_group, backend_config)
        finally:
            torch_config.get_address_and_port = before
