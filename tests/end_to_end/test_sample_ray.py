"""Sampling on Ray: any number of actors, and actors that die, give the set one process gives."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from ifsq_train.config import SampleConfig
from ifsq_train.sampling.draw import draw_samples, read_samples
from launchers.on_ray.cluster import import_ray
from launchers.on_ray.sample import SamplerActor, sample_on_ray
from tests.support.generator_parts import make_generators, sampling


@pytest.mark.slow
def test_actors_draw_what_one_process_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    generators = make_generators(tmp_path)
    draw_samples(sampling(generators, "diffusion", tmp_path / "one"))
    config = sampling(generators, "diffusion", tmp_path / "many")
    ray = import_ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        killed: list[int] = []

        def kill_one(done: int, total: int) -> None:
            """After the first batch one actor's process is killed."""
            if not killed and done < total:
                killed.append(_pid_of_an_actor())
                os.kill(killed[0], signal.SIGKILL)

        assert sample_on_ray(config, num_actors=2, on_batch=kill_one) == 12
        assert killed
        _in_two_goes(generators, tmp_path)
    finally:
        ray.shutdown()
    expected = read_samples(tmp_path / "one")
    for name in ("many", "halves"):
        found = read_samples(tmp_path / name)
        assert found.facts["sha256"] == expected.facts["sha256"]


def _in_two_goes(generators: dict[str, str], folder: Path) -> None:
    """Begun by one actor and interrupted, finished in this process."""
    config: SampleConfig = sampling(generators, "diffusion", folder / "halves")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_on_ray(config, num_actors=1, on_batch=stop)
    steps: list[int] = []
    draw_samples(config, lambda done, _: steps.append(done))
    assert steps[-1] == 12
    assert len(steps) < 4


def _pid_of_an_actor() -> int:
    """Ray titles its workers after the actor's class."""
    import psutil

    title = f"ray::{SamplerActor.__name__}"
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile, or a zombie
            if " ".join(child.cmdline()).startswith(title):
                return child.pid
    raise AssertionError("no actor is running")
