"""Workers of one machine meet at a store that only this machine reaches."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from launchers.on_ray.loopback_store import serve_on_loopback

# Rank 1 of two, as Ray's workers come: by environment variables, as a client of a store that is
# there.
_OTHER = """
import torch
from torch import distributed
distributed.init_process_group("gloo")
total = torch.ones(1)
distributed.all_reduce(total)
print(total.item())
distributed.destroy_process_group()
"""


def test_ranks_meet_at_a_store_on_loopback() -> None:
    address, port = serve_on_loopback()
    listening = {
        tuple(found.laddr)
        for found in psutil.Process().net_connections("tcp")
        if found.status == psutil.CONN_LISTEN and found.laddr.port == port
    }
    assert listening == {("127.0.0.1", port)}
    environment = os.environ | {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _OTHER],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[0].strip() for rank in ranks]
    assert said == ["2.0", "2.0"]
