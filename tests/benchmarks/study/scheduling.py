"""How much a study's scheduler adds: sleeping stages of 200 variants on a simulated Ray cluster.

    python -m tests.benchmarks.study.scheduling                 # about nine minutes, mostly asleep
    python -m tests.benchmarks.study.scheduling --variants 20 --seconds 2

Real Ray with several nodes on this machine. Ten tokenizers and their tokens are shared by 200
generators, each with samples behind it. Workers are started before the clock. The overhead is the
wall time over that of the same list schedule without any overhead.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from launchers.on_ray.cluster import import_ray
from launchers.on_ray.graph import Node, run_graph

SHARED = 10


def graph(variants: int) -> list[Node]:
    """Tokenizers, tokens, and per variant a generator and its samples."""
    nodes = [Node(f"tokenizer-{i}") for i in range(SHARED)]
    nodes += [Node(f"tokens-{i}", (f"tokenizer-{i}",)) for i in range(SHARED)]
    nodes += [Node(f"generator-{i}", (f"tokens-{i % SHARED}",)) for i in range(variants)]
    nodes += [Node(f"samples-{i}", (f"generator-{i}",)) for i in range(variants)]
    return nodes


def seconds_of(key: str, unit: float) -> float:
    """How long a stage sleeps: generators one unit, the rest a fraction."""
    return unit * {"generator": 1.0, "tokenizer": 0.5}.get(key.partition("-")[0], 0.1)


def sleep(shared: tuple[str, float], key: str) -> None:
    """One stage: sleeps and leaves a mark."""
    folder, unit = shared
    with (Path(folder) / key).open("a") as file:
        file.write("x")
    time.sleep(seconds_of(key, unit))


def _rest() -> None:
    """Long enough that every slot has to start a worker."""
    time.sleep(8)


def ideal(nodes: list[Node], slots: int, unit: float) -> float:
    """The list schedule's length when nothing but sleeping takes time."""
    waiting, done, running, now = list(nodes), set(), [], 0.0
    while waiting or running:
        for node in [n for n in waiting if done.issuperset(n.inputs)]:
            if len(running) < slots:
                waiting.remove(node)
                heapq.heappush(running, (now + seconds_of(node.key, unit), node.key))
        now, key = heapq.heappop(running)
        done.add(key)
    return now


def main() -> None:
    """Run and print one line of JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--variants", type=int, default=200)
    options.add_argument("--seconds", type=float, default=16.0, help="of a generator")
    options.add_argument("--nodes", type=int, default=2)
    options.add_argument("--slots", type=int, default=4, help="of each node")
    options.add_argument("--address", help="a cluster that runs already")
    args = options.parse_args()
    nodes, slots = graph(args.variants), args.nodes * args.slots
    ray = import_ray()
    from ray.cluster_utils import Cluster

    cluster, address = None, args.address
    if not address:
        cluster = Cluster()
        for _ in range(args.nodes):
            cluster.add_node(num_cpus=args.slots, include_dashboard=False)
        address = cluster.address
    ray.init(address=address, log_to_driver=False)
    try:
        ray.get([ray.remote(_rest).remote() for _ in range(slots)])
        with tempfile.TemporaryDirectory() as folder:
            arguments = {node.key: (node.key,) for node in nodes}
            began = time.perf_counter()
            outcomes = list(run_graph(nodes, sleep, arguments, (folder, args.seconds)))
            wall = time.perf_counter() - began
            runs = Counter(len(path.read_text()) for path in Path(folder).iterdir())
    finally:
        ray.shutdown()
        if cluster:
            cluster.shutdown()
    best = ideal(nodes, slots, args.seconds)
    result = {
        "variants": args.variants,
        "stages": len(nodes),
        "slots": slots,
        "failed": sum(outcome.error is not None for outcome in outcomes),
        "stages_run_once": runs.get(1, 0),
        "wall_s": round(wall, 2),
        "ideal_s": round(best, 2),
        "overhead_percent": round(100.0 * (wall / best - 1.0), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
