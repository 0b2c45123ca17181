"""What the dashboards show."""

from __future__ import annotations

from k8s.dashboards.hardware_board import HARDWARE
from k8s.dashboards.operation_boards import DATA, FLEET, PRECOMPUTE
from k8s.dashboards.panels import GPU_ONLY, Dashboard, Panel
from k8s.dashboards.training_boards import TOKENIZER, TRAINING

DASHBOARDS = (TRAINING, TOKENIZER, PRECOMPUTE, DATA, FLEET, HARDWARE)
NEEDS_EXPORTERS = {panel.title for row in HARDWARE.rows.values() for panel in row}
"""Panels that have data only where other projects' exporters are scraped."""
__all__ = ["DASHBOARDS", "GPU_ONLY", "NEEDS_EXPORTERS", "Dashboard", "Panel"]
