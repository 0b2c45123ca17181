"""The demo with a few steps: every stage through the real engines, and what a kill leaves."""

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

from data_pipelines.tokens.verify import verify_tokens
from ifsq_train.metrics.jsonl import read_jsonl
from launchers.demo.pipeline import run_demo

STEPS = {"tokenizer": 8, "generator": 120}
CHANGES = {
    "tokenizer": [
        f"steps={STEPS['tokenizer']}",
        "task.adversarial.start_step=4",
        "log_every_steps=1",
    ],
    "generator": [
        f"steps={STEPS['generator']}",
        "task.model.num_layers=2",
        "task.model.dim=32",
        "checkpoint.every_steps=5",
        "log_every_steps=1",
    ],
    "samples": ["samples_per_class=3"],
}
TIMES = {"wall_time", "data_wait_ratio", "goodput_ratio"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished small demo; not to be changed."""
    folder = tmp_path_factory.mktemp("demo")
    run_demo(folder, changes=CHANGES)
    return folder


def losses(run: Path) -> list[dict[str, Any]]:
    """The log of a run without what the clock decides."""
    return [
        {key: value for key, value in record.items() if key not in TIMES and "second" not in key}
        for record in read_jsonl(run / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_every_stage_ran_on_the_real_engines(demo: Path) -> None:
    result = json.loads((demo / "result.json").read_bytes())
    stages = result["stages"]
    assert list(stages) == ["pack", "tokenizer", "precompute", "generator", "sample", "evaluate"]
    assert all(stage["seconds"] > 0 for stage in stages.values())
    for name, steps in STEPS.items():
        engine = {key: stages[name][key] for key in ("strategy", "zero_stage", "world_size")}
        assert engine == {"strategy": "deepspeed", "zero_stage": 1, "world_size": 2}
        assert stages[name]["steps"] == steps
        assert stages[name]["final_loss"] > 0
    rows = stages["precompute"]
    assert rows["rows"] == rows["expected_rows"] == stages["pack"]["train_images"]
    assert (rows["missing_rows"], rows["duplicate_rows"]) == (0, 0)
    assert stages["pack"]["train_images"] + stages["pack"]["held_out_images"] == 1797
    assert stages["evaluate"]["num_samples"] == 30
    assert stages["evaluate"]["classifier_accuracy"] >= 0.95
    assert stages["tokenizer"]["psnr_db"] > 0
    assert result["peak_memory_bytes"] > 2**28
    assert result["wall_seconds"] >= sum(stage["seconds"] for stage in stages.values())
    assert verify_tokens(demo / "tokens").ok
    page = (demo / "report.html").read_text()
    assert page.count("<img") >= 24 * 2 + 10 * 3


@pytest.mark.slow
def test_finished_demo_is_found_finished_without_starting_ray(demo: Path) -> None:
    before = {run: losses(demo / run) for run in STEPS}
    code = (
        "import sys, pathlib, json\n"
        "from launchers.demo.pipeline import run_demo\n"
        "run_demo(pathlib.Path(sys.argv[1]), changes=json.loads(sys.argv[2]))\n"
        "print('ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo), json.dumps(CHANGES)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert {run: losses(demo / run) for run in STEPS} == before


@pytest.mark.slow
def test_killed_generator_run_resumes_with_the_losses_of_an_undisturbed_one(
    demo: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "launchers.cli", "train", "demo/generator", "--workers", "2",
        f"output={tmp_path / 'generator'}", f"data.url={demo / 'tokens'}",
        f"data.tokenizer={demo / 'tokenizer'}", *CHANGES["generator"],
    ]  # fmt: skip
    log = tmp_path / "generator" / "metrics.jsonl"
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE) as driver:
        deadline = time.monotonic() + 200
        while len(read_jsonl(log)) < 12 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)
    assert 12 <= len(read_jsonl(log)) < STEPS["generator"], "killed too late or too early"
    time.sleep(3)  # until the workers have seen that their driver is gone

    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "generator" / "result.json").read_bytes())
    assert result["resumed_from"] >= 10
    assert losses(tmp_path / "generator") == losses(demo / "generator")
