"""What imports what: the layers, and what a light command or a model must not bring in."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY


def modules_after(statement: str) -> set[str]:
    """Top-level modules a fresh interpreter has loaded after the statement."""
    program = (
        f"import json, sys\n{statement}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("ifsq_train.models.autoencoder", {"ray", "deepspeed", "pydantic", "data_pipelines"}),
        ("ifsq_train.models.llamagen", {"ray", "deepspeed", "pydantic", "data_pipelines"}),
        ("ifsq_train.models.quantizers", {"ray", "deepspeed", "pydantic", "data_pipelines"}),
        ("ifsq_train.losses.adversarial", {"ray", "deepspeed", "pydantic", "data_pipelines"}),
        ("data_pipelines.order.plan", {"ray", "deepspeed", "ifsq_train"}),
        ("data_pipelines.images.source", {"ray", "deepspeed", "ifsq_train"}),
        ("ifsq_train.train", {"ray", "deepspeed", "launchers"}),
        ("ifsq_train.metrics.jsonl", {"ray", "deepspeed", "torch", "prometheus_client"}),
        ("launchers.cli", {"ray", "deepspeed", "torch", "pyarrow"}),
    ],
)
def test_importing_leaves_out(module: str, unwanted: set[str]) -> None:
    assert modules_after(f"import {module}") & unwanted == set()


def test_help_loads_neither_torch_nor_ray() -> None:
    statement = (
        "from typer.testing import CliRunner; from launchers.cli import app;"
        " assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    )
    assert modules_after(statement) & {"ray", "deepspeed", "torch", "pyarrow"} == set()


def test_import_contracts_hold() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("lint-imports is not installed")
    done = subprocess.run([command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("ifsq_train", {"__init__", "train", "log", "randomness", "versions"}),
        ("launchers", {"__init__", "local", "stages"}),
    ],
)
def test_a_new_module_belongs_in_a_package(package: str, allowed: set[str]) -> None:
    found = {path.stem for path in (REPOSITORY / package).glob("*.py")}
    assert found - allowed == set(), "put it into the package whose docstring fits"


def test_every_package_says_what_belongs_in_it() -> None:
    silent = [
        str(path.relative_to(REPOSITORY))
        for package in ("ifsq_train", "launchers", "data_pipelines")
        for path in (REPOSITORY / package).rglob("__init__.py")
        if not (ast.get_docstring(ast.parse(path.read_text())) or "").strip()
    ]
    assert silent == []
