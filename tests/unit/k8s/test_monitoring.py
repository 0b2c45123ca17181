"""Dashboards and alerts: up to date, valid, and about metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ifsq_train.metrics.names import METRICS
from tests.support.repository import REPOSITORY

pytestmark = pytest.mark.heavy

DASHBOARDS = sorted((REPOSITORY / "k8s" / "dashboards").glob("*.json"))
ALERTS = sorted((REPOSITORY / "k8s" / "alerts").glob("*.yaml"))
ALERT_TESTS = sorted((REPOSITORY / "k8s" / "alerts" / "tests").glob("*.yaml"))


def all_rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in ALERTS]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def rules() -> list[dict[str, Any]]:
    """The alerts; the other rules record what they and the dashboards ask for."""
    return [rule for rule in all_rules() if "alert" in rule]


def expressions() -> list[str]:
    found = [rule["expr"] for rule in all_rules()]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [target["expr"] for target in panel.get("targets", [])]
    return found


def load_lint(shared_dir: Path) -> Callable[[Path], list[str]]:
    """The tool's check of one file; the tool itself is a script that runs when imported."""
    source = (shared_dir / "tools" / "dashboard_lint.py").read_text()
    scope: dict[str, Any] = {}
    exec(source.split("for f in sys.argv[1:]:")[0], scope)
    return scope["lint"]


def test_dashboards_are_what_their_builder_makes() -> None:
    pytest.importorskip("grafana_foundation_sdk")
    from k8s.dashboards.build import DASHBOARDS as specs
    from k8s.dashboards.build import build, build_runbooks

    names = {spec.uid.removeprefix("ifsq-"): build(spec) for spec in specs}
    names["runbooks"] = build_runbooks()
    committed = {path.stem: path.read_text() for path in DASHBOARDS}
    assert committed == names, "run: python -m k8s.dashboards.build"


def test_dashboards_pass_the_lint(shared_dir: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk")
    lint = load_lint(shared_dir)
    assert {path.stem: lint(path) for path in DASHBOARDS} == {path.stem: [] for path in DASHBOARDS}


def test_every_query_names_metrics_that_exist() -> None:
    known: set[str] = set()
    for spec in METRICS:
        known.add(spec.name)
        if spec.kind == "histogram":
            known |= {f"{spec.name}_{suffix}" for suffix in ("bucket", "sum", "count")}
    recorded = {rule["record"] for rule in all_rules() if "record" in rule}
    series = {name for text in expressions() for name in re.findall(r"[\w:]*\bifsq_[\w:]+", text)}
    used = {name for name in series if ":" not in name}
    assert series - used <= recorded
    assert used <= known
    assert len(used) > 20


def test_every_alert_has_a_runbook_page_that_names_it() -> None:
    for rule in rules():
        page = REPOSITORY / "docs" / "runbooks" / f"{rule['annotations']['runbook']}.md"
        assert rule["alert"] in page.read_text(), page.name


def test_every_alert_has_a_test_where_it_fires_and_one_where_it_does_not() -> None:
    fires, silent = set(), set()
    for path in ALERT_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                (fires if case.get("exp_alerts") else silent).add(case["alertname"])
    assert fires == silent == {rule["alert"] for rule in rules()}


def test_alerts_fire_when_they_should(promtool: str) -> None:
    command = [promtool, "test", "rules", *map(str, ALERT_TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alert_files_are_valid(promtool: str) -> None:
    command = [promtool, "check", "rules", "--lint=all", "--lint-fatal", *map(str, ALERTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lint_finds_a_fault(shared_dir: Path, tmp_path: Path) -> None:
    """So that an empty list above means something."""
    pytest.importorskip("grafana_foundation_sdk")
    board = json.loads(DASHBOARDS[0].read_text())
    board["panels"][1]["fieldConfig"]["defaults"].pop("unit")
    board["panels"][1]["colour"] = "red"
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(board))
    assert len(load_lint(shared_dir)(path)) == 2
