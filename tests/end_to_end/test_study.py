"""`ifsq study run` on real stages: unique stages once, kills, failures, Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="the study's digits come with scikit-learn")

SHRUNK = [
    "stages.tokenizer.steps=4", "stages.generator.steps=4", "stages.samples.samples_per_class=2",
]  # fmt: skip


def start(*arguments: str, store: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launchers.cli", "study", "run", "studies/smoke", *SHRUNK]
    return subprocess.Popen(
        [*command, "--store", str(store), *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "IFSQ_METRICS_PORT": "off"},
        **options,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=500)
    return process.returncode, output


def numbers(store: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())["numbers"]
        for path in sorted(store.glob("evaluate-*/record.json"))
    }


@pytest.mark.slow
def test_a_killed_driver_goes_on_with_the_same_results(tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    code, output = finish(start("seeds=[0]", "--launcher", "local", store=calm))
    assert code == 0, output
    # 2 image sets, 2 tokenizers, 2 token sets, 4 generators, samples and evaluations.
    assert "18 stages done, 0 found done, 0 failed" in output
    expected = numbers(calm)
    assert len(expected) == 4

    killed = tmp_path / "killed"
    process = start("seeds=[0]", "--launcher", "local", store=killed, start_new_session=True)
    while len(list(killed.glob("*/record.json"))) < 6:
        assert process.poll() is None, finish(process)
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, output = finish(start("seeds=[0]", "--launcher", "local", store=killed))
    assert code == 0, output
    assert numbers(killed) == expected
    code, output = finish(start("seeds=[0]", "--launcher", "local", store=killed))
    assert code == 0
    assert "0 stages done, 18 found done" in output


@pytest.mark.slow
def test_on_ray_one_failing_variant_leaves_the_rows_of_the_others(tmp_path: Path) -> None:
    # A learning rate at which the loss is not a number ends this variant's generators.
    bad = "axes.depth.2={generator.task.model.num_layers: 2, generator.optim.generator.lr: 1.0e+30}"
    code, output = finish(start("seeds=[0]", bad, store=tmp_path))
    assert code == 1, output
    assert "2 failed, 4 left out" in output
    found = numbers(tmp_path)
    assert len(found) == 2, output
    assert all(one["psnr_db"] > 0 for one in found.values())


@pytest.mark.slow
def test_a_search_stops_the_worse_training_early_and_writes_the_study(tmp_path: Path) -> None:
    """Ray Tune's ASHA on tokenizers of a few steps; a rate of 1e-9 learns nothing."""
    search = {
        "stage": "tokenizer", "key": "optim.autoencoder.lr", "values": [4e-3, 1e-9],
        "first_steps": 4, "reduction": 2,
    }  # fmt: skip
    study, tuned = tmp_path / "study.yaml", tmp_path / "tuned.yaml"
    steps = {"tokenizer": {"steps": 16}}
    study.write_text(json.dumps({"extends": "studies/smoke", "stages": steps, "search": search}))
    command = [sys.executable, "-m", "launchers.cli", "study", "search", str(study)]
    done = subprocess.run(
        [*command, "--store", str(tmp_path / "store"), "--output", str(tuned)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "IFSQ_METRICS_PORT": "off"},
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("all ")]
    by_value = {float(value): int(count) for _, value, count, _ in rows}
    assert by_value[4e-3] == 16
    assert "tokenizer.optim.autoencoder.lr = 0.004" in done.stdout
    plan = subprocess.run(
        [*command[:4], "plan", str(tuned)], capture_output=True, text=True, timeout=200
    )
    assert plan.returncode == 0, plan.stderr
