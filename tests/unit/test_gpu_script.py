"""The GPU script: a part that fails loses only itself, and results are there at any time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def load_script() -> Any:
    """The script as a module, found by its path: it is run as a file on bare machines."""
    path = ROOT / "tests" / "benchmarks" / "gpu" / "run.py"
    spec = importlib.util.spec_from_file_location("gpu_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run = load_script()


def test_a_missing_package_loses_only_the_parts_that_need_it(tmp_path: Path) -> None:
    """As on a bare machine: torch is there, pydantic is not."""
    (tmp_path / "pydantic.py").write_text("raise ModuleNotFoundError('no pydantic here')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    script, output = ROOT / "tests" / "benchmarks" / "gpu" / "run.py", tmp_path / "out"
    command = [sys.executable, script, "--tiny", "--only", "environment", "precision"]
    done = subprocess.run(
        [*command, "--output", output],
        env=environment, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    lines = json.loads((output / "results.json").read_text())
    software = next(line for line in lines if line["what"] == "software")
    assert software["torch"]
    errors = {line["part"]: line["error"] for line in lines if "error" in line}
    assert list(errors) == ["precision"]
    assert "no pydantic here" in errors["precision"]
    assert (
        "| precision | precision | error ModuleNotFoundError" in (output / "results.md").read_text()
    )


def test_a_part_that_hangs_is_ended_and_keeps_what_it_printed(monkeypatch, tmp_path: Path) -> None:
    script = tmp_path / "part.py"
    script.write_text(
        'import time\nprint(\'{"what": "early", "ms": 1}\', flush=True)\ntime.sleep(600)\n'
    )
    monkeypatch.setattr(run, "__file__", str(script))
    monkeypatch.setattr(sys, "argv", ["run.py"])
    lines = run.supervise(run.Part("slow", "none", "none"), 2.0)
    assert [line["what"] for line in lines] == ["early", "slow", "slow: seconds taken"]
    assert lines[1]["error"] == "not done after 2 s"


def test_every_part_names_a_function_that_is_there() -> None:
    for part in run.PARTS:
        text = (ROOT / "tests" / "benchmarks" / "gpu" / f"{part.module}.py").read_text()
        assert f"def {part.function}(bench: Bench)" in text, part.name
    assert len({part.name for part in run.PARTS}) == len(run.PARTS)
