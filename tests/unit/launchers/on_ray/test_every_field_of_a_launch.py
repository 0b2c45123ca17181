"""Every field of a launch, changed alone, changes what Ray is asked for or what a worker does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import UserError
from ifsq_train import train as loop
from ifsq_train.checkpoint.reader import newest_checkpoint
from ifsq_train.config import LaunchConfig, TrainConfig, to_dict
from ifsq_train.config.load import load_recipe
from launchers.local import train_locally
from launchers.on_ray import train as module
from tests.support.recipe_fields import leaves, replaced
from tests.support.small_run import train_tokenizer, write_images

CHANGES: dict[str, Any] = {
    "num_workers": 3,
    "min_workers": 1,
    "gpus_per_worker": 1,
    "cpus_per_worker": 3.0,
    "address": "10.0.0.1:6379",
    "max_failures": 5,
    "loading.decode_actors": 2,
    "loading.decode_threads": 4,
}
LAUNCH = LaunchConfig(num_workers=2, cpus_per_worker=2, loading={"decode_actors": 1})  # type: ignore[arg-type]


class Asked(Exception):
    """Ray would be started now."""


def asked_for(
    config: TrainConfig, launch: LaunchConfig, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What a training asks Ray for: its session, its group of workers, its restarts."""
    session: dict[str, Any] = {}

    def no_session(address: str | None, *, min_cpus: int) -> Any:
        session.update(address=address, min_cpus=min_cpus)
        raise Asked

    with monkeypatch.context() as patched:
        patched.setattr(module, "ray_session", no_session)
        patched.setattr(module, "preflight", lambda *_, **__: None)
        with pytest.raises(Asked):
            module.train_on_ray(config, launch)
    trainer = module._trainer(config, launch, "x-0", "x")
    scaling, run = trainer.scaling_config, trainer.run_config
    return session | {
        "workers": scaling.num_workers,
        "gpu": scaling.use_gpu,
        "resources": scaling.resources_per_worker,
        "backend": trainer.backend_config,
        "restarts": run.failure_config.max_failures,
    }


def test_what_ray_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = load_recipe("demo/tokenizer", [f"output={tmp_path}"])
    assert isinstance(recipe, TrainConfig)
    before = asked_for(recipe, LAUNCH, monkeypatch)
    assert before["min_cpus"] == 2 * (2 + 1 * 2)
    assert before["restarts"] == 3
    values = to_dict(LAUNCH)
    for path, value in CHANGES.items():
        other = LaunchConfig.model_validate(replaced(values, path, value))
        assert asked_for(recipe, other, monkeypatch) != before, path


def test_what_a_worker_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loop asks its loader for them; a change is taken where it is allowed."""
    seen: list[tuple[int, int]] = []

    class Seen(loop.Prefetcher):
        def __init__(self, load: Any, steps: Any, depth: int, threads: int) -> None:
            seen.append((depth, threads))
            super().__init__(load, steps, depth, threads)

    monkeypatch.setattr(loop, "Prefetcher", Seen)
    folder = train_tokenizer(tmp_path, write_images(tmp_path, 8), {"kind": "ae"})
    found = newest_checkpoint(Path(folder) / "checkpoints")
    assert found is not None
    values = replaced(replaced(found.header["recipe"], "steps", 3), "optim.autoencoder.lr", 2e-3)
    changed = TrainConfig.model_validate(values)
    with pytest.raises(UserError, match=r"optim\.autoencoder\.lr: 0\.001 -> 0\.002"):
        train_locally(changed)
    loading = {"prefetch_batches": 3, "reader_threads": 2}
    allowed = {"allow_changes": ["optim.autoencoder.lr"], "loading": loading}
    assert train_locally(changed, LaunchConfig.model_validate(allowed))["steps"] == 3
    assert seen == [(2, 1), (3, 2)]


def test_every_field_is_walked() -> None:
    """`decode_threads`: also what a worker without actors decodes with."""
    done = {*CHANGES, "allow_changes", "loading.prefetch_batches", "loading.reader_threads"}
    assert {path for path, _ in leaves(to_dict(LAUNCH))} == done
    assert LaunchConfig(cpus_per_worker=3.5).decode_threads == 3
